"""Extreme weights: none breaks a solve, a file or a budget, and what cannot be compressed is named."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import opq
from opq.allocation import paper, rate_distortion
from opq.compression.problem import FAINT
from opq.compression.result import Result
from opq.errors import CertificateError, NonFiniteError, RankError, WeightsWarning
from opq.quantizing.grid import dequantize
from opq.streaming.team import Team

METHODS = ("rd", "opq")
huge = pytest.mark.skipif("OPQ_HUGE" not in os.environ, reason="takes minutes and 10 GB; set OPQ_HUGE=1")
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def laplace(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(size=shape))


def read(result: Result) -> dict[str, torch.Tensor]:
    """The tensors of the result's file."""
    with opq.Reader(result.packed) as reader:
        return reader.state_dict()


def error(back: torch.Tensor, w: torch.Tensor) -> float:
    """Squared error over the mean square of the weights."""
    power = float(w.double().square().mean())
    return float((back.double() - w.double()).square().mean()) / power if power else float(back.double().abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e10, 1e30, 1e37])
def test_the_scale_of_all_weights_changes_nothing(method: str, scale: float) -> None:
    w = laplace(64, 96).float()
    errors = []
    for factor in (1.0, scale):
        result = opq.compress({"w": w * factor}, bits=4, method=method)
        assert result.bits <= 4
        errors.append(error(read(result)["w"], w * factor))
    assert errors[1] == pytest.approx(errors[0], rel=0.1)


ONE = torch.zeros(64, 96)
ONE[3, 5] = 1.0
SPECIAL = {
    "denormal": laplace(64, 96).float() * 1e-40,
    "one outlier among zeros": ONE,
    "one outlier of 1e30": 1e30 * ONE,
    "one outlier of 1e30 among weights of 1e-30": 1e30 * ONE + 1e-30 * laplace(64, 96).float(),
    "constant": torch.full((64, 96), 0.37),
    "constant and huge": torch.full((64, 96), -1e30),
    "zeros": torch.zeros(64, 96),
    "negative zeros": -torch.zeros(64, 96),
    "plus and minus one": laplace(64, 96).float().sign(),
    "the largest numbers": 3.4e38 * laplace(64, 96).float().clamp(-1, 1),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("w", list(SPECIAL.values()), ids=list(SPECIAL))
def test_special_tensors_beside_an_ordinary_one(w: torch.Tensor, method: str) -> None:
    other = laplace(100, 100).float()
    faint = 0 < float(w.abs().max()) < FAINT
    with pytest.warns(WeightsWarning, match="'w' are at most") if faint else contextlib.nullcontext():
        result = opq.compress({"w": w, "other": other}, bits=4, method=method)
    assert result.bits <= 4
    state = read(result)
    assert all(bool(torch.isfinite(t).all()) for t in state.values())
    tiny = float(w.abs().max()) < 1e-30
    assert tiny or error(state["w"], w) < 0.01
    if float(w.abs().max()) <= 1:
        assert error(state["other"], other) < 0.02


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FLOATS)
def test_the_largest_numbers_of_a_type_stay_finite(name: str, method: str) -> None:
    dtype = getattr(torch, name)
    largest = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max)
    w = (laplace(64, 96) * largest / 2).clamp(-largest, largest).to(dtype)
    result = opq.compress({"w": w}, bits=3, method=method)
    back = read(result)["w"]
    assert back.dtype == dtype
    assert bool(torch.isfinite(back.double()).all())
    assert error(back.double() / largest, w.double() / largest) < 0.05


@pytest.mark.parametrize("bits", [2.0, 4.0, 6.0])
def test_a_budget_is_met_where_one_tensor_dominates(bits: float) -> None:
    """Of the dominating tensor nearly all is coded, so that bits and bytes are far apart."""
    result = opq.compress({"w": laplace(64, 64).float() * 1e30, "pad": laplace(100, 100).float()}, bits=bits)
    assert 0.99 * bits <= result.bits <= bits


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from(FLOATS),
    st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=8),
    st.sampled_from(METHODS),
    st.floats(2.5, 8.0),
)
def test_any_finite_weights_are_compressed(name: str, values: list[float], method: str, bits: float) -> None:
    dtype = getattr(torch, name)
    largest = torch.finfo(dtype).max
    w = torch.tensor(values, dtype=torch.float64).clamp(-largest, largest).repeat(1000)[: 48 * 60]
    w = torch.cat([w, torch.zeros(48 * 60 - len(w), dtype=torch.float64)]).reshape(48, 60).to(dtype)
    state = {"w": w, "other": laplace(60, 60).float()}
    result = opq.compress(state, bits=bits, method=method)
    assert result.bits <= bits
    assert all(bool(torch.isfinite(t.double()).all()) for t in read(result).values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_not_finite_is_named(name: str, bad: float) -> None:
    w = laplace(64, 96).to(getattr(torch, name))
    w[5, 7] = bad
    if not bool(torch.isfinite(w.float()).all()):  # float8_e4m3fn has no infinity
        with pytest.raises(NonFiniteError, match=r"'layers\.3\.weight' is not finite: got 1 of 6144 weights"):
            opq.compress({"fine": laplace(64, 96), "layers.3.weight": w}, bits=4)


def test_a_float64_beyond_float32_is_named() -> None:
    with pytest.raises(NonFiniteError, match="'w' is not finite: got 6144 of 6144 weights NaN or beyond float32"):
        opq.compress({"w": 1e100 + laplace(64, 96)}, bits=4)


def test_what_is_kept_may_be_anything() -> None:
    odd = {
        "empty": torch.empty(0, 64),
        "empty inside": torch.empty(3, 0, 5),
        "scalar": torch.tensor(3.5),
        "not finite": torch.tensor([math.nan, math.inf, -math.inf]),
        "integer": torch.tensor(-(2**40)),
    }
    with pytest.warns(WeightsWarning, match="'not finite' holds NaN or infinity"):
        result = opq.compress({"w": laplace(64, 96), **odd}, bits=6)
    state = read(result)
    for name, tensor in odd.items():
        assert torch.equal(state[name].nan_to_num(), tensor.nan_to_num()), name
        assert (state[name].shape, state[name].dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize("name", FLOATS)
def test_pieces_are_as_the_whole(name: str) -> None:
    dtype, q = getattr(torch, name), torch.from_numpy(np.random.default_rng(0).integers(-99, 99, (3, 70_000), np.int16))
    plan = opq.compress({"w": laplace(64, 96)}, bits=4).plan["w"]
    values = q.double() * plan.step
    largest = torch.finfo(dtype).max
    found = dequantize(q, plan, dtype)
    assert torch.equal(found.double(), values.clamp(-largest, largest).to(dtype).double())
    assert torch.equal(dequantize(q.t(), plan, dtype).double(), found.t().double())


# --- many, and large -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=huge)])
def test_many_tiny_tensors(count: int) -> None:
    """The budget is met in few rounds, though what is no codes is a large part of it."""
    state = {f"blocks.{k}.weight": laplace(8, 8, seed=k).float() for k in range(count)}
    result = opq.compress(state, bits=6)
    assert 0.99 * 6 <= result.bits <= 6
    back = read(result)
    assert list(back) == list(state)
    assert np.mean([error(back[name], state[name]) for name in list(state)[::50]]) < 0.05


HUGE = r"""
import json, re, sys, torch, opq
from opq.file.reader import Reader
w = torch.empty(40_000, 25_000, dtype=torch.bfloat16)
for rows in w.split(1000):
    rows.copy_(torch.empty(rows.shape).exponential_().mul_(torch.randn(rows.shape).sign_()))
held = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
result = opq.compress({"w": w}, bits=2)
bits, packed = result.bits, result.packed
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
del result
power = error = 0.0
with Reader(packed) as reader:
    back = reader.tensor("w")
last = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
for some, own in zip(back.split(1000), w.split(1000)):
    power += float(own.float().square().sum()); error += float((own.float() - some.float()).square().sum())
print(json.dumps({"bits": bits, "error": error / power, "compress": (peak - held) / w.numel(),
                  "read": (last - held) / w.numel()}))
"""


@huge
def test_a_thousand_million_weights_in_memory() -> None:
    """Beside the weights: codes (2 bytes each), what the coder makes of them, and the file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", HUGE], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    print(found)
    assert 1.98 < found["bits"] <= 2
    assert found["error"] < 0.1
    assert found["compress"] < 6
    assert found["read"] < 8


# --- certificates ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_solution_that_misses_its_budget_is_an_error(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = {"rd": (rate_distortion, "meeting_point"), "opq": (paper, "find_root")}[method]
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: real(*a, **k) * 1.01)
    with pytest.raises(CertificateError, match=r"the allocation is not optimal: got residual .*, wanted <= 1e-06"):
        opq.compress({"w": laplace(64, 96), "v": laplace(64, 96)}, bits=3, method=method)


# --- several processes -----------------------------------------------------------------------


class Pair(Team):
    """One of two ranks that are threads."""

    heard: list[bytes]

    def __init__(self, rank: int, heard: list[bytes], met: threading.Barrier) -> None:
        super().__init__(rank, 2)
        self.heard, self.met = heard, met

    def _gather(self, words: bytes) -> list[bytes]:
        self.heard[self.rank] = words
        self.met.wait()
        return list(self.heard)


def test_an_error_of_one_rank_is_every_ranks() -> None:
    heard, met = [b"", b""], threading.Barrier(2)

    def work(rank: int) -> None:
        def fail() -> bytes:
            if rank:
                raise NonFiniteError("tensor 'w' is not finite")
            return b""

        Pair(rank, heard, met).each(fail)

    with ThreadPoolExecutor(2) as executor:
        first, second = (executor.submit(work, rank) for rank in range(2))
    with pytest.raises(RankError, match="process 1 failed: got tensor 'w' is not finite"):
        first.result()
    with pytest.raises(NonFiniteError, match="'w' is not finite"):
        second.result()
