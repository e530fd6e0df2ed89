"""The histogram against a slow one made with struct, its merging, and every kind of input."""

from __future__ import annotations

import collections
import functools
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opq.allocation.stats import HALF, SHIFT, TensorStats
from opq.errors import NonFiniteError

floats = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40)


def slow_histogram(values: list[float]) -> dict[int, int]:
    """The same histogram, one weight at a time."""
    return collections.Counter(struct.unpack("<I", struct.pack("<f", v))[0] >> SHIFT for v in values)


@settings(deadline=None, max_examples=60)
@given(floats)
def test_histogram_is_the_slow_one(values: list[float]) -> None:
    stats = TensorStats.of(torch.tensor(values))
    assert dict(zip(stats.bins.tolist(), stats.counts.tolist(), strict=True)) == slow_histogram(values)
    assert stats.size == len(values)
    assert stats.max_abs == max(map(abs, values), default=0.0)
    assert stats.min_abs == min(map(abs, values), default=0.0)
    assert np.all(np.diff(stats.bins) > 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(floats, min_size=1, max_size=5))
def test_merging_is_counting_together(parts: list[list[float]]) -> None:
    whole = TensorStats.of(torch.tensor([v for part in parts for v in part]))
    counted = [TensorStats.of(torch.tensor(part)) for part in parts]
    assert functools.reduce(lambda a, b: a + b, counted) == whole
    assert functools.reduce(lambda a, b: b + a, counted) == whole
    assert functools.reduce(lambda a, b: a + b, counted, TensorStats.empty()) == whole


def test_statistics_of_different_tensors_differ() -> None:
    assert TensorStats.of(torch.ones(3)) != TensorStats.of(torch.ones(4))
    assert TensorStats.of(torch.ones(3)) != TensorStats.of(torch.tensor([1.0, 1.0, 1.001]))
    assert TensorStats.of(torch.ones(3)) != TensorStats.of(-torch.ones(3))
    assert TensorStats.of(torch.ones(3)) != 3


def test_threads_and_chunks_do_not_change_it() -> None:
    w = torch.randn(9_000_001, generator=torch.Generator().manual_seed(0))
    one = TensorStats.of(w, threads=1)
    assert one == TensorStats.of(w, threads=3)
    assert one == TensorStats.of(w[:100]) + TensorStats.of(w[100:])


def test_layout_does_not_change_it() -> None:
    w = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = TensorStats.of(w)
    assert TensorStats.of(w.permute(2, 0, 1)) == expected
    assert TensorStats.of(w.to(memory_format=torch.contiguous_format).transpose(0, 2)) == expected
    assert TensorStats.of(torch.stack([w, w])[:, ::2]) == TensorStats.of(w[::2]) + TensorStats.of(w[::2])
    assert TensorStats.of(w[:1].expand(3, 5, 4)) == TensorStats.of(w[:1].repeat(3, 1, 1))
    assert TensorStats.of(torch.nn.Parameter(w)) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_dtype_is_seen_as_float32(dtype: torch.dtype) -> None:
    w = torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert TensorStats.of(w) == TensorStats.of(w.to(torch.float32))


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(), (1,), (300,), (40, 50)])
def test_moments(scale: float, shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * scale
    stats, exact = TensorStats.of(w), w.to(torch.float64)
    loose = 3e-3 / max(w.numel(), 1) ** 0.5
    assert stats.mean_abs == pytest.approx(exact.abs().mean().item(), rel=loose)
    assert stats.mean_square == pytest.approx(exact.square().mean().item(), rel=2 * loose)


def test_constants_and_nothing() -> None:
    stats = TensorStats.of(torch.full((7,), -0.3))
    assert stats.mean_abs == stats.max_abs == stats.min_abs == pytest.approx(0.3)
    assert stats.mean_square == pytest.approx(stats.max_abs**2, rel=1e-15)
    nothing = TensorStats.of(torch.zeros(3, 0))
    assert nothing == TensorStats.empty()
    assert (nothing.mean_abs, nothing.mean_square) == (0.0, 0.0)
    zeros = TensorStats.of(torch.tensor([0.0, -0.0]))
    assert (zeros.max_abs, zeros.mean_abs) == (0.0, 0.0)
    assert zeros.bins.tolist() == [0, HALF]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -float("nan")])
@pytest.mark.parametrize("size", [3, 5_000_000])
def test_non_finite_weights_are_named(bad: float, size: int) -> None:
    w = torch.zeros(size)
    w[size - 1] = w[0] = bad
    with pytest.raises(NonFiniteError, match=rf"'fc.weight' is not finite: got 2 of {size} weights"):
        TensorStats.of(w, name="fc.weight")
    with pytest.raises(NonFiniteError, match="the tensor is not finite"):
        TensorStats.of(w)


def test_float64_beyond_float32_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="beyond float32"):
        TensorStats.of(torch.tensor([1e300, 1.0], dtype=torch.float64))
