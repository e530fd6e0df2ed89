"""The public surface is small, sorted, documented, and what `__all__` says."""

from __future__ import annotations

import inspect
from pathlib import Path

import opq


def test_all_is_sorted_and_there() -> None:
    assert list(opq.__all__) == sorted(opq.__all__)
    assert all(hasattr(opq, name) for name in opq.__all__)


def test_nothing_else_is_public() -> None:
    modules = {path.stem for path in Path(opq.__file__).parent.glob("*")}
    public = {name for name in vars(opq) if not name.startswith("_") and name not in modules}
    assert public - {"annotations"} == set(opq.__all__) - modules


def test_everything_public_is_documented() -> None:
    for name in opq.__all__:
        assert inspect.getdoc(getattr(opq, name)), name


def test_typed() -> None:
    assert (Path(opq.__file__).parent / "py.typed").exists()
