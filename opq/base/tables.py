"""Tables as plain text and as HTML: the same rows for a terminal, a pipe and a notebook.

On a terminal a table keeps within its width: columns that say least go first, long names lose their middle, and the
last column's words go on below. Without a width every row is one line, for `grep`.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from shutil import get_terminal_size

GAP = "  "
SHOWN = 200
"""Rows that a notebook shows."""


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    title: str
    right: bool = False
    least: int | None = None
    """Characters that its cells are cut down to where there is no room for all; None: never cut."""
    leaves: int = 0
    """Where there is no room: the columns with 1 go first, then those with 2; those with 0 stay."""
    words: bool = False
    """Whether its cells are sentences, whose words go on in the lines below."""


def printable(text: str) -> str:
    """Text of unknown origin as a terminal may have it: what moves its cursor or sets its colours is spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def some(names: Collection[str], most: int = 5) -> str:
    """A list of names, cut where it is long."""
    listed = ", ".join(itertools.islice(names, most))
    return f"{listed} and {len(names) - most:,} more" if len(names) > most else listed


def counted(number: int, thing: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def width_of_output() -> int | None:
    """Characters in a line of the terminal that standard output goes to; None where it goes elsewhere."""
    return get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def lines(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None = None) -> Iterator[str]:
    """The lines of a table, its head first.

    Args:
        width: characters of a line at most; None for as many as it takes, one line a row.
    """
    cells = list(rows)
    natural = [max(map(len, (c.title, *(row[k] for row in cells)))) for k, c in enumerate(columns)]
    shown = list(range(len(columns))) if width is None else _kept(columns, natural, width)
    widths = [natural[k] for k in shown]
    if width is not None:
        _shrink(widths, [columns[k] for k in shown], width)
    for row in ([c.title for c in columns], *cells):
        yield from _drawn([columns[k] for k in shown], [row[k] for k in shown], widths, cut=width is not None)


def _kept(columns: Sequence[Column], natural: Sequence[int], width: int) -> list[int]:
    """The columns that there is room for."""
    least = [
        n if c.least is None else min(n, max(c.least, len(c.title))) for c, n in zip(columns, natural, strict=True)
    ]
    shown = list(range(len(columns)))
    leaving = sorted((c.leaves, k) for k, c in enumerate(columns) if c.leaves)
    for _, k in leaving:
        if sum(least[i] for i in shown) + len(GAP) * (len(shown) - 1) <= width:
            break
        shown.remove(k)
    return shown


def _shrink(widths: list[int], columns: Sequence[Column], width: int) -> None:
    """Takes from the columns that may be cut what does not fit: from sentences first."""
    over = sum(widths) + len(GAP) * (len(widths) - 1) - width
    for k in sorted((k for k, c in enumerate(columns) if c.least is not None), key=lambda k: not columns[k].words):
        taken = min(max(over, 0), max(widths[k] - max(columns[k].least or 0, len(columns[k].title)), 0))
        widths[k] -= taken
        over -= taken


def _drawn(columns: Sequence[Column], row: Sequence[str], widths: Sequence[int], *, cut: bool) -> Iterator[str]:
    """One row: a line, and more where sentences go on."""
    parts = []
    for column, cell, width in zip(columns, row, widths, strict=True):
        if column.words and cut:
            parts.append(textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False) or [""])
        else:
            parts.append([elided(cell, width) if cut else cell])
    for line in itertools.zip_longest(*parts, fillvalue=""):
        drawn = (t.rjust(w) if c.right else t.ljust(w) for c, t, w in zip(columns, line, widths, strict=True))
        yield GAP.join(drawn).rstrip()


def elided(text: str, width: int) -> str:
    """A text that is too long without its middle."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def html(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, total: int) -> str:
    """The table for notebooks, in a box that scrolls; of many rows the first ones.

    Args:
        total: rows in all.
    """
    head = "".join(f"<th>{escape(c.title)}</th>" for c in columns)
    drawn = itertools.islice(rows, SHOWN)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in drawn)
    more = f"<p>and {total - SHOWN:,} tensors more: print it for all</p>" if total > SHOWN else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div style="max-height: 30em; overflow: auto">{table}{more}</div>'
