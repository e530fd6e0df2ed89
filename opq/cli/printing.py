"""The only functions of the package that print: lines, tables and JSON."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from opq.report.table import Report

out = Console(markup=False, highlight=False)  # rich would colour the digits inside of names and shapes
err = Console(stderr=True, markup=False, highlight=False)


def say(text: str, *, commands: bool = False) -> None:
    """Prints a line; on a terminal that is narrower it goes on in the next one, between words: paths stay whole.

    Args:
        commands: whether it holds commands to copy, which have no line breaks of ours.
    """
    out.print(text if commands else wrapped(text, out), soft_wrap=True)


def wrapped(text: str, console: Console, *, begun: int = 0) -> str:
    """The text with line breaks between words where a terminal would break inside them; elsewhere as it is.

    Args:
        begun: characters that the first line has already.
    """
    if not console.is_terminal:
        return text
    before = "x" * (begun - 1) + " " if begun else ""  # stands for what is there, which ends with a blank
    fits = [
        [line]
        if len(line) <= console.width
        else textwrap.wrap(line, console.width, break_long_words=False, break_on_hyphens=False)
        for line in (before + text).split("\n")
    ]
    joined = "\n".join(line for some in fits for line in some)
    return joined[begun - 1 :].removeprefix(" ") if begun else joined


def say_plainly(text: str) -> None:
    """Prints text that another program may read: never coloured, never wrapped."""
    print(text)


def say_json(figures: dict[str, Any]) -> None:
    """Prints one JSON object with sorted keys on one line."""
    say_plainly(json.dumps(figures, sort_keys=True))


def say_table(report: Report) -> None:
    """Prints a table as wide as the terminal; where the output is no terminal, one line for each tensor."""
    for line in report.lines(out.width if out.is_terminal else None):
        say(line)


def one_line(message: object) -> str:
    """A message without line breaks and without characters that a terminal would obey."""
    from opq.base.tables import printable

    return printable(str(message).replace("\n", " "))


def watched(quiet: bool) -> bool:
    """Whether a progress bar is drawn: not for `--json`, and not where standard error is no terminal."""
    return not quiet and err.is_terminal
