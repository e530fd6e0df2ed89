"""The allocation by certificate, against scipy and brute force; the paper's method in closed form."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Instance, instance
from scipy.optimize import brentq, minimize

from opq.allocation import laplace, rate_distortion, roots
from opq.allocation.curve import Curve
from opq.allocation.paper import nominal_bits, paper, prune, steps
from opq.allocation.rate_distortion import allocate
from opq.allocation.solution import TOLERANCE, Allocation, stationarity
from opq.allocation.stats import TensorStats
from opq.errors import CertificateError, InfeasibleError, OptionError

seeds = st.integers(0, 12)


def slow_allocate(problem: Instance, bits: float) -> float:
    """The least error that scipy's general solver finds."""
    n = np.array(problem.sizes, dtype=float)
    low, high = ([float(c.rate[k]) for c in problem.curves] for k in (0, -1))
    scale = problem.error(np.full(n.size, bits / n.sum()))

    def gradient(rates: np.ndarray) -> np.ndarray:
        each = zip(problem.curves, n, problem.sensitivities, rates, strict=True)
        return np.array([-a * k * math.exp(c.log_slope(float(r))) for c, k, a, r in each]) / scale

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Values in x were outside bounds", RuntimeWarning)  # by older ones of scipy
        found = minimize(
            lambda rates: problem.error(rates) / scale,
            np.clip(np.full(n.size, bits / n.sum()), low, high),
            jac=gradient,
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda r: (n @ r - bits) / n.sum(), "jac": lambda r: n / n.sum()},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-13},
        )
    assert abs(n @ found.x - bits) < 1e-6 * bits
    return float(found.fun * scale)


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(0.1, 9.0))
def test_certificate(seed: int, mean_bits: float) -> None:
    """Feasible to the last bit, and every tensor pays the same for a bit or stands at an end of its curve."""
    problem = instance(seed)
    budget = mean_bits * problem.total
    found = allocate(*problem.arguments(), budget)
    assert problem.spent(found) == pytest.approx(budget, rel=1e-9)
    assert found.bits == pytest.approx(budget, rel=1e-9)
    assert found.residual < 1e-9
    for curve, a, point in zip(problem.curves, problem.sensitivities, found.points, strict=True):
        price = a * math.exp(curve.log_slope(point.rate))
        if curve.rate[0] + 1e-9 < point.rate < curve.rate[-1] - 1e-9:
            assert price == pytest.approx(found.multiplier, rel=1e-6)
        elif point.rate > curve.rate[0] + 1e-9:
            assert price >= found.multiplier * (1 - 1e-9)
        else:
            assert price <= found.multiplier * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mean_bits", [0.5, 2.0, 4.0])
def test_no_worse_than_scipy(seed: int, mean_bits: float) -> None:
    problem = instance(seed, 4)
    budget = mean_bits * problem.total
    found = problem.error([p.rate for p in allocate(*problem.arguments(), budget).points])
    slow = slow_allocate(problem, budget)
    assert found <= slow * (1 + 1e-7)
    assert found == pytest.approx(slow, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_no_worse_than_brute_force_over_the_vertices(seed: int) -> None:
    """Every choice of one hull vertex a tensor, as an integer program would see it."""
    problem = instance(seed, 3)
    budget = 1.7 * problem.total
    vertices = [range(0, c.rate.size, 3) for c in problem.curves]
    n, a = problem.sizes, problem.sensitivities
    best = math.inf
    for choice in itertools.product(*vertices):
        pairs = [(c.rate[k], c.distortion[k]) for c, k in zip(problem.curves, choice, strict=True)]
        if sum(k * r for k, (r, _) in zip(n, pairs, strict=True)) <= budget:
            best = min(best, sum(x * k * d for x, k, (_, d) in zip(a, n, pairs, strict=True)))
    found = problem.error([p.rate for p in allocate(*problem.arguments(), budget).points])
    assert found <= best * (1 + 1e-3)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.1, 8.0), st.floats(1.0001, 2.0))
def test_more_bits_are_monotone(seed: int, mean_bits: float, factor: float) -> None:
    problem = instance(seed)
    less, more = (allocate(*problem.arguments(), f * mean_bits * problem.total) for f in (1.0, factor))
    assert less.multiplier >= more.multiplier
    for p, q in zip(less.points, more.points, strict=True):
        assert p.rate <= q.rate + 1e-9
        assert p.distortion >= q.distortion - 1e-12
        assert p.density <= q.density + 0.02


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(1e-12, 1e12))
def test_the_unit_of_sensitivity_does_not_matter(seed: int, unit: float) -> None:
    problem = instance(seed)
    one = allocate(*problem.arguments(), 2.0 * problem.total)
    other = allocate(problem.curves, problem.sizes, [unit * a for a in problem.sensitivities], 2.0 * problem.total)
    assert [p.rate for p in one.points] == pytest.approx([p.rate for p in other.points], abs=1e-6)
    assert other.multiplier == pytest.approx(unit * one.multiplier, rel=1e-6)


def test_twins_get_the_same_and_high_resolution_the_law() -> None:
    """Equal tensors get equal steps; at many bits `Delta_i^2` goes as `1 / a_i`."""
    curve = Curve.of(TensorStats.of(torch.randn(20_000, generator=torch.Generator().manual_seed(0))))
    twins = allocate([curve, curve], [20_000, 20_000], [1.0, 1.0], 2.3 * 40_000).points
    assert twins[0] == twins[1]
    coarse, fine = allocate([curve, curve], [20_000, 20_000], [1.0, 16.0], 7 * 40_000).points
    assert coarse.step / fine.step == pytest.approx(4.0, rel=0.02)
    assert fine.rate - coarse.rate == pytest.approx(2.0, abs=0.05)


def test_bounds_are_kept_and_the_rest_is_optimal() -> None:
    problem = instance(3)
    budget = 2.0 * problem.total
    free = allocate(*problem.arguments(), budget)
    rates = [p.rate for p in free.points]
    bounds = [(rates[0] + 0.5, rates[0] + 1), None, (0.0, rates[2] - 0.4), (0.0, math.inf), (1.5, 1.5)]
    bound = allocate(*problem.arguments(), budget, bounds=bounds)
    got = [p.rate for p in bound.points]
    assert got[0] == pytest.approx(bounds[0][0])
    assert got[2] == pytest.approx(bounds[2][1])
    assert got[4] == pytest.approx(1.5)
    assert bound.bits == pytest.approx(budget, rel=1e-9)
    pair = [problem.sensitivities[i] * math.exp(problem.curves[i].log_slope(got[i])) for i in (1, 3)]
    assert pair == pytest.approx([bound.multiplier] * 2, rel=1e-6)


def test_a_budget_beyond_use_is_not_spent() -> None:
    problem = instance(1)
    found = allocate(*problem.arguments(), 1e9)
    assert found.multiplier == 0
    assert found.residual == 0
    assert found.bits == pytest.approx(sum(n * c.rate[-1] for n, c in zip(problem.sizes, problem.curves, strict=True)))


def test_the_smallest_budget_can_be_met_and_less_is_refused() -> None:
    problem = instance(2)
    least = sum(n * float(c.rate[0]) for n, c in zip(problem.sizes, problem.curves, strict=True))
    for rounding in (-1e-14, 0, 1e-14):
        assert allocate(*problem.arguments(), least * (1 + rounding)).bits == pytest.approx(least)
    with pytest.raises(InfeasibleError, match=rf"wanted at least {least:.6g} bits"):
        allocate(*problem.arguments(), 0.5 * least)
    with pytest.raises(InfeasibleError, match="wanted at least"):
        allocate(*problem.arguments(), problem.total, bounds=[(2.0, 3.0)] * 5)
    with pytest.raises(InfeasibleError, match="got nan bits"):
        allocate(*problem.arguments(), math.nan)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_sensitivities_are_refused(bad: float) -> None:
    problem = instance(2)
    with pytest.raises(OptionError, match=f"not positive and finite: got {bad}"):
        allocate(problem.curves, problem.sizes, [1.0, 1.0, bad, 1.0, 1.0], problem.total)


def test_bad_lengths_and_bounds_are_refused() -> None:
    problem = instance(2)
    with pytest.raises(OptionError, match="one size and one sensitivity"):
        allocate(problem.curves, problem.sizes[:3], problem.sensitivities, problem.total)
    for bad in ((3.0, 2.0), (-1.0, 2.0), (math.nan, 2.0)):
        with pytest.raises(OptionError, match="bounds of a rate"):
            allocate(*problem.arguments(), problem.total, bounds=[bad] * 5)


def test_degenerate_tensors_take_part() -> None:
    tensors = [torch.zeros(10, 10), torch.full((64,), 0.3), torch.tensor(2.0), torch.zeros(0), torch.randn(500)]
    curves, sizes = [Curve.of(TensorStats.of(w)) for w in tensors], [w.numel() for w in tensors]
    found = allocate(curves, sizes, [1.0] * 5, 1000.0)
    assert [p.rate for p in found.points[:4]] == [0.0] * 4
    assert found.points[4].rate == pytest.approx(2.0)
    assert allocate([], [], [], 0.0) == Allocation((), 0.0, 0.0, 0.0)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(-0.3, 0.3))
def test_the_certificate_sees_a_wrong_allocation(seed: int, shift: float) -> None:
    """Move bits from one tensor to another: still on budget, no longer stationary."""
    problem = instance(seed)
    found = allocate(*problem.arguments(), 3.0 * problem.total)
    rates = np.array([p.rate for p in found.points])
    ends = np.array([c.rate[0] for c in problem.curves]), np.array([c.rate[-1] for c in problem.curves])
    log_a, x = np.log(problem.sensitivities), math.log(found.multiplier)
    assert stationarity(problem.curves, log_a, ends, rates, x) < 1e-9
    moved = np.clip(rates + np.array([shift, 0, 0, 0, 0]), *ends)
    wrong = stationarity(problem.curves, log_a, ends, moved, x)
    assert wrong > TOLERANCE or abs(moved - rates).max() < 1e-4


def test_an_uncertified_allocation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    meet = roots.meeting_point
    monkeypatch.setattr(rate_distortion, "meeting_point", lambda *arguments: meet(*arguments) + 1e-3)
    problem = instance(0)
    with pytest.raises(CertificateError, match="not optimal: got residual"):
        allocate(*problem.arguments(), 2.0 * problem.total)


# --- the paper's method ----------------------------------------------------------------------------------


taus = st.lists(st.floats(1e-3, 10), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(taus, st.floats(0.01, 0.999), st.integers(0, 100))
def test_pruning_satisfies_its_conditions(tau: list[float], sparsity: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    n, a = random.integers(1, 10_000, len(tau)), np.exp(random.normal(size=len(tau)))
    beta, multiplier = prune(tau, n, a, sparsity)
    assert n @ laplace.density(beta, tau) == pytest.approx((1 - sparsity) * n.sum(), rel=1e-9)
    assert a * beta**2 == pytest.approx(np.full(len(tau), multiplier), rel=1e-9)


def test_pruning_is_the_minimum() -> None:
    """Two tensors, brute force over the density of the first."""
    n, tau, a = np.array([3000.0, 1000.0]), np.array([0.3, 1.1]), np.array([2.0, 0.5])
    beta, _ = prune(tau, n, a, 0.7)
    error = float(a * n @ laplace.pruning_error(laplace.density(beta, tau), tau))
    first = np.linspace(1e-3, 0.399, 4001)
    second = (0.3 * n.sum() - n[0] * first) / n[1]
    slow = a[0] * n[0] * laplace.pruning_error(first, tau[0]) + a[1] * n[1] * laplace.pruning_error(second, tau[1])
    assert error <= slow[(second > 0) & (second < 1)].min() * (1 + 1e-12)
    assert error == pytest.approx(slow[(second > 0) & (second < 1)].min(), rel=1e-5)


def test_with_equal_sensitivities_one_threshold_serves_all() -> None:
    beta, multiplier = prune([0.1, 1.0, 5.0], [10, 20, 30], [1, 1, 1], 0.9)
    assert beta == pytest.approx([math.sqrt(multiplier)] * 3)


def test_pruning_at_its_ends() -> None:
    assert prune([0.5, 0.2], [10, 10], [1, 1], 0.0)[0].tolist() == [0.0, 0.0]
    assert prune([0.5, 0.0], [10, 30], [1, 1], 0.75)[0].tolist() == [0.0, 0.0], "the zeros are sparse already"
    beta, _ = prune([0.5, 0.0], [10, 30], [1, 1], 0.9)
    assert math.exp(-beta[0] / 0.5) == pytest.approx(0.4)
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(OptionError, match="not a fraction"):
            prune([0.5], [10], [1], bad)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 200), st.floats(0.5, 12))
def test_steps_satisfy_their_conditions(seed: int, bits: float) -> None:
    random = np.random.default_rng(seed)
    ranges = [np.exp(random.normal(size=k)) for k in (1, 4, 7)]
    kept = [random.integers(0, 100, k) + 1 for k in (1, 4, 7)]
    a = np.exp(random.normal(size=3))
    step, multiplier = steps(ranges, kept, a, bits)
    assert nominal_bits(ranges, kept, step) == pytest.approx(bits, rel=1e-9)
    assert step**2 == pytest.approx(6 * multiplier / (a * math.log(2)), rel=1e-9)


def test_steps_are_the_minimum_in_high_resolution() -> None:
    """Move the steps of two layers along the constraint: the error grows."""
    ranges, kept, a = [np.array([2.0]), np.array([0.7])], [np.array([500]), np.array([900])], np.array([1.0, 6.0])
    step, _ = steps(ranges, kept, a, 10.0)
    m = np.array([500, 900])
    error = float(a * m @ step**2) / 12
    for change in (0.95, 1.05):
        first = step[0] * change
        left = 10.0 * m.sum() - m[0] * math.log2(ranges[0][0] / first + 1)
        second = ranges[1][0] / (2 ** (left / m[1]) - 1)
        assert float(a * m @ np.array([first, second]) ** 2) / 12 > error


def test_steps_at_their_ends() -> None:
    assert steps([np.zeros(3)], [np.ones(3)], [1.0], 4.0)[0].tolist() == [1.0]
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(OptionError, match="bits per kept weight"):
            steps([np.ones(3)], [np.ones(3)], [1.0], bad)


@settings(deadline=None, max_examples=10)
@given(st.floats(0.05, 6), st.integers(0, 50))
def test_paper_meets_the_budget_by_its_two_laws(mean_bits: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    n, tau, a = random.integers(100, 9000, 4), np.exp(random.normal(size=4)), np.exp(random.normal(size=4))
    found, sparsity = paper(tau, n, a, mean_bits * n.sum())
    assert found.bits == pytest.approx(mean_bits * n.sum(), rel=1e-9)
    assert found.residual < 1e-9
    beta, step = np.array([p.threshold for p in found.points]), np.array([p.step for p in found.points])
    assert a * beta**2 == pytest.approx(np.full(4, a[0] * beta[0] ** 2), rel=1e-9)
    assert a * step**2 == pytest.approx(np.full(4, 6 * found.multiplier / math.log(2)), rel=1e-9)
    assert n @ [p.density for p in found.points] == pytest.approx((1 - sparsity) * n.sum(), rel=1e-9)
    rate, distortion, _ = laplace.quantizer(step, beta, tau)
    assert [p.rate for p in found.points] == pytest.approx(rate.tolist())
    assert [p.distortion for p in found.points] == pytest.approx(distortion.tolist())


@pytest.mark.parametrize("mean_bits", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("sensitivities", [(1.0, 0.3), (1.0, 30.0)])
def test_paper_chooses_the_best_sparsity(sensitivities: tuple[float, float], mean_bits: float) -> None:
    """Brute force over the sparsity, with its own search for the steps that meet the budget."""
    n, tau, a = np.array([4000, 700]), np.array([0.2, 1.5]), np.array(sensitivities)
    found, _ = paper(tau, n, a, mean_bits * n.sum())
    error = float(a * n @ [p.distortion for p in found.points])
    tried = []
    for sparsity in np.linspace(0.02, 0.99, 60):
        beta, _ = prune(tau, n, a, float(sparsity))

        def over(log_step: float, beta: np.ndarray = beta) -> float:
            rate, _, _ = laplace.quantizer(math.exp(log_step) / np.sqrt(a), beta, tau)
            return float(n @ rate - mean_bits * n.sum())

        if over(-12) > 0 > over(6):
            step = math.exp(brentq(over, -12, 6)) / np.sqrt(a)
            tried.append(float(a * n @ laplace.quantizer(step, beta, tau)[1]))
    assert min(tried) >= error * (1 - 1e-6)


def test_paper_refuses_nothing_and_takes_zeros() -> None:
    with pytest.raises(InfeasibleError, match="more than 0 bits"):
        paper([1.0], [10], [1.0], 0.0)
    found, sparsity = paper([0.0, 0.0], [10, 10], [1.0, 1.0], 100.0)
    assert (found.bits, sparsity) == (0.0, 0.0)
    found, _ = paper([0.0, 1.0], [1000, 1000], [1.0, 1.0], 2000.0)
    assert (found.points[0].rate, found.points[0].density) == (0.0, 0.0)
    assert found.points[1].rate == pytest.approx(2.0)
