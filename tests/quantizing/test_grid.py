"""Codes are the nearest cells of the plan's grid, and the two directions fit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plans import planned

from opq.errors import OptionError
from opq.plan import LARGEST_CODE, TensorPlan
from opq.quantizing.grid import dequantize, quantize, scaled


def grid(step: float, threshold: float, rounding: float, shape: tuple[int, ...] = (1,)) -> TensorPlan:
    return planned("w", shape, step=step, threshold=threshold, rounding=rounding)


def by_definition(w: float, plan: TensorPlan) -> int:
    """The quantizer of docs/mathematics.md, one weight at a time."""
    if abs(w) < plan.threshold:
        return 0
    return int(math.copysign(max(1, math.floor(abs(w) / plan.step + 1 - plan.rounding)), w))


@settings(deadline=None, max_examples=100)
@given(
    w=st.lists(st.integers(-4096, 4096).map(lambda k: k / 256), min_size=1, max_size=40),
    step=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    theta=st.sampled_from([0.5, 0.625, 0.75]),
    beta=st.none() | st.sampled_from([0.25, 1.5, 3.0]),
)
@example(w=[0.125, -0.125, 0.12109375], step=0.25, theta=0.5, beta=None)  # on the edge of the dead zone, and inside it
@example(w=[1.5, -1.5, 1.49609375], step=1.0, theta=0.5, beta=1.5)
def test_codes_follow_the_definition(w: list[float], step: float, theta: float, beta: float | None) -> None:
    plan = grid(step, theta * step, theta) if beta is None else grid(step, beta, 0.5)
    assert quantize(torch.tensor(w), plan).tolist() == [by_definition(x, plan) for x in w]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_back_and_forth_is_stable(dtype: torch.dtype) -> None:
    w = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).to(dtype).t()
    plan = grid(0.25, 0.15, 0.6, (7, 50))
    q = quantize(w, plan)
    assert (q.dtype, q.shape) == (torch.int16, w.shape)
    back = dequantize(q, plan, dtype)
    assert back.dtype == dtype
    assert torch.equal(quantize(back, plan), q)
    assert float((back - w).abs().max()) <= 0.15 + 1e-2


def test_a_weight_beyond_the_last_code_is_an_error() -> None:
    with pytest.raises(OptionError, match="tensor 'w': step too small"):
        quantize(torch.tensor([1.0]), grid(1 / (LARGEST_CODE + 1), 0.0, 0.5))


def test_only_planned_tensors() -> None:
    kept = TensorPlan(name="w", shape=(1,), dtype="F32", action="keep", reason="")
    with pytest.raises(OptionError, match="not planned on a grid"):
        quantize(torch.ones(1), kept)


def test_empty() -> None:
    assert quantize(torch.empty(0, 3), grid(1, 0.5, 0.5, (0, 3))).shape == (0, 3)


def test_no_weight_is_infinite_whatever_the_sign_of_a_forged_step() -> None:
    """A `fine` tensor's step may be negative in a file: docs/format.md, from codes to weights."""
    codes = torch.tensor([3, -80, 1000, 0], dtype=torch.int16)
    for step in (-3.551531051237822e36, 3.551531051237822e36):
        weights = scaled(codes, step, torch.float32)
        assert weights.isfinite().all()
        assert weights[2] == torch.finfo(torch.float32).max * (1 if step > 0 else -1)
