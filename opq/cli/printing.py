"""The only functions of the package that print: lines, tables and JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from opq.report.table import Report

out = Console(markup=False)
err = Console(stderr=True, markup=False)


def say(text: str) -> None:
    """Prints a line without wrapping it, however long it is: the paths in it stay whole."""
    out.print(text, soft_wrap=True)


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
