"""Every notebook runs from the first cell to the last, one after the other in one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CLEAN = "%reset -f\nimport matplotlib.pyplot as plt\nplt.close('all')"


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    """One kernel for all, since importing torch takes longer than most notebooks."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(FOLDER))
    yield manager
    manager.shutdown_kernel(now=True)


def test_there_are_six() -> None:
    assert len(NOTEBOOKS) == 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(path: Path, kernel: Any) -> None:
    book = nbformat.read(path, as_version=4)
    book.cells.insert(0, nbformat.v4.new_code_cell(CLEAN))
    client = nbclient.NotebookClient(book, km=kernel, timeout=300, startup_timeout=300, allow_errors=False)
    with client.setup_kernel():
        try:
            for k, cell in enumerate(book.cells):
                if cell.cell_type == "code":
                    client.execute_cell(cell, k)
        finally:
            client.kc.stop_channels()
    pictures = [o for c in book.cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_without_errors_and_with_exercises(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    assert len(code) >= 5
    assert "## Exercises" in book.cells[-1].source
    assert path.stat().st_size < 700_000
