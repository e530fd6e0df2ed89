"""The closed forms against numerical integration, and the published facts of the Laplacian source."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import DOCS
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar

from opq.allocation import laplace


def slow_quantizer(step: float, beta: float, tau: float, rounding: float) -> tuple[float, float, float]:
    """Rate, distortion and density, code by code, by quadrature."""

    def mass(a: float, b: float) -> float:
        return math.exp(-a / tau) - math.exp(-b / tau)

    def error(a: float, b: float, point: float) -> float:
        return quad(lambda x: (x - point) ** 2 * math.exp(-x / tau) / tau, a, b, epsabs=0, epsrel=1e-11)[0]

    k, low = max(1, math.floor(beta / step + 1 - rounding)), beta
    masses, distortion = [mass(0, beta)], error(0, beta, 0.0) if beta else 0.0
    while low < 45 * tau:
        high = (k + rounding) * step
        masses += [mass(low, high) / 2] * 2
        distortion += error(low, high, k * step)
        k, low = k + 1, high
    p = np.array([m for m in masses if m > 0])
    return float(-(p * np.log2(p)).sum()), distortion, 1 - masses[0]


def rate_distortion(beta: float) -> tuple[float, float]:
    """A point of the rate-distortion function of Laplace(0, 1) by Blahut's iteration on a grid (1972)."""
    x = np.arange(0, 22, 0.04)
    source = np.exp(-x)
    source[0] /= 2  # the grid is folded at 0
    source /= source.sum()
    kernel = np.exp(-beta * (x[:, None] - x) ** 2) + np.where(x > 0, np.exp(-beta * (x[:, None] + x) ** 2), 0.0)
    kernel[:, 1:] /= 2  # a reproduction and its mirror share their probability
    q = source.copy()
    for _ in range(1500):
        q *= (source / (kernel @ q)) @ kernel
    total = kernel @ q
    weighted = np.exp(-beta * (x[:, None] - x) ** 2) * (x[:, None] - x) ** 2
    mirrored = np.exp(-beta * (x[:, None] + x) ** 2) * (x[:, None] + x) ** 2
    both = np.where(x > 0, (weighted + mirrored) / 2, weighted)
    distortion = float((source / total) @ both @ q)
    return float(-source @ np.log2(total)) - beta * distortion / math.log(2), distortion


def centroid_quantizer(theta: float, rate: float) -> tuple[float, float]:
    """Distortion and step of a dead-zone quantizer that reads codes back as the centroids of their cells."""
    step = laplacian_step(theta, rate)
    ratio, kept = math.exp(-step), math.exp(-theta * step)
    mean = 1 - step * ratio / (1 - ratio)
    square = (2 - ratio * (step * step + 2 * step + 2)) / (1 - ratio)
    dead = 2 - kept * ((theta * step) ** 2 + 2 * theta * step + 2)
    return dead + kept * (square - mean * mean), step


def lloyd(slope: float) -> tuple[float, float, np.ndarray]:
    """Rate and distortion of the scalar quantizer of Laplace(0, 1) that minimises `D + slope R`, and its first edges.

    Chou, Lookabaugh and Gray 1989: points are centroids; an edge is where both of its sides cost the same.
    """
    step = math.sqrt(6 * slope / math.log(2))  # at high resolution
    edges = (np.arange(int(30 / step) + 2) + 0.6) * step
    change = math.inf
    while change > 1e-12:
        mass, first, second = (-np.diff(m(edges), append=0.0) for m in MOMENTS)
        points, zero = first / mass, -math.expm1(-edges[0])
        bits = np.concatenate([[-math.log2(zero)], 1 - np.log2(mass)])
        all_points = np.concatenate([[0.0], points])
        new = (all_points[1:] + all_points[:-1]) / 2 + slope * np.diff(bits) / (2 * np.diff(all_points))
        change, edges = float(np.abs(new - edges).max()), new
    rate = zero * bits[0] + float(mass @ bits[1:])
    return rate, 2 - MOMENTS[2](edges[0]) + float((second - points * first).sum()), edges[:5]


MOMENTS: tuple[Callable[[Any], Any], ...] = (
    lambda x: np.exp(-x),
    lambda x: (x + 1) * np.exp(-x),
    lambda x: (x * x + 2 * x + 2) * np.exp(-x),
)
"""Integrals of `y^m e^-y` from x on."""


def laplacian_step(theta: float, rate: float) -> float:
    def excess(log_step: float) -> float:
        step = math.exp(log_step)
        return float(laplace.quantizer(step, theta * step, 1.0, rounding=theta)[0]) - rate

    return math.exp(brentq(excess, -6, 5, xtol=1e-12))


@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 30), st.floats(0, 6), st.floats(0.01, 100), st.floats(0.4, 0.9))
def test_quantizer_is_the_slow_one(step: float, beta: float, tau: float, rounding: float) -> None:
    step, beta = step * tau, beta * tau
    fast = [float(v) for v in laplace.quantizer(step, beta, tau, rounding=rounding)]
    slow = slow_quantizer(step, beta, tau, rounding)
    assert fast == pytest.approx(list(slow), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-6, 1e-9])
def test_fine_steps_have_high_resolution(step: float) -> None:
    rate, distortion, _ = laplace.quantizer(step, step / 2, 1.0)
    assert float(distortion) == pytest.approx(step * step / 12, rel=step)
    assert float(rate) == pytest.approx(math.log2(2 * math.e / step), abs=step)


def test_quantizer_broadcasts() -> None:
    steps, taus = np.array([0.1, 1.0, 3.0]), np.array([[1.0], [0.2]])
    rate, distortion, kept = laplace.quantizer(steps, 0.6 * steps, taus, rounding=0.6)
    assert rate.shape == distortion.shape == kept.shape == (2, 3)
    assert float(distortion[1, 2]) == float(laplace.quantizer(3.0, 1.8, 0.2, rounding=0.6)[1])


@settings(deadline=None, max_examples=40)
@given(st.floats(1e-6, 1), st.floats(1e-3, 1e3))
def test_pruning_error_is_its_integral(s: float, tau: float) -> None:
    beta = float(laplace.threshold(s, tau))
    slow = quad(lambda x: x * x * math.exp(-x / tau) / tau, 0, beta, epsabs=0, epsrel=1e-10)[0] if beta else 0.0
    assert float(laplace.pruning_error(s, tau)) == pytest.approx(slow, rel=1e-6, abs=1e-12 * tau * tau)
    assert float(laplace.density(beta, tau)) == pytest.approx(s, rel=1e-12)


def test_pruning_error_is_convex_with_slope_minus_beta_squared() -> None:
    s = np.linspace(0.001, 0.999, 997)
    error = laplace.pruning_error(s, 0.7)
    assert np.all(np.diff(error, 2) > 0)
    slope = np.gradient(error, s)[5:-5]
    assert slope == pytest.approx(-(laplace.threshold(s, 0.7)[5:-5] ** 2), rel=5e-3, abs=1e-6)
    assert float(laplace.pruning_error(0.0, 3.0)) == pytest.approx(18.0)
    assert float(laplace.pruning_error(1.0, 3.0)) == 0.0


def test_a_tensor_of_zeros_keeps_nothing() -> None:
    assert laplace.density([0.0, 1.0, 0.0], [0.0, 0.0, 2.0]).tolist() == [1.0, 0.0, 1.0]


def test_the_half_dead_zones_in_the_documentation_are_those_of_the_best_quantizer() -> None:
    """And not those of a quantizer that reads codes back as centroids, which are smaller."""
    page = " ".join((DOCS / "mathematics.md").read_text().split())
    found = re.search(r"half of it is ([\d., ]+) steps at 0\.2, 0\.5, 1 and 2 bits and tends to 0\.5", page)
    assert found is not None
    for rate, half in zip((0.2, 0.5, 1.0, 2.0), found[1].split(", "), strict=True):
        assert f"{laplace.best_quantizer(rate)[1]:.3f}" == half
        centroids = minimize_scalar(lambda t, r=rate: centroid_quantizer(t, r)[0], bounds=(0.4, 1), method="bounded")
        assert centroids.x < float(half) - 0.01
    assert laplace.best_quantizer(11.0)[1] == pytest.approx(0.5, abs=1e-3)


def test_the_best_quantizer_has_as_much_more_error_than_any_scalar_one_as_the_documentation_says() -> None:
    """The others by Lloyd's iteration, free in all cells and points; they turn out as Sullivan (1996) says."""
    page = (DOCS / "mathematics.md").read_text()
    most = re.search(r"at most (0\.\d+) % more error at the same rate", page)
    assert most is not None
    excess = []
    for slope in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0):
        rate, distortion, cells = lloyd(slope)
        np.testing.assert_allclose(np.diff(cells), cells[1] - cells[0], rtol=1e-6)
        theta = cells[0] / (cells[1] - cells[0])
        assert centroid_quantizer(theta, rate)[0] == pytest.approx(distortion, rel=1e-9)
        excess.append(laplace.best_quantizer(rate)[2] / distortion - 1)
    assert min(excess) > 0
    assert f"{100 * max(excess):.3f}" == most[1]


@pytest.mark.parametrize("rate", [0.05, 0.5, 1.7, 4.0, 9.0])
def test_best_quantizer_is_on_rate_and_better_than_its_neighbours(rate: float) -> None:
    step, theta, distortion = laplace.best_quantizer(rate)
    assert [float(v) for v in laplace.quantizer(step, theta * step, 1.0, rounding=theta)[:2]] == pytest.approx(
        [rate, distortion], rel=1e-9
    )
    for other in (theta - 0.02, theta + 0.02):
        near = laplacian_step(other, rate)
        assert float(laplace.quantizer(near, other * near, 1.0, rounding=other)[1]) > distortion


@pytest.mark.parametrize(
    ("rate", "gap", "slope"), [(0.2, 0.025, 0.3), (0.5, 0.068, 0.48), (1.0, 0.133, 0.93), (2.0, 0.216, 3.4)]
)
def test_gap_to_the_rate_distortion_function(rate: float, gap: float, slope: float) -> None:
    """Bits that the best entropy-coded scalar quantizer spends beyond Shannon's bound."""
    distortion = laplace.best_quantizer(rate)[2]
    points = sorted(rate_distortion(slope * f)[::-1] for f in (0.8, 1.0, 1.25))
    log_distortion, bound = [math.log(d) for d, _ in points], [r for _, r in points]
    assert log_distortion[0] < math.log(distortion) < log_distortion[2]
    fit = np.polyfit(log_distortion, bound, 2)
    assert rate - np.polyval(fit, math.log(distortion)) == pytest.approx(gap, abs=0.004)


def test_gap_tends_to_a_quarter_bit() -> None:
    """1.53 dB: (1/2) log2(2 pi e / 12) above Shannon's lower bound, which is tight in the limit."""
    _, _, distortion = laplace.best_quantizer(10.0)
    lower_bound = math.log2(2 * math.e) - 0.5 * math.log2(2 * math.pi * math.e * distortion)
    assert 10.0 - lower_bound == pytest.approx(0.2546, abs=1e-3)
