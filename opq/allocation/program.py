"""Linear programs over mixtures of curve points, by which `convex` solves its problems.

A tensor is a mixture `x_k >= 0, sum x_k = 1` of points of its curve, so that rate, density and error are linear in `x`
and any convex curve is described by its points. Around the mixture found, more and more closely spaced points are
added, until the mixture is practically a single point. The dual prices of the last program are a certificate: no point
of any curve would lower the Lagrangian by more than the reported gap.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Floats
from opq.constraints import Row
from opq.errors import CertificateError, InfeasibleError

GAP = 1e-6
"""The largest relative duality gap that is accepted: the same as `solution.TOLERANCE`."""
_HIGHS = {"method": "highs", "dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10}
"""HiGHS with its tightest tolerances, so that a gap of `GAP` can be certified."""
_ROUNDS = 6
"""Programs solved, each with more points than the one before. A choice: spacing 4^-5 of the first leaves gaps below
`GAP` in the tests' random instances; more rounds take time."""
_FINER = np.linspace(-1, 1, 9)
"""(9,) Points added around the solution, in units of a width that is divided by 4 every round. A choice: neighbouring
rounds overlap, so that a solution that moves a little is still enclosed."""

Priced = tuple[Floats, Floats, Floats]
"""At points t (points,): rates and densities, (members, points) each, and the cost `sum a_i n_i D_i`, (points,)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The curve of choices of one tensor, or of a group that shares a step, with a parameter t."""

    members: tuple[int, ...]
    """The tensors, by their indices."""
    grid: Floats
    """(points,) The first values of t, ascending."""
    at: Callable[[Floats], Priced]
    """Rates, densities and cost at values of t."""


@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
    """The point of its curve that is found for each choice, and the certificate."""

    t: list[float]
    """The parameter of each choice."""
    multiplier: float
    """The price of the budget: what one more unit of it would save."""
    gap: float
    """The relative duality gap."""


def solve_program(choices: Sequence[Choice], rows: Sequence[Row], *, budget: Row, largest_gap: float = GAP) -> Solved:
    """Solves the program on the first points of the curves, then with more and finer ones around each solution.

    Args:
        largest_gap: the largest relative duality gap that is accepted; `CertificateError` above.
    """
    columns = [c.grid for c in choices]
    priced = [c.at(c.grid) for c in choices]
    unit = sum(float(np.max(p[2])) for p in priced)
    asked = rows
    for finer in range(_ROUNDS):
        program = _Program(choices, priced, rows, budget, unit)
        x = program.solve()
        unit = program.value
        t = [float(c @ w) for c, w in zip(columns, x, strict=True)]
        rows = _tightened(asked, rows, choices, t)
        around = [_around(choice, v, finer) for choice, v in zip(choices, t, strict=True)]
        columns = [np.concatenate([c, extra]) for c, extra in zip(columns, around, strict=True)]
        priced = [_join(p, c.at(extra)) for p, c, extra in zip(priced, choices, around, strict=True)]
    if not program.gap <= largest_gap:
        fact, wanted = "the allocation is not optimal", f"<= {largest_gap}"
        raise CertificateError(fact, got=f"gap {program.gap:.3g}", wanted=wanted)
    return Solved(t, program.multiplier, program.gap)


def _tightened(
    asked: Sequence[Row], rows: Sequence[Row], choices: Sequence[Choice], t: Sequence[float]
) -> Sequence[Row]:
    """The rows, moved by as much as the single points at t violate them although the mixture of points does not."""
    if not asked:
        return rows
    rate, density = np.zeros(asked[0].rate.size), np.zeros(asked[0].rate.size)
    for choice, v in zip(choices, t, strict=True):
        r, s, _ = choice.at(np.array([v]))
        rate[list(choice.members)], density[list(choice.members)] = r[:, 0], s[:, 0]
    moved = []
    for wish, row in zip(asked, rows, strict=True):
        value = float(wish.rate @ rate + wish.density @ density)
        over, under = max(value - wish.high, 0.0), max(wish.low - value, 0.0)
        low, high = row.low + under, row.high - over
        if wish.low == wish.high:
            low = high = row.low + under - over
        moved.append(dataclasses.replace(row, low=min(low, high), high=high))
    return moved


def _around(choice: Choice, t: float, finer: int) -> Floats:
    """More points of a curve around t, (at most 9,), closer together in every round."""
    grid = choice.grid
    width = np.max(np.diff(grid), initial=0.0) / 4**finer
    return np.unique(np.clip(t + width * _FINER, grid[0], grid[-1]))


def _join(a: Priced, b: Priced) -> Priced:
    return np.hstack([a[0], b[0]]), np.hstack([a[1], b[1]]), np.concatenate([a[2], b[2]])


class _Program:
    """One linear program over mixtures of points, stated in cvxpy and solved by HiGHS: exact duals at any scale.

    Letters of the shapes: `columns` are the points of all choices one after the other, `rows` the constraints, of which
    the budget is the first.
    """

    def __init__(
        self, choices: Sequence[Choice], priced: Sequence[Priced], rows: Sequence[Row], budget: Row, unit: float
    ) -> None:
        import cvxpy as cp

        self.members = [c.members for c in choices]
        self.priced, self.rows = priced, [budget, *rows]
        self.sizes = [p[2].size for p in priced]
        self.unit = max(unit, 1e-300)  # the value of the last program, so that the value of this one is near 1
        self.x = cp.Variable(sum(self.sizes), nonneg=True)  # (columns,)
        self.cost = np.concatenate([p[2] for p in priced]) / self.unit  # (columns,)
        self.used = np.array([self._along(row) for row in self.rows])  # (rows, columns)
        self.scale = np.maximum(np.abs(self.used).max(axis=1), 1e-300)  # (rows,)
        low, high = np.array([r.low for r in self.rows]), np.array([r.high for r in self.rows])
        total = (self.used / self.scale[:, None]) @ self.x  # (rows,)
        self.one = self._groups() @ self.x == 1  # (choices,)
        self.sides: list[tuple[float, npt.NDArray[np.int64], Any]] = []  # sign, rows, and the constraint on them
        for sign, limit in ((-1.0, low), (1.0, high)):
            stated = np.flatnonzero(np.isfinite(limit))
            if stated.size:
                self.sides.append((sign, stated, sign * total[stated] <= (sign * limit / self.scale)[stated]))

    def solve(self) -> list[Floats]:
        """The mixture of each choice, (its points,); sets `value`, `multiplier` and `gap`."""
        import cvxpy as cp

        problem = cp.Problem(cp.Minimize(self.cost @ self.x), [self.one, *(side for _, _, side in self.sides)])
        problem.solve(solver=cp.SCIPY, scipy_options=dict(_HIGHS))
        if problem.status not in ("optimal", "optimal_inaccurate"):
            raise self._infeasible()
        prices = np.zeros(len(self.rows))  # (rows,): positive at an upper limit, negative at a lower one
        for sign, stated, side in self.sides:
            prices[stated] += sign * side.dual_value
        self.value = float(problem.value) * self.unit
        self.multiplier = float(prices[0]) * self.unit / float(self.scale[0])
        self.gap = self._gap(prices, float(problem.value))
        x = np.maximum(np.asarray(self.x.value, dtype=float), 0.0)
        parts = np.split(x, np.cumsum(self.sizes)[:-1])
        return [part / part.sum() for part in parts]

    def _gap(self, prices: Floats, value: float) -> float:
        """Primal value minus the minimum of the Lagrangian over all points, relative: a bound on the suboptimality."""
        lagrangian = self.cost + prices @ (self.used / self.scale[:, None])  # (columns,)
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        ends = [r.high if p > 0 else r.low for r, p in zip(self.rows, prices, strict=True)]
        spent = sum(p * e / s for p, e, s in zip(prices, ends, self.scale, strict=True) if p != 0 and math.isfinite(e))
        bound = float(np.minimum.reduceat(lagrangian, starts).sum() - spent)
        return abs(value - bound) / max(abs(value), 1e-300)

    def _infeasible(self) -> InfeasibleError:
        """The error, with the smallest budget that the other constraints allow, if there is one."""
        import cvxpy as cp

        others = [self.one]
        for k, row in enumerate(self.rows[1:], start=1):
            total = (self.used[k] / self.scale[k]) @ self.x
            others += [total >= row.low / self.scale[k]] if math.isfinite(row.low) else []
            others += [total <= row.high / self.scale[k]] if math.isfinite(row.high) else []
        problem = cp.Problem(cp.Minimize((self.used[0] / self.scale[0]) @ self.x), others)
        problem.solve(solver=cp.SCIPY, scipy_options=dict(_HIGHS))
        if problem.status not in ("optimal", "optimal_inaccurate"):
            labels = ", ".join(dict.fromkeys(row.label for row in self.rows[1:]))
            return InfeasibleError("the constraints contradict each other", got=labels, remedy="Loosen one of them.")
        least = float(problem.value) * float(self.scale[0])
        return InfeasibleError(
            f"{self.rows[0].label} cannot be met under the constraints",
            got=f"{self.rows[0].high:.6g}",
            wanted=f"at least {least:.6g}",
        )

    def _along(self, row: Row) -> Floats:
        """The coefficients of a row, (columns,)."""
        parts = [
            row.rate[list(who)] @ p[0] + row.density[list(who)] @ p[1]
            for who, p in zip(self.members, self.priced, strict=True)
        ]
        return np.concatenate(parts)

    def _groups(self) -> Any:
        """Which column belongs to which choice: (choices, columns), sparse, of zeros and ones."""
        from scipy.sparse import csr_array

        choice = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return csr_array((np.ones(choice.size), (choice, np.arange(choice.size))))
