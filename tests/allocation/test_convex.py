"""cvxpy against the closed form without constraints; feasibility and optimality by brute force with them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from problems import Instance, instance

from opq import constraints
from opq.allocation import convex, laplace, program
from opq.allocation.curve import Curve
from opq.allocation.paper import prune, steps
from opq.allocation.rate_distortion import allocate
from opq.allocation.solution import Allocation
from opq.allocation.stats import TensorStats
from opq.constraints import Constraint, group_steps
from opq.errors import CertificateError, InfeasibleError, OptionError, PatternError

NAMES = ["conv.weight", "body.0.weight", "body.1.weight", "body.2.weight", "fc.weight"]


def solved(problem: Instance, mean_bits: float, *asked: Constraint, **options: Any) -> Allocation:
    found = convex.solve_rd(
        *problem.arguments(),
        mean_bits * problem.total,
        names=NAMES[: len(problem.sizes)],
        constraints=asked,
        **options,
    )
    assert problem.spent(found) <= mean_bits * problem.total * (1 + 1e-9)
    assert found.residual <= program.GAP
    return found


def rates(found: Allocation) -> list[float]:
    return [p.rate for p in found.points]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean_bits", [0.6, 2.5, 6.0])
def test_agrees_with_the_closed_form(seed: int, mean_bits: float) -> None:
    problem = instance(seed)
    closed = allocate(*problem.arguments(), mean_bits * problem.total)
    found = solved(problem, mean_bits)
    assert problem.error(rates(found)) == pytest.approx(problem.error(rates(closed)), rel=2e-6)
    assert rates(found) == pytest.approx(rates(closed), abs=0.02)
    assert found.multiplier == pytest.approx(closed.multiplier, rel=1e-3)
    assert problem.spent(found) == pytest.approx(mean_bits * problem.total, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_agree_with_the_closed_form(seed: int) -> None:
    problem = instance(seed)
    bounds = [(2.5, 9.0), None, (0.0, 1.0), (0.0, math.inf), (1.5, 1.5)]
    closed = allocate(*problem.arguments(), 2.0 * problem.total, bounds=bounds)
    for found in (
        solved(problem, 2.0, bounds=bounds),
        solved(
            problem,
            2.0,
            constraints.bits("conv.*", min=2.5, max=9),
            constraints.bits("body.1.*", max=1),
            constraints.bits("fc.*", min=1.5, max=1.5),
        ),
    ):
        assert rates(found) == pytest.approx(rates(closed), abs=0.02)
        assert problem.error(rates(found)) == pytest.approx(problem.error(rates(closed)), rel=1e-4)


def test_a_sum_of_bits() -> None:
    """A cap on a group is a second budget: the closed form on each side of it must agree."""
    problem = instance(10)
    free = problem.sizes[1:4] @ np.array(rates(solved(problem, 2.0))[1:4])
    cap = 0.8 * float(free)
    found = solved(problem, 2.0, constraints.total_bits("body.*", max=cap))
    inside = Instance(problem.curves[1:4], problem.sizes[1:4], problem.sensitivities[1:4])
    outside = Instance(problem.curves[::4], problem.sizes[::4], problem.sensitivities[::4])
    closed_inside = allocate(*inside.arguments(), cap)
    closed_outside = allocate(*outside.arguments(), 2.0 * problem.total - cap)
    assert rates(found)[1:4] == pytest.approx(rates(closed_inside), abs=0.02)
    assert rates(found)[::4] == pytest.approx(rates(closed_outside), abs=0.02)
    assert found.multiplier == pytest.approx(closed_outside.multiplier, rel=0.05)
    low = solved(problem, 2.0, constraints.total_bits("fc.*", min=3.1 * problem.sizes[4]))
    assert rates(low)[4] >= 3.1 - 1e-5


def test_equal_bits_by_brute_force() -> None:
    problem = instance(5, 2)
    found = solved(problem, 2.0, constraints.equal_bits("*"))
    assert rates(found) == pytest.approx([2.0, 2.0], abs=1e-5)
    three = instance(5, 3)
    tied = solved(three, 1.5, constraints.equal_bits("body.*"))
    assert rates(tied)[1] == pytest.approx(rates(tied)[2], abs=1e-5)
    n = np.array(three.sizes)
    least = max(float(c.rate[0]) for c in three.curves)
    shared = np.linspace(least, (1.5 * n.sum() - least * n[0]) / n[1:].sum(), 3000)
    first = (1.5 * n.sum() - shared * n[1:].sum()) / n[0]
    slow = min(three.error([a, b, b]) for a, b in zip(first, shared, strict=True))
    assert three.error(rates(tied)) == pytest.approx(slow, rel=1e-4)


def test_sparsity_of_one_and_nonzeros_of_all() -> None:
    problem = instance(6)
    free = solved(problem, 2.0)
    dense = [p.density for p in free.points]
    most = int(np.argmax(dense))
    sparse = solved(problem, 2.0, constraints.sparsity(NAMES[most], min=1 - 0.5 * dense[most]))
    assert 0.495 * dense[most] <= sparse.points[most].density <= 0.5 * dense[most] * (1 + 1e-6)
    assert problem.error(rates(sparse)) > problem.error(rates(free))
    more = (1 + dense[most]) / 2
    less = solved(problem, 2.0, constraints.sparsity(NAMES[most], max=1 - more))
    assert less.points[most].density == pytest.approx(more, rel=1e-3)
    allowed = 0.7 * sum(n * s for n, s in zip(problem.sizes, dense, strict=True))
    few = solved(problem, 2.0, constraints.nonzeros("*", max=allowed))
    assert sum(n * p.density for n, p in zip(problem.sizes, few.points, strict=True)) <= allowed * (1 + 1e-3)


def test_multiply_accumulates_by_brute_force() -> None:
    problem = instance(7, 2)
    work = {"conv.weight": 30.0 * problem.sizes[0], "body.0.weight": 1.0 * problem.sizes[1]}
    free = solved(problem, 2.5)
    before = sum(m * p.density for m, p in zip(work.values(), free.points, strict=True))
    found = solved(problem, 2.5, constraints.macs(0.6 * before, per_tensor=work))
    after = sum(m * p.density for m, p in zip(work.values(), found.points, strict=True))
    assert after == pytest.approx(0.6 * before, rel=1e-3)
    best = math.inf
    for a in np.linspace(0.02, 6, 120):
        left = (2.5 * problem.total - a * problem.sizes[0]) / problem.sizes[1]
        for b in np.linspace(0.02, max(left, 0.02), 120):
            points = [c.at_rate(float(r)) for c, r in zip(problem.curves, (a, b), strict=True)]
            if b <= left and sum(m * p.density for m, p in zip(work.values(), points, strict=True)) <= 0.6 * before:
                best = min(best, problem.error([a, b]))
    assert problem.error(rates(found)) <= best * (1 + 1e-3)


def test_equal_steps_by_brute_force() -> None:
    problem = instance(8, 3)
    found = solved(problem, 2.0, constraints.equal_steps("body.*"))
    assert found.points[1].step == found.points[2].step
    best = math.inf
    for step in np.exp(np.linspace(-4, 2, 1500)):
        own = [c.at_step(float(step)) for c in problem.curves[1:]]
        inside = all(float(c.log_step.min()) <= math.log(step) <= float(c.log_step.max()) for c in problem.curves[1:])
        left = 2.0 * problem.total - sum(n * p.rate for n, p in zip(problem.sizes[1:], own, strict=True))
        if inside and left > problem.sizes[0] * problem.curves[0].rate[0]:
            best = min(best, problem.error([left / problem.sizes[0], *(p.rate for p in own)]))
    assert problem.error(rates(found)) == pytest.approx(best, rel=1e-3)


def test_overlapping_groups_of_steps_join() -> None:
    asked = [constraints.equal_steps(p) for p in ("body.[01]*", "body.[12]*")]
    assert group_steps(asked, NAMES) == [(0,), (1, 2, 3), (4,)]
    assert group_steps([], NAMES) == [(0,), (1,), (2,), (3,), (4,)]


def test_constant_tensors_take_no_bits_whatever_is_asked() -> None:
    curves = [Curve.of(TensorStats.of(w)) for w in (torch.zeros(100), torch.randn(400), torch.full((9,), 2.0))]
    found = convex.solve_rd(
        curves, [100, 400, 9], [1.0] * 3, 1200.0, names=["a", "b", "c"], constraints=[constraints.bits("*", min=2)]
    )
    assert rates(found) == pytest.approx([0.0, 3.0, 0.0], abs=1e-4)
    shared = convex.solve_rd(
        curves, [100, 400, 9], [1.0] * 3, 1200.0, names=["a", "b", "c"], constraints=[constraints.equal_steps("*")]
    )
    assert len({p.step for p in shared.points}) == 1
    assert rates(shared)[1] == pytest.approx(3.0, abs=1e-3)


def test_what_cannot_be_met_says_what_can() -> None:
    problem = instance(9)
    needed = 4.0 * problem.sizes[0] + 3.0 * problem.sizes[4]
    least = needed + sum(problem.sizes[i] * float(problem.curves[i].rate[0]) for i in (1, 2, 3))
    with pytest.raises(
        InfeasibleError, match="the budget in bits of codes cannot be met under the constraints"
    ) as caught:
        solved(problem, 0.9 * least / problem.total, constraints.bits("conv*", min=4), constraints.bits("fc*", min=3))
    assert caught.value.wanted is not None
    assert float(caught.value.wanted.split()[-1]) == pytest.approx(least, rel=1e-4)


def test_contradictions_are_named() -> None:
    with pytest.raises(InfeasibleError, match="contradict each other") as caught:
        solved(instance(9), 3.0, constraints.bits("fc*", min=4), constraints.total_bits("*", max=10.0))
    assert caught.value.got is not None
    assert "bits('fc*', min=4, max=inf)" in caught.value.got
    assert "total_bits('*', min=0, max=10)" in caught.value.got


@pytest.mark.parametrize("make", [constraints.bits, constraints.total_bits, constraints.nonzeros])
def test_patterns_must_match(make: Any) -> None:
    with pytest.raises(PatternError, match=r"'bodi\.\*'.*matches no compressed tensor.*conv\.weight"):
        solved(instance(0), 2.0, make("bodi.*", max=3))
    with pytest.raises(PatternError, match="equal_steps"):
        solved(instance(0), 2.0, constraints.equal_steps("x"))
    with pytest.raises(PatternError, match="no compressed tensor of this name: got nope"):
        solved(instance(0), 2.0, constraints.macs(5.0, per_tensor={"nope": 3.0}))


def test_a_constraint_is_shown_as_its_call() -> None:
    assert repr(constraints.bits("fc*", min=2)) == "bits('fc*', min=2, max=inf)"
    assert repr(constraints.sparsity("fc*", max=0.5)) == "sparsity('fc*', min=0, max=0.5)"
    assert repr(constraints.total_bits("fc*", max=7)) == "total_bits('fc*', min=0, max=7)"
    assert repr(constraints.nonzeros("fc*", min=2, max=7)) == "nonzeros('fc*', min=2, max=7)"
    assert repr(constraints.macs(5e6, per_tensor={"a": 1.0})) == "macs(5e+06, per_tensor=<1 tensors>)"
    assert repr(constraints.equal_steps("*")) == "equal_steps('*')"


def test_meaningless_constraints_are_refused() -> None:
    for make, options in [
        (constraints.bits, {"min": 3, "max": 2}),
        (constraints.bits, {"min": -1}),
        (constraints.sparsity, {"min": 0.5, "max": 1.5}),
        (constraints.total_bits, {"min": 3, "max": 2}),
        (constraints.nonzeros, {"max": math.nan}),
    ]:
        with pytest.raises(OptionError, match=r"has no meaning.*0 <= min <= max"):
            make("*", **options)
    with pytest.raises(OptionError, match="macs"):
        constraints.macs(-1.0, per_tensor={})


def test_an_uncertified_allocation_is_an_error() -> None:
    with pytest.raises(CertificateError, match="not optimal: got gap"):
        convex.solve_rd(*instance(0).arguments(), 2.0 * instance(0).total, largest_gap=-1.0)


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.97])
def test_pruning_agrees_with_the_closed_form(sparsity: float) -> None:
    random = np.random.default_rng(1)
    n, tau, a = random.integers(100, 9000, 5), np.exp(random.normal(size=5)), np.exp(random.normal(size=5))
    closed, multiplier = prune(tau, n, a, sparsity)
    found, price = convex.solve_opq(tau, n, a, sparsity)
    errors = [float(a * n @ laplace.pruning_error(laplace.density(b, tau), tau)) for b in (closed, found)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)
    assert laplace.density(found, tau) == pytest.approx(laplace.density(closed, tau), abs=1e-4)
    assert price == pytest.approx(multiplier, rel=0.01)


def test_pruning_takes_constraints() -> None:
    tau, n, a = [0.2, 1.0, 0.5], [1000, 2000, 500], [1.0, 1.0, 1.0]
    found, _ = convex.solve_opq(tau, n, a, 0.8, names=["a", "b", "c"], constraints=[constraints.sparsity("b", min=0.9)])
    rest, _ = prune([0.2, 0.5], [1000, 500], [1.0, 1.0], 1 - (0.2 * 3500 - 0.1 * 2000) / 1500)
    assert math.exp(-found[1]) == pytest.approx(0.1, rel=1e-3)
    assert found[::2] == pytest.approx(rest, rel=0.01)


def test_steps_as_written_against_the_high_resolution_law() -> None:
    """The law is the optimum in the limit, and never better than the optimum."""
    random = np.random.default_rng(2)
    ranges, kept = [np.exp(random.normal(size=k)) for k in (3, 8)], [random.integers(1, 90, k) for k in (3, 8)]
    a = np.array([1.0, 5.0])
    m = np.array([k.sum() for k in kept])
    for bits, close in ((3.0, 0.2), (12.0, 1e-3)):
        law, _ = steps(ranges, kept, a, bits)
        exact = convex.solve_steps(ranges, kept, a, bits)
        assert exact == pytest.approx(law, rel=close)
        assert float(a * m @ exact**2) <= float(a * m @ law**2) * (1 + 1e-6)


def test_scales_that_lie_far_apart() -> None:
    """One tensor's error is 1e40 times the other's: the small one still gets its share."""
    w = torch.randn(400, generator=torch.Generator().manual_seed(0))
    curves = [Curve.of(TensorStats.of(w * scale)) for scale in (1e12, 1e-8)]
    closed = allocate(curves, [400, 400], [1.0, 1.0], 3200.0, bounds=[(0.0, 5.0), None])
    found = convex.solve_rd(curves, [400, 400], [1.0, 1.0], 3200.0, bounds=[(0.0, 5.0), None])
    assert rates(found) == pytest.approx(rates(closed), abs=0.01)
    assert found.residual <= program.GAP
