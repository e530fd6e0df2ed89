"""The problems of `rate_distortion` and `paper` solved through cvxpy, with the user's constraints.

Letters: `i` a tensor, `n_i` its size, `a_i` its sensitivity, `R_i` bits per weight, `s_i` density, `D_i` mean squared
error, `B` the budget in bits, `lambda` its multiplier.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from opq.allocation.curve import Curve, Point
from opq.allocation.laplace import pruning_error
from opq.allocation.paper import steps
from opq.allocation.program import GAP, Choice, Priced, solve_program
from opq.allocation.solution import Allocation, Bounds, rate_bounds
from opq.base.arrays import Floats
from opq.constraints import Constraint, Row, group_steps

_SPACING = 0.05
"""Distance between the first points of a curve, in bits per weight or in the log of the step. A choice: the points are
refined by `solve_program`, so that it trades only the size of the first program for the number of later ones."""


def solve_rd(
    curves: Sequence[Curve],
    sizes: Sequence[int],
    sensitivities: Sequence[float],
    bits_total: float,
    *,
    bounds: Bounds | None = None,
    names: Sequence[str] | None = None,
    constraints: Sequence[Constraint] = (),
    largest_gap: float = GAP,
) -> Allocation:
    """The rate-distortion optimum under constraints.

        min  sum_i a_i n_i D_i(R_i)   subject to   sum_i n_i R_i <= B,   l_i <= R_i <= u_i,   the user's constraints

    Densities follow the rates along each tensor's curve, `s_i(R_i)`. Tensors that share a step are one choice.
    Without constraints the result is that of `rate_distortion.allocate`, which is faster.

    Args:
        curves: the curve of each tensor.
        sizes: `n_i`.
        sensitivities: `a_i > 0`.
        bits_total: `B`.
        bounds: `(l_i, u_i)` in bits per weight or None, for each tensor.
        names: of the tensors, against which the constraints' patterns are matched; by default "0", "1", ...
        constraints: made by the functions of `opq.constraints`.
        largest_gap: the largest relative duality gap that is accepted.

    Raises:
        InfeasibleError: there is no solution; the text gives the smallest feasible budget, or says that the constraints
            contradict each other.
        PatternError: a pattern matches no tensor.
        CertificateError: the relative duality gap is larger than `largest_gap`.
    """
    n, a = np.asarray(sizes, dtype=float), np.asarray(sensitivities, dtype=float)
    labels = list(names) if names is not None else [str(i) for i in range(len(curves))]
    choices = [_choice(group, curves, n * a) for group in group_steps(constraints, labels)]
    rows = _bound_rows(curves, bounds, labels)
    for constraint in constraints:
        rows += [_within(row, curves, constraint) for row in constraint.rows(labels, sizes)]
    budget = Row("the budget in bits of codes", n, 0 * n, -math.inf, float(bits_total))
    solved = solve_program(choices, rows, budget=budget, largest_gap=largest_gap)
    points: dict[int, Point] = {}
    for choice, t in zip(choices, solved.t, strict=True):
        points |= {i: _point(curves[i], t, len(choice.members) > 1) for i in choice.members}
    ordered = tuple(points[i] for i in range(len(curves)))
    bits = float(n @ [p.rate for p in ordered])
    return Allocation(ordered, solved.multiplier, solved.gap, bits)


def solve_opq(
    taus: Sequence[float],
    sizes: Sequence[int],
    sensitivities: Sequence[float],
    sparsity: float,
    *,
    names: Sequence[str] | None = None,
    constraints: Sequence[Constraint] = (),
) -> tuple[Floats, float]:
    """The paper's pruning problem under constraints on densities.

        min  sum_i a_i n_i E_i(s_i)   subject to   sum_i n_i s_i <= (1 - rho) N,   the user's constraints

    Letters as in `paper.prune`: `tau_i = mean|w|`, `s_i` density, `E_i` error of pruning, `rho` sparsity.

    Returns:
        thresholds `beta_i = -tau_i ln s_i`, (tensors,), and the multiplier.
    """
    n, a, tau = (np.asarray(v, dtype=float) for v in (sizes, sensitivities, taus))
    labels = list(names) if names is not None else [str(i) for i in range(tau.size)]
    grid = np.exp(np.linspace(math.log(1e-9), 0, 200))  # first points, refined by solve_program
    choices = [Choice((i,), grid, _pruned(n[i] * a[i], tau[i])) for i in range(tau.size)]
    rows = [row for constraint in constraints for row in constraint.rows(labels, sizes)]
    kept = (1 - sparsity) * float(n.sum())
    solved = solve_program(choices, rows, budget=Row("the number of kept weights", 0 * n, n, -math.inf, kept))
    return -tau * np.log(solved.t), solved.multiplier


def solve_steps(
    ranges: Sequence[Floats], kept: Sequence[Floats], sensitivities: Sequence[float], bits: float
) -> Floats:
    """The paper's second problem as written, without its high-resolution approximation.

        min  sum_i a_i m_i exp(2 y_i) / 12   subject to   sum_ij m_ij log2(1 + range_ij exp(-y_i)) <= bits sum_ij m_ij

    It is convex in `y_i = ln Delta_i`, with exponential cones.

    Args:
        ranges: of each tensor `range_ij`, (channels,), as in `paper.steps`.
        kept: of each tensor `m_ij`, (channels,).
        sensitivities: `a_i > 0`.
        bits: mean bits per kept weight.

    Returns:
        `Delta_i`, (tensors,).
    """
    import cvxpy as cp

    m = np.array([float(np.sum(k)) for k in kept])
    law, _ = steps(ranges, kept, sensitivities, bits)
    z = cp.Variable(len(ranges))  # y - ln(law): near 0, so that the program is well scaled
    cost = m * np.asarray(sensitivities, dtype=float) * law**2
    spent = sum(
        (np.asarray(k) / math.log(2)) @ cp.logistic(np.log(np.asarray(r) / law[i]) - z[i])
        for i, (r, k) in enumerate(zip(ranges, kept, strict=True))
    )
    problem = cp.Problem(cp.Minimize((cost / cost.sum()) @ cp.exp(2 * z)), [spent / m.sum() <= bits])
    problem.solve(solver=cp.CLARABEL)
    return np.asarray(law * np.exp(z.value), dtype=float)


def _choice(group: tuple[int, ...], curves: Sequence[Curve], an: Floats) -> Choice:
    """The choices of one tensor, by its rate, or of a group of tensors, by the log of the step that they share."""
    own, weights = [curves[i] for i in group], an[list(group)]
    if len(group) == 1:
        low, high = float(own[0].rate[0]), float(own[0].rate[-1])
    else:
        moving = [c for c in own if c.rate.size > 1] or own
        low, high = max(float(c.log_step.min()) for c in moving), min(float(c.log_step.max()) for c in moving)
        low = min(low, high)

    def at(t: Floats) -> Priced:
        rate = np.array([t if len(own) == 1 else c.rate_at_step(t) for c in own])
        sampled = [c.sample(r) for c, r in zip(own, rate, strict=True)]
        return rate, np.array([v[3] for v in sampled]), weights @ np.array([v[2] for v in sampled])

    return Choice(group, np.linspace(low, high, max(math.ceil((high - low) / _SPACING), 1) + 1), at)


def _point(curve: Curve, t: float, shared: bool) -> Point:
    if not shared:
        return curve.at_rate(t)
    return dataclasses.replace(curve.at_step(math.exp(t)), step=math.exp(t))


def _pruned(an: float, tau: float) -> Callable[[Floats], Priced]:
    def at(t: Floats) -> Priced:
        return np.zeros((1, t.size)), t[None, :], an * pruning_error(t, tau)

    return at


def _bound_rows(curves: Sequence[Curve], bounds: Bounds | None, names: Sequence[str]) -> list[Row]:
    low, high = rate_bounds(curves, bounds)
    unit = np.eye(len(curves))
    return [
        Row(f"the bounds of {names[i]}", unit[i], 0 * unit[i], float(low[i]), float(high[i]))
        for i, c in enumerate(curves)
        if low[i] > c.rate[0] or high[i] < c.rate[-1]
    ]


def _within(row: Row, curves: Sequence[Curve], constraint: Constraint) -> Row:
    """A row on one tensor's bits per weight, clipped to the ends of its curve: a constant tensor can use no bits."""
    if constraint.on != "rate" or constraint.scope != "each":
        return row
    curve = curves[int(np.argmax(row.rate))]
    low, high = np.clip((row.low, row.high), curve.rate[0], curve.rate[-1])
    return dataclasses.replace(row, low=float(low), high=float(high))
