"""`opq report`: one self-contained HTML page; a script inside it draws charts and solves for other budgets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from opq.base.atomic import refuse_inputs, written_aside
from opq.base.extras import need
from opq.file.folder_reader import open_reader
from opq.report.figures import Figures, figures, of_histogram, of_tensor
from opq.report.groups import curves, reasons
from opq.sources import open_source

ROWS = 10_000
"""The most tensors that the page lists: the largest ones. A choice that limits the size of the page."""
HISTOGRAMS = 100
"""The most tensors whose codes the page can draw: the largest ones. A choice that limits the size of the page."""


def save_page(
    file: str | os.PathLike[str], path: str | os.PathLike[str], *, source: Any = None, title: str | None = None
) -> int:
    """Writes the report of an opq file as one HTML page that needs no network.

    Args:
        file: an opq file.
        path: the page to write.
        source: what was compressed (as in `opq.compress`), for its own histograms and curves; without it they are
            those of Laplacians fitted to the codes, and the page says so.

    Returns:
        the size of the page in bytes.

    Raises:
        FileFormatError: the file is incomplete or damaged; nothing is written.
        MissingExtraError: jinja2 is not installed.
        WriteError: the page cannot be written; no incomplete page remains.
    """
    refuse_inputs(path, [file])
    opened = None if source is None else open_source(source)
    refuse_inputs(path, () if opened is None else opened.inputs)
    with open_reader(file) as reader:
        return save_figures(figures(reader, label=title or Path(file).name, source=opened), path)


def save_figures(drawn: Figures, path: str | os.PathLike[str]) -> int:
    """`save_page` for figures that are computed already."""
    text = page(drawn).encode()
    with written_aside(path) as out:
        out.write(text)
    return len(text)


def page(drawn: Figures) -> str:
    """The HTML of the report."""
    jinja2 = need("jinja2", "report")
    folder = Path(__file__).with_name("templates")
    loader = jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return str(environment.get_template("report.html").render(data=data(drawn), label=drawn.label))


def data(drawn: Figures, *, rows: int = ROWS, histograms: int = HISTOGRAMS) -> dict[str, Any]:
    """All that the page's script reads, as JSON values. Sums are over all tensors, lists are of the largest ones.

    Args:
        rows: the most tensors that are listed.
        histograms: the most tensors whose codes can be drawn.
    """
    plan, own = drawn.plan, drawn.compressed
    listed = set(sorted(range(len(drawn.tensors)), key=lambda k: -drawn.tensors[k].bytes)[:rows])
    gridded = [t for t in own if t.plan.stepped and t.codes.size > 1]
    shown = set(sorted(range(len(gridded)), key=lambda k: -gridded[k].plan.size)[:histograms])
    return {
        "label": drawn.label,
        "method": plan.method,
        "budget": None if plan.budget is None else f"{plan.budget.kind}={plan.budget.value:g}",
        "file_bytes": drawn.file_bytes,
        "source_bytes": drawn.source_bytes,
        "elements": drawn.elements,
        "coded_bytes": drawn.coded_bytes,
        "kept_bytes": drawn.kept_bytes,
        "other_bytes": drawn.other_bytes,
        "entropy_bytes": sum(t.entropy_bytes for t in own),
        "zeros": sum(t.sparsity * t.plan.size for t in own) / max(sum(t.plan.size for t in own), 1),
        "compressed": len(own),
        "kept": len(drawn.tensors) - len(own),
        "uncurved": sum(t.curve is None for t in own),
        "basis": drawn.basis,
        "base": drawn.base,
        "measured": drawn.measured,
        "trellised": sum(t.on_trellis and t.curve is not None for t in own),
        "reasons": reasons(drawn.tensors),
        "curves": curves(own),
        "histograms": [of_histogram(t) for k, t in enumerate(gridded) if k in shown],
        "tensors": [of_tensor(t) for k, t in enumerate(drawn.tensors) if k in listed],
    }
