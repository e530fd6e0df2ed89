"""The report: one row a tensor, what happens to it, why, and what it costs."""

from __future__ import annotations

import dataclasses
import io
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from opq.plan import Plan, TensorPlan

COLUMNS = ("tensor", "shape", "type", "action", "step", "dead zone", "sparsity", "bits/weight", "bytes", "why")
NARROW = ("tensor", "action", "sparsity", "bits/weight", "bytes")
WIDE = 130
"""Characters that all columns need."""
SHOWN = 200
"""Rows that a notebook shows."""
_RIGHT = {"step", "dead zone", "sparsity", "bits/weight", "bytes"}


def rows(
    plan: Plan, sizes: Mapping[str, int], densities: Mapping[str, float] | None = None
) -> Iterator[tuple[str, ...]]:
    """The cells of the report, one tuple a tensor, in the order of `COLUMNS`.

    Args:
        sizes: bytes of each tensor's payload in the file; 0 where it has none of its own.
        densities: measured fractions of weights that are not zero; the plan's predictions by default.
    """
    for tensor in plan:
        size = sizes.get(tensor.name, 0)
        density = (densities or {}).get(tensor.name, tensor.density)
        yield (
            printable(tensor.name),
            "x".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype,
            tensor.action,
            *(_grid(tensor, density) if tensor.action == "compress" else ("", "", "")),
            f"{8 * size / tensor.size:.3f}" if tensor.size and tensor.action != "share" else "",
            f"{size:,}" if tensor.action != "share" else "",
            printable(tensor.reason),
        )


def printable(text: str) -> str:
    """Text of unknown origin as a terminal may have it: what moves its cursor or sets its colours is spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _grid(tensor: TensorPlan, density: float) -> tuple[str, str, str]:
    if not tensor.stepped:
        return (tensor.codebook, "", f"{1 - density:.1%}")
    zone = "trellis" if tensor.codebook == "trellis" else f"{tensor.dead_zone:.3f}"
    return (f"{tensor.step:.4g}", zone, f"{1 - density:.1%}")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """The report as rich draws it: all columns where there is room, else the essential ones."""

    plan: Plan
    sizes: Mapping[str, int]
    densities: Mapping[str, float] | None = None
    title: str | None = None
    notes: tuple[str, ...] = ()
    """Sentences below the table."""

    def __len__(self) -> int:
        return len(self.plan)

    def __repr__(self) -> str:
        return f"<opq.report.Report of {len(self)} tensors{'' if self.title is None else f': {self.title}'}>"

    def __str__(self) -> str:
        """The table as plain text, as wide as the terminal."""
        width, height = shutil.get_terminal_size((WIDE, 25))  # a dumb terminal's 80 columns hold where one is not given
        console = Console(file=io.StringIO(), color_system=None, width=width, height=height)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()

    def _repr_html_(self) -> str:
        return html_table(self.plan, self.sizes, self.densities)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table(COLUMNS if options.max_width >= WIDE else NARROW)
        yield from (Text(printable(note)) for note in self.notes)

    def table(self, columns: Sequence[str] = COLUMNS) -> Table:
        """The report as a rich table of some columns."""
        title = None if self.title is None else Text(self.title)
        drawn = Table(title=title, title_justify="left", header_style="bold", row_styles=["", "dim"])
        for column in columns:
            number = column in _RIGHT
            drawn.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
        for row in rows(self.plan, self.sizes, self.densities):
            drawn.add_row(*(Text(cell) for column, cell in zip(COLUMNS, row, strict=True) if column in columns))
        return drawn


def html_table(plan: Plan, sizes: Mapping[str, int], densities: Mapping[str, float] | None = None) -> str:
    """The report as an HTML table for notebooks, in a box that scrolls; of many tensors the first ones."""
    head = "".join(f"<th>{c}</th>" for c in COLUMNS)
    drawn = itertools.islice(rows(plan, sizes, densities), SHOWN)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in drawn)
    more = f"<p>and {len(plan) - SHOWN:,} tensors more: print report()</p>" if len(plan) > SHOWN else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div style="max-height: 30em; overflow: auto">{table}{more}</div>'
