"""Predicted rate, distortion and density against codes really made; the hull and its slopes by certificate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from opq.allocation import laplace
from opq.allocation.curve import THETAS, Curve
from opq.allocation.operating_points import measure, pairs
from opq.allocation.stats import TensorStats
from opq.coding.symbols import BEHIND, SYMBOL
from opq.plan import LARGEST_CODE, TensorPlan
from opq.quantizing.grid import quantize


def sample(kind: str, size: int = 200_000) -> torch.Tensor:
    draw = torch.Generator().manual_seed(size)
    if kind == "gauss":
        return torch.randn(size, generator=draw)
    if kind == "skew":
        return torch.randn(size, generator=draw) * 0.1 + 0.05
    if kind == "tails":
        return torch.randn(size, generator=draw) / torch.rand(size, generator=draw).clamp(min=1e-3)
    return torch.distributions.Exponential(1.0).icdf(torch.rand(size, generator=draw)) * (
        torch.randint(0, 2, (size,), generator=draw) * 2 - 1
    )


def coded(w: torch.Tensor, step: float, theta: float, rounding: float | None = None) -> tuple[float, float, float]:
    """Bits as symbols and bits behind them, mean squared error and density of the codes that `quantize` makes."""
    plan = TensorPlan(
        name="w", shape=tuple(w.shape), dtype="F32", action="compress", reason="", step=step,
        threshold=theta * step, rounding=theta if rounding is None else rounding,
    )  # fmt: skip
    q = quantize(w, plan)
    index = q.numpy().astype(np.int32).reshape(-1) + 2**15
    p = np.unique(SYMBOL[index], return_counts=True)[1] / q.numel()
    error = (q.double() * step - w.double()).square().mean()
    return float(BEHIND[index].mean() - (p * np.log2(p)).sum()), float(error), float((q != 0).double().mean())


@pytest.mark.parametrize("kind", ["laplace", "gauss", "skew", "tails"])
def test_measured_points_are_those_of_the_codes(kind: str) -> None:
    w = sample(kind)
    stats = TensorStats.of(w)
    steps = stats.max_abs / np.array([0.9, 1.7, 4.0, 11.0, 40.0, 300.0, 2000.0])
    for theta in (0.5, 0.7):
        figures = np.array(measure(stats, steps, np.full_like(steps, theta))).T
        for step, (rate, distortion, density) in zip(steps, figures, strict=True):
            r, d, s = coded(w, step, theta)
            assert rate == pytest.approx(r, rel=1e-3, abs=3e-4)
            assert distortion == pytest.approx(d, rel=1e-2)
            assert density == pytest.approx(s, abs=2e-4)


@pytest.mark.parametrize("threshold", [0.2, 0.9, 2.3, 3.0])
def test_measured_points_of_the_papers_quantizer(threshold: float) -> None:
    w = sample("laplace")
    steps = np.array([2.0, 0.9, 0.31, 0.05])
    theta, rounding = threshold / steps, np.full(4, 0.5)
    figures = np.array(measure(TensorStats.of(w), steps, theta, rounding=rounding)).T
    for step, line in zip(steps, figures, strict=True):
        assert line.tolist() == pytest.approx(coded(w, step, threshold / step, 0.5), rel=2e-3)


def test_zeros_cost_nothing() -> None:
    figures = measure(TensorStats.of(torch.zeros(5)), np.ones(3), np.full(3, 0.5))
    assert [v.tolist() for v in figures] == [[0.0] * 3] * 3


def test_rates_on_real_tensors(shared: Path) -> None:
    tensors = load_file(shared / "weights" / "mobilenet_v1_075_imagenet.safetensors")
    tensors |= load_file(shared / "weights" / "resnet20_cifar10.safetensors")
    chosen = [w for w in tensors.values() if w.dim() > 1 and w.numel() > 20_000]
    assert len(chosen) > 10
    errors = []
    for w in chosen[::3]:
        curve = Curve.of(TensorStats.of(w))
        for rate in (0.7, 1.5, 2.5, 3.5, 5.0):
            point = curve.at_rate(rate)
            r, d, _ = coded(w, point.step, point.theta)
            errors.append(point.rate / r - 1)
            assert point.distortion == pytest.approx(d, rel=0.01)
    assert np.abs(errors).max() < 3e-3
    assert abs(np.mean(errors)) < 5e-4, "no bias: the budget depends on it"


@pytest.mark.parametrize("kind", ["laplace", "tails"])
@pytest.mark.parametrize("thetas", [THETAS, (0.5,)])
def test_hull_is_convex_and_below_every_point(kind: str, thetas: tuple[float, ...]) -> None:
    stats = TensorStats.of(sample(kind, 5000))
    curve = Curve.of(stats, thetas=thetas)
    slopes = np.diff(curve.distortion) / np.diff(curve.rate)
    assert np.all(np.diff(curve.rate) > 0)
    assert np.all(slopes < 0)
    assert np.all(slopes[1:] > slopes[:-1] / 1.001)
    assert set(curve.theta.tolist()) <= set(thetas)
    step, theta = pairs(stats.max_abs, thetas)
    rate, distortion, _ = measure(stats, step, theta)
    above = distortion - np.interp(rate, curve.rate, curve.distortion)
    assert np.all(above > -1e-3 * distortion)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 50), st.floats(0.01, 0.99))
def test_slopes_are_the_derivative(seed: int, where: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    curve = Curve.of(TensorStats.of(torch.randn(50 + 100 * seed, generator=draw) ** (1 + seed % 3)))
    rate = float(curve.rate[0] + where * (curve.rate[-1] - curve.rate[0]))
    log_mu = curve.log_slope(rate)
    assert curve.rate_at_slope(log_mu) == pytest.approx(rate, abs=1e-7)
    assert curve.at_slope(math.exp(log_mu)).rate == pytest.approx(rate, abs=1e-7)
    h = 1e-5
    derivative = (curve.distortion_at(rate - h) - curve.distortion_at(rate + h)) / (2 * h)
    assert derivative == pytest.approx(math.exp(log_mu), rel=1e-3)


def test_distortion_of_the_smooth_curve_is_that_of_the_hull() -> None:
    curve = Curve.of(TensorStats.of(sample("laplace")))
    low_rates = curve.rate < 7
    smooth = np.array([curve.distortion_at(r) for r in curve.rate])
    assert smooth[low_rates] == pytest.approx(curve.distortion[low_rates], rel=5e-3)
    assert smooth[-1] == curve.distortion[-1]
    assert np.all(np.diff(smooth) < 0)


@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0, 2.0, 3.0])
def test_laplacian_sample_meets_the_closed_form(rate: float) -> None:
    w = sample("laplace", 2_000_000)
    point = Curve.of(TensorStats.of(w)).at_rate(rate)
    step, theta, distortion = laplace.best_quantizer(rate)
    assert point.distortion == pytest.approx(distortion, rel=5e-3)
    assert point.step == pytest.approx(step, rel=0.05)
    assert point.theta == pytest.approx(theta, abs=0.05)
    r, d, s = coded(w, point.step, point.theta)
    assert (point.rate, point.distortion, point.density) == pytest.approx((r, d, s), rel=3e-3)


def test_at_high_rates_plain_rounding_is_best() -> None:
    """There the density hardly changes within a step, and half a step is the best half dead zone."""
    point = Curve.of(TensorStats.of(sample("laplace", 200_000))).at_rate(7.0)
    assert point.theta == pytest.approx(0.5, abs=1e-6)


def test_at_step_and_at_rate_are_inverse_and_clip() -> None:
    curve = Curve.of(TensorStats.of(sample("gauss")), thetas=(0.5,))
    for rate in (0.3, 1.1, 2.7, 7.0):
        point = curve.at_rate(rate)
        assert curve.at_step(point.step).rate == pytest.approx(rate, abs=1e-9)
        assert point.threshold == 0.5 * point.step
    assert curve.at_rate(-1.0) == curve.at_rate(float(curve.rate[0])) == curve.at_step(1e9)
    assert curve.at_rate(99.0) == curve.at_rate(float(curve.rate[-1])) == curve.at_slope(1e-300)


@settings(deadline=None, max_examples=30)
@given(st.integers(-60, 60), st.integers(1, 400))
def test_scale_changes_nothing_but_the_scale(octaves: int, size: int) -> None:
    w = torch.randn(size, generator=torch.Generator().manual_seed(size))
    one, other = Curve.of(TensorStats.of(w)), Curve.of(TensorStats.of(w * 2.0**octaves))
    assert other.rate == pytest.approx(one.rate, abs=1e-12)
    assert other.distortion == pytest.approx(one.distortion * 4.0**octaves, rel=1e-9)
    assert other.log_step == pytest.approx(one.log_step + octaves * math.log(2), abs=1e-12)
    assert np.array_equal(other.theta, one.theta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rates_of_half_precision_sources(dtype: torch.dtype) -> None:
    w = (sample("gauss") * 0.05).to(dtype).to(torch.float32)
    curve = Curve.of(TensorStats.of(w))
    for rate in (1.5, 3.0, 5.0, 8.0):
        point = curve.at_rate(rate)
        r, d, _ = coded(w, point.step, point.theta)
        assert point.rate == pytest.approx(r, rel=3e-3)
        assert point.distortion == pytest.approx(d, rel=0.01)


def test_vertices_of_coarse_types_are_exact() -> None:
    """float8 has 8 values an octave: no interpolation within a bin is right there."""
    w = (sample("gauss") * 0.05).to(torch.float8_e4m3fn).to(torch.float32)
    curve = Curve.of(TensorStats.of(w))
    for k in range(0, curve.rate.size, 5):
        r, d, s = coded(w, math.exp(curve.log_step[k]), curve.theta[k])
        assert (curve.rate[k], curve.density[k]) == (pytest.approx(r, rel=2e-3), pytest.approx(s, abs=1e-3))
        assert curve.distortion[k] == pytest.approx(d, rel=0.1, abs=1e-9)


DEGENERATE = {
    "empty": torch.zeros(0, 3),
    "zero": torch.zeros(4, 4),
    "one": torch.tensor(-3.5),
    "constant": torch.full((50,), 0.2),
    "signs": torch.tensor([0.2, -0.2] * 50),
    "ternary": torch.tensor([0.0, 1.0, -1.0] * 40),
    "outlier": torch.tensor([0.0] * 999 + [1e30]),
    "huge": torch.linspace(-1, 1, 101) * 3e38,
    "denormal": torch.tensor([1e-44, -1e-42, 3e-40]),
    "tiny": torch.linspace(-2e-37, 3e-37, 50),
    "few": torch.tensor([0.1, -0.7, 0.3]),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_tensors_have_a_curve(name: str) -> None:
    w = DEGENERATE[name]
    stats = TensorStats.of(w)
    curve = Curve.of(stats)
    for point in (
        curve.at_rate(0.0),
        curve.at_rate(1.5),
        curve.at_rate(99.0),
        curve.at_slope(1e-3),
        curve.at_step(1.0),
    ):
        assert point.step > 0
        assert math.isfinite(point.step)
        assert 0 <= point.rate <= 18
        assert 0 <= point.distortion <= stats.mean_square * (1 + 1e-9)
        assert 0 <= point.density <= 1
        if w.numel():
            r, d, _ = coded(w, point.step, point.theta)
            assert point.rate == pytest.approx(r, abs=0.1)
            assert d <= (1.2 if name == "denormal" else 1.01) * stats.mean_square
    if name not in ("empty", "zero", "denormal"):
        assert curve.at_rate(0.0).density > 0, "never so large a step that every weight dies"
        assert stats.max_abs / curve.at_rate(99.0).step <= LARGEST_CODE * (1 + 1e-6)


def test_exact_points_are_found() -> None:
    """Binary and ternary weights are free of error on the grid of their own magnitude."""
    signs = Curve.of(TensorStats.of(DEGENERATE["signs"]))
    assert signs.at_rate(9.0).rate == pytest.approx(1.0)
    assert signs.at_rate(9.0).distortion < 1e-15
    ternary = Curve.of(TensorStats.of(DEGENERATE["ternary"]))
    assert ternary.at_rate(9.0).rate == pytest.approx(math.log2(3))
    assert ternary.at_rate(9.0).step == pytest.approx(1.0)
