"""The report: one row a tensor, what happens to it, why, and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from html import escape

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from opq.base import tables
from opq.base.tables import counted, printable, some
from opq.plan import TABLE, Plan, rows

COLUMNS = tuple(column.title for column in TABLE)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """The report of a plan or a file: all columns where there is room, else the essential ones.

    Printed or turned into a string it is as wide as the terminal; where the output is no terminal, one line a tensor.
    """

    plan: Plan
    sizes: Mapping[str, int]
    densities: Mapping[str, float] | None = None
    title: str | None = None
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    def __len__(self) -> int:
        return len(self.plan)

    def __repr__(self) -> str:
        title = "" if self.title is None else f": {printable(self.title)}"
        return f"<opq.report.Report of {counted(len(self), 'tensor')}{title}>"

    def __str__(self) -> str:
        return "\n".join(self.lines(tables.width_of_output()))

    def _repr_html_(self) -> str:
        title = "" if self.title is None else f"<p>{escape(self.title)}</p>"
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        table = tables.html(TABLE, rows(self.plan, self.sizes, self.densities), total=len(self))
        return f"{title}{table}{notes}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width if console.is_terminal else None
        for line in self.lines(width):
            yield Text(line, no_wrap=True, overflow="ignore")

    def lines(self, width: int | None = None) -> Iterator[str]:
        """The lines of the report.

        Args:
            width: characters of a line at most, kept tensors of no bytes in one line; None: one line a tensor.
        """
        if self.title is not None:
            yield from _wrapped(self.title, width)
        cells = list(rows(self.plan, self.sizes, self.densities))
        if width is None:
            yield from tables.lines(TABLE, cells)
        else:
            nothing = {t.name for t in self.plan if t.action == "keep" and not self.sizes.get(t.name, 0)}
            few = len(nothing) < 2
            told = [row for row, tensor in zip(cells, self.plan, strict=True) if few or tensor.name not in nothing]
            yield from tables.lines(TABLE, told, width)
            if not few:
                names = [printable(t.name) for t in self.plan if t.name in nothing]
                yield from _wrapped(f"and {counted(len(nothing), 'kept tensor')} of 0 bytes: {some(names, 2)}", width)
        for note in self.notes:
            yield from _wrapped(note, width)


def _wrapped(text: str, width: int | None) -> Iterator[str]:
    import textwrap

    shown = printable(text)
    if width is None:
        yield shown
    else:
        yield from textwrap.wrap(shown, width, break_long_words=False, break_on_hyphens=False) or [""]
