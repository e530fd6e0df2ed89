"""Rows of benchmarks: written as JSON under results/, printed as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"

Row = Mapping[str, Any]


def save(name: str, rows: Sequence[Row]) -> Path:
    """Writes the rows as `results/NAME.json`, one object a line."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return path


def merge(name: str, rows: Sequence[Row]) -> Path:
    """Writes the rows in place of those of the same models; rows of other models stay."""
    path = RESULTS / f"{name}.json"
    models = {row["model"] for row in rows}
    others = [row for row in json.loads(path.read_text()) if row["model"] not in models] if path.exists() else []
    return save(name, [*others, *rows])


def show(rows: Iterable[Row], columns: Sequence[str], title: str) -> None:
    """Prints some columns of the rows."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "method") else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=200).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
