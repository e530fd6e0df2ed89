"""Runs the notebooks of the course from the first cell to the last and stores what they show.

    python examples/store_notebooks.py [1 2 ...]

The tests run them in the same way, and compare what they print with what is stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent / "notebooks"
CLEAN = "%reset -f\nimport matplotlib.pyplot as plt\nplt.close('all')"


@contextmanager
def kernel() -> Iterator[Any]:
    """One kernel for all, since importing torch takes longer than some notebooks."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(FOLDER))
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def executed(path: Path, manager: Any, *, leave: str = "") -> Any:
    """The notebook with fresh outputs, but for cells tagged `leave`, which are not run and keep those they have.

    Raises:
        CellExecutionError: of the first cell that fails.
    """
    book = nbformat.read(path, as_version=4)
    first = nbformat.v4.new_code_cell(CLEAN)
    book.cells.insert(0, first)
    client = NotebookClient(book, km=manager, timeout=300, startup_timeout=300, allow_errors=False)
    with client.setup_kernel():
        try:
            for number, cell in enumerate(book.cells):
                if cell.cell_type == "code" and leave not in tags(cell):
                    client.execute_cell(cell, number)
        finally:
            client.kc.stop_channels()
    del book.cells[0]
    for number, cell in enumerate(c for c in book.cells if c.cell_type == "code"):
        cell.outputs = [o for o in cell.outputs if o.get("data", {}).get("text/plain") != ""]  # of a progress bar
        cell.execution_count = number + 1
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = number + 1
    return book


def tags(cell: Any) -> list[str]:
    """The tags of a cell; that of ResNet-20 is `real`."""
    return list(cell.metadata.get("tags", []))


def printed(book: Any) -> list[str]:
    """What each code cell prints, in order."""
    code = (cell for cell in book.cells if cell.cell_type == "code")
    return ["".join(o["text"] for o in cell.outputs if o.get("name") == "stdout") for cell in code]


if __name__ == "__main__":
    with kernel() as manager:
        for path in sorted(FOLDER.glob("*.ipynb")):
            if not sys.argv[1:] or path.stem[0] in sys.argv[1:]:
                nbformat.write(executed(path, manager), path)
                print(path.stem)
