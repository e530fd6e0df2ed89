"""Every notebook runs from the first cell to the last, one after the other in one kernel, and prints what is stored.

What a picture or a number must show is asserted in the notebooks themselves, in the cell after the sentence.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT, SHARED

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
sys.path.append(str(ROOT / "examples"))
store = pytest.importorskip("store_notebooks")

NOTEBOOKS = sorted(store.FOLDER.glob("*.ipynb"))
SEEN = "**What you should see.**"
REAL, WEIGHTS = "real", SHARED / "weights" / "resnet20_cifar10.safetensors"
"""The tag of the cells on ResNet-20, and what they need."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def shows_real(path: Path) -> bool:
    return any(REAL in store.tags(cell) for cell in nbformat.read(path, as_version=4).cells)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    with store.kernel() as manager:
        yield manager


def test_there_are_six() -> None:
    assert len(NOTEBOOKS) == 6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs_and_prints_what_is_stored(path: Path, kernel: Any) -> None:
    """All but the cells on ResNet-20, which the next test runs."""
    fresh = store.executed(path, kernel, leave=REAL)
    compare(fresh, nbformat.read(path, as_version=4))
    cells = [c for c in fresh.cells if c.cell_type == "code" and REAL not in store.tags(c)]
    assert sum(has_picture(cell) for cell in cells) >= 2


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists(), reason="the weights of ResNet-20 are not beside the checkout")
@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if shows_real(p)], ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore")
def test_notebook_prints_what_is_stored_with_resnet20_too(path: Path, kernel: Any) -> None:
    compare(store.executed(path, kernel), nbformat.read(path, as_version=4))


def compare(fresh: Any, stored: Any) -> None:
    for now, then in zip(store.printed(fresh), store.printed(stored), strict=True):
        assert alike(now, then), f"stored output is old, run examples/store_notebooks.py:\n{then}\nis now\n{now}"


def alike(now: str, then: str) -> bool:
    """The same words, and numbers within 3 % or one and a half: networks of another processor round differently."""
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (now, then)]
    words = [NUMBER.sub("#", text).split() for text in (now, then)]
    return words[0] == words[1] and all(abs(a - b) <= max(1.5, 0.03 * abs(b)) for a, b in zip(*numbers, strict=True))


def has_picture(cell: Any) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_another_figure_or_another_word_is_not_alike() -> None:
    assert alike("10,000 bytes, 95.8 %", "10,100 bytes, 95.1 %")
    assert not alike("10,000 bytes, 95.8 %", "12,000 bytes, 95.8 %")
    assert not alike("decoded: True", "decoded: False")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_each_point_is_said_and_asserted_in_the_cell_after_it(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    said = [k for k, cell in enumerate(cells) if cell.cell_type == "markdown" and SEEN in cell.source]
    assert len(said) >= 3
    for k in said:
        assert cells[k].source.split("\n\n")[-1].startswith(SEEN), cells[k].source
        assert cells[k + 1].cell_type == "code"
        assert "assert " in cells[k + 1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_each_exercise_has_a_solution_that_runs(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    asked = next(c.source for c in book.cells if "## Exercises" in c.source)
    exercises = re.findall(r"^(\d)\. ", asked, re.MULTILINE)
    solutions = [c for c in book.cells if "hide-input" in c.metadata.get("tags", [])]
    assert exercises == [cell.source[2] for cell in solutions]
    assert all("assert" in cell.source or "except" in cell.source for cell in solutions)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stored_as_it_ran(path: Path) -> None:
    """Without errors, and every picture that it draws is there."""
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert all(has_picture(c) for c in code if "plt.xlabel" in c.source and "def " not in c.source)
    assert path.stat().st_size < 700_000
