"""The compiled loops against the numpy beside their callers, code for code; and what happens without a compiler."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import planned

import opq
from opq import demo
from opq.base import compiled
from opq.coding import classes
from opq.errors import OpqWarning
from opq.quantizing import trellis
from opq.quantizing.feedback import sweep
from opq.quantizing.grid import quantize
from opq.quantizing.moment import Layout, Moment


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    for loops in (trellis.LOOPS, classes.LOOPS):
        monkeypatch.setattr(loops, "little", 0.0)


NOTHING = compiled.Loops("no compiler")
NOTHING._missing = True


def by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trellis, "LOOPS", NOTHING)
    monkeypatch.setattr(classes, "LOOPS", NOTHING)


NUMBERS = {
    "normal": lambda g, shape: g.normal(size=shape),
    "laplacian": lambda g, shape: 3 * g.laplace(size=shape),
    "halves": lambda g, shape: g.integers(-9, 10, shape) / 2,
    "zeros": lambda g, shape: np.zeros(shape),
    "signed zeros": lambda g, shape: g.choice([0.0, -0.0, 1.0, -1.0], shape),
    "wide": lambda g, shape: g.standard_cauchy(shape).clip(-9e4, 9e4),
    "huge": lambda g, shape: g.normal(size=shape) * 1e30,
}


@settings(max_examples=60, deadline=None)
@given(
    rows=st.one_of(st.integers(1, 5), st.integers(120, 140), st.integers(250, 400)),
    columns=st.one_of(st.integers(1, 3), st.integers(15, 35)),
    kind=st.sampled_from(sorted(NUMBERS)),
    own_prices=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_search_finds_the_same_codes(rows: int, columns: int, kind: str, own_prices: bool, seed: int) -> None:
    g = np.random.default_rng(seed)
    x = NUMBERS[kind](g, (rows, columns)).astype(np.float32)
    priced = x if own_prices and kind != "huge" else g.normal(size=50).astype(np.float32) * 2
    found = {}
    for which in ("compiled", "numpy"):
        with pytest.MonkeyPatch.context() as patch:
            if which == "numpy":
                by_numpy(patch)
            bits = trellis.costs(priced)
            with np.errstate(over="ignore"):
                found[which] = bits, trellis.nearest(x, bits)
    assert np.array_equal(found["compiled"][0], found["numpy"][0])
    assert np.array_equal(found["compiled"][1], found["numpy"][1])
    trellis.paths(found["compiled"][1])


@pytest.mark.parametrize("columns", [1, 4])
def test_long_columns_are_parted_alike(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = 2 * np.random.default_rng(0).laplace(size=(4 * trellis.RUN + 9, columns)).astype(np.float32)
    bits = trellis.costs(x)
    found = trellis.nearest(x, bits, at_once=2)
    by_numpy(monkeypatch)
    assert np.array_equal(found, trellis.nearest(x, bits, at_once=2))


@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([1, 1, 3]),
    rows=st.sampled_from([1, 5, 70, 300]),
    width=st.integers(1, 40),
    plans=st.sampled_from(["grid", "grids", "threshold", "trellis"]),
    kind=st.sampled_from(["normal", "laplacian", "halves", "zeros", "wide"]),
    seed=st.integers(0, 1000),
)
def test_feedback_gives_the_same_codes(groups: int, rows: int, width: int, plans: str, kind: str, seed: int) -> None:
    g = np.random.default_rng(seed)
    w = torch.from_numpy(NUMBERS[kind](g, (groups * rows, width)).astype(np.float32))
    x = torch.from_numpy(g.normal(size=(groups, 2 * width, width)).astype(np.float32))
    moment = Moment(Layout(groups), (x.transpose(1, 2) @ x / (2 * width),))
    choices: dict[str, list[dict[str, Any]]] = {
        "grid": [{"step": 0.5, "threshold": 0.31, "rounding": 0.62}],
        "grids": [{"step": s, "threshold": 0.6 * s, "rounding": 0.6} for s in (0.3, 0.01, 1.7)],
        "threshold": [{"step": 0.25, "threshold": 0.9, "rounding": 0.5}],
        "trellis": [{"step": 0.4, "codebook": "trellis"}],
    }
    grids = [planned("w", tuple(w.shape), **f) for f in choices[plans]]
    found = sweep(w, grids, moment)
    with pytest.MonkeyPatch.context() as patch:
        by_numpy(patch)
        for one, other in zip(found, sweep(w, grids, moment), strict=True):
            assert torch.equal(one, other)


FILES = ((2.5, False), (3.5, True))
"""Bits, and whether on a trellis."""


@contextlib.contextmanager
def by_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def files(model: torch.nn.Module, **options: Any) -> list[opq.Result]:
    return [opq.compress(model, bits=bits, trellis=trellis, **options) for bits, trellis in FILES]


def packed(results: list[opq.Result]) -> list[bytes]:
    return [b"".join(result.packed.parts) for result in results]


@pytest.mark.parametrize("probe", [True, False])
def test_a_file_is_the_same_with_and_without_the_compiler(monkeypatch: pytest.MonkeyPatch, probe: bool) -> None:
    model = demo.load()
    with by_threads(1):
        found = packed(files(model, probe=probe))
        by_numpy(monkeypatch)
        assert packed(files(model, probe=probe)) == found


def test_a_file_is_the_same_by_any_number_of_threads() -> None:
    """Also with a probe, where torch's own sums are: on some processors they are not, and a code on an edge moves."""
    model, found, seen = demo.load(), [], []
    for count in (1, 3):
        with by_threads(count):
            found.append((packed(files(model, probe=False)), files(model)))
            moments = opq.probe(model).moments
            seen.append([block for name in moments for block in moments[name].blocks])
    assert found[0][0] == found[1][0]
    if all(torch.equal(one, other) for one, other in zip(*seen, strict=True)):
        assert packed(found[0][1]) == packed(found[1][1])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert [(t.name, t.step) for t in one.plan.compressed] == [(t.name, t.step) for t in other.plan.compressed]
        apart = [float((w - other.state_dict()[n]).square().mean() / w.square().mean()) for n, w in kernels(one)]
        assert max(apart) < 1e-2  # about what rounding at these rates costs


def kernels(result: opq.Result) -> list[tuple[str, torch.Tensor]]:
    state = result.state_dict()
    return [(t.name, state[t.name].double()) for t in result.plan.compressed]


CALL = """
import hashlib, sys
{before}
import opq, torch
from opq.base import compiled
from opq.coding import classes
from opq.quantizing import trellis
assert sys.modules.get("numba") is None, "imported where it is not used"
trellis.LOOPS.little = classes.LOOPS.little = 0.0
torch.manual_seed(0)
seen = []
result = opq.compress({{"w": torch.randn(300, 40)}}, bits=3, trellis=True, progress=lambda *step: seen.append(step))
assert {seen} == [step for step in seen if step[0] == "compile"], seen
print(hashlib.sha256(b"".join(result.packed.parts)).hexdigest())
print(trellis.LOOPS(1.0) is not None and classes.LOOPS(1.0) is not None)
"""
STAGE = '[("compile", 0, 2), ("compile", 1, 2), ("compile", 2, 2)]'


@functools.cache
def call(before: str = "", seen: str = STAGE, package: Path | None = None, **environment: str) -> tuple[str, bool]:
    """Digest of a file that a process of its own makes, and whether it had the compiled loops."""
    root = Path(opq.__file__).parents[1] if package is None else package
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", CALL.format(before=before, seen=seen)],
        env=os.environ | {"PYTHONPATH": str(root)} | environment,
        capture_output=True,
        text=True,
    )
    assert not ran.returncode, ran.stderr
    digest, had = ran.stdout.split()
    return digest, had == "True"


MISSING = 'sys.modules["numba"] = None'


@pytest.mark.slow
def test_without_numba_numpy_does_the_work() -> None:
    with_it, without = call(), call(before=MISSING)
    assert with_it[1]
    assert not without[1]
    assert with_it[0] == without[0]
    assert call(NUMBA_DISABLE_JIT="1") == without


BROKEN = """
import importlib.abc
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "numba":
            raise {error}("Numba needs NumPy 1.0 or less")
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_numba_that_cannot_be_imported_is_none(error: str) -> None:
    assert call(before=BROKEN.format(error=error)) == (call()[0], False)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's code in a folder where nothing can be cached."""
    source = Path(opq.__file__).parent
    (tmp_path / "opq").mkdir()
    for path in source.rglob("*"):
        if "__pycache__" not in path.parts and path.is_file():
            target = tmp_path / "opq" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path) if path.suffix != ".py" else target.write_bytes(path.read_bytes())
    (tmp_path / "opq" / "__pycache__").write_text("a file where a folder should be")
    return tmp_path


@pytest.mark.slow
def test_folders_that_cannot_be_written_cost_time_only(package: Path) -> None:
    nowhere = package / "opq" / "__pycache__"
    homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"), f"{nowhere}/none")
    assert call(package=package, PYTHONDONTWRITEBYTECODE="1", **homes) == call()


def test_nothing_is_loaded_for_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(compiled, "_compiled", lambda module: seen.append(module))
    some = compiled.Loops("some.module", little=1.0)
    compiled.prepare([(some, 0.9)], lambda *step: seen.append(step[0]))
    assert some(0.9) is None
    assert not seen
    compiled.prepare([(some, 1.0)], lambda *step: seen.append(step[0]))
    assert seen == ["compile", "some.module", "compile"]
    compiled.prepare([(some, 1.1)], lambda *step: seen.append(step[0]))
    assert some(1.1) is None
    assert len(seen) == 3, "what is missing is not looked for again"


def test_a_numba_that_is_told_to_compile_nothing_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    assert compiled.Loops("opq.coding.loops")(10.0) is not None
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert compiled.Loops("opq.coding.loops")(10.0) is None


def test_loops_that_a_numba_cannot_compile_cost_time_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import numba\n\n@numba.njit('void(intp)')\ndef f(x):\n    x.what_no_number_has()\n"
    (tmp_path / "uncompilable.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(OpqWarning, match=r"numba .* does not compile uncompilable, and numpy takes its place: Typing"):
        assert compiled.Loops("uncompilable")(10.0) is None


def test_every_state_has_a_register_of_its_own() -> None:
    assert sorted(trellis.REGISTERS) == list(range(trellis.STATES))


def test_every_result_says_where_its_time_went() -> None:
    result = opq.compress(demo.load(), bits=3)
    wanted = ["open", "statistics", "probe", "evidence", "sensitivity", "curves", "solve", "quantize", "moments"]
    assert set(wanted) < set(result.seconds)
    assert list(result.seconds)[-1] == "other"
    assert all(seconds >= 0 for seconds in result.seconds.values())
    plain = opq.compress({"w": quantize_free()}, bits=3)
    assert "moments" not in plain.seconds
    assert plain.seconds["encode"] > 0


def quantize_free() -> torch.Tensor:
    """Some weights."""
    return torch.randn(200, 30, generator=torch.Generator().manual_seed(0))


def test_plain_quantization_on_paths_is_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    w, plan = quantize_free(), planned("w", (200, 30), step=0.4, codebook="trellis")
    found = quantize(w, plan)
    by_numpy(monkeypatch)
    assert torch.equal(found, quantize(w, plan))


def test_loops_are_modules() -> None:
    assert isinstance(trellis.LOOPS(10.0), ModuleType)
    assert isinstance(classes.LOOPS(10.0), ModuleType)
