"""Writes `benchmarks.md` from the rows that the scripts under examples/bench/ left as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = """# Benchmarks

Everything here was measured by a script under `examples/bench/` on one machine (two CPU cores, no accelerator); each
table is the JSON that its script wrote, ratios are of one run. The accuracy of the dense network stands beside that of
the compressed one, because the data are not the usual test sets: CIFAR-10 as JPEG, and 1000 photographs with ImageNet
labels that are not in ImageNet.
"""
TITLES = {
    "codec": "Size, error and speed beside other tools",
    "datafree": "Accuracy without data",
    "finetune": "Fine-tuned with fixed masks and codebooks",
    "scale": "Large checkpoints",
}
LAST = ("seconds", "encode_rate", "decode_rate", "decode_seconds")


def write(page: Path, results: Path) -> None:
    """The page, written only where it changes, so that Sphinx rebuilds it only then."""
    parts = [HEAD]
    for path in sorted(results.glob("*.json")):
        rows = json.loads(path.read_text())
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            title = TITLES.get(path.stem, path.stem.replace("_", " ").capitalize())
            parts += [f"## {title}\n", f"`python examples/bench/{path.stem}.py`\n", table(rows), ""]
    if len(parts) == 1:
        parts.append("No results yet: run a script under `examples/bench/`.\n")
    text = "\n".join(parts)
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the numbers and short words in rows; a column that no row fills is left out."""
    columns = list(dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, (int, float, str))))
    columns = [c for c in columns if c not in LAST] + [c for c in LAST if c in columns]
    lines = ["| " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value in a few characters."""
    if value is None or isinstance(value, (dict, list)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")
