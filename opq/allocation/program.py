"""Convex programs over mixtures of curve points: the engine behind `opq.convex`.

A tensor is a mixture `x_k >= 0, sum x_k = 1` of points of its curve, so that rate, density and error are linear in `x`
and any convex curve is stated as written by its points. Where the mixture falls, points are added closer and closer
together until it is one point. The dual prices of the last program are a certificate: no point of any curve would
lower the Lagrangian by more than the reported gap.
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
"""Largest relative duality gap that is let through."""
_HIGHS = {"method": "highs", "dual_feasibility_tolerance": 1e-10, "primal_feasibility_tolerance": 1e-10}
_ROUNDS = 6
_FINER = np.linspace(-1, 1, 9)
"""Points added around the solution, in units of a width that shrinks by 4 every round."""

Priced = tuple[Floats, Floats, Floats]
"""At points t: rates and densities (members x points), and cost `sum a_i n_i D_i` (points)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """A curve of choices for one tensor, or for a group that shares a step."""

    members: tuple[int, ...]
    grid: Floats
    """Values of the curve's parameter t, ascending."""
    at: Callable[[Floats], Priced]


@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
    """Where on its curve each choice ended up, and the certificate."""

    t: list[float]
    multiplier: float
    gap: float


def solve_program(choices: Sequence[Choice], rows: Sequence[Row], budget: Row) -> Solved:
    """Solves on the curves' own points, then on ever finer ones around the solution."""
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
    if not program.gap <= GAP:
        raise CertificateError("the allocation is not optimal", got=f"gap {program.gap:.3g}", wanted=f"<= {GAP}")
    return Solved(t, program.multiplier, program.gap)


def _tightened(
    asked: Sequence[Row], rows: Sequence[Row], choices: Sequence[Choice], t: Sequence[float]
) -> Sequence[Row]:
    """The rows moved by what the single points at t exceed them, which a mixture of points may hide."""
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
    """More points of a curve around t, closer together every round."""
    grid = choice.grid
    width = np.max(np.diff(grid), initial=0.0) / 4**finer
    return np.unique(np.clip(t + width * _FINER, grid[0], grid[-1]))


def _join(a: Priced, b: Priced) -> Priced:
    return np.hstack([a[0], b[0]]), np.hstack([a[1], b[1]]), np.concatenate([a[2], b[2]])


class _Program:
    """One linear program over mixtures of points, stated in cvxpy and solved by HiGHS: exact duals at any scale."""

    def __init__(
        self, choices: Sequence[Choice], priced: Sequence[Priced], rows: Sequence[Row], budget: Row, unit: float
    ) -> None:
        import cvxpy as cp

        self.members = [c.members for c in choices]
        self.priced, self.rows = priced, [budget, *rows]
        self.sizes = [p[2].size for p in priced]
        self.unit = max(unit, 1e-300)  # the value of the last program, so that this one's is near 1
        self.x = cp.Variable(sum(self.sizes), nonneg=True)
        self.cost = np.concatenate([p[2] for p in priced]) / self.unit
        self.used = np.array([self._along(row) for row in self.rows])
        self.scale = np.maximum(np.abs(self.used).max(axis=1), 1e-300)
        low, high = np.array([r.low for r in self.rows]), np.array([r.high for r in self.rows])
        total = (self.used / self.scale[:, None]) @ self.x
        self.one = self._groups() @ self.x == 1
        self.sides: list[tuple[float, npt.NDArray[np.int64], Any]] = []  # sign, rows, and the constraint on them
        for sign, limit in ((-1.0, low), (1.0, high)):
            stated = np.flatnonzero(np.isfinite(limit))
            if stated.size:
                self.sides.append((sign, stated, sign * total[stated] <= (sign * limit / self.scale)[stated]))

    def solve(self) -> list[Floats]:
        """The mixtures, one array per choice; sets `value`, `multiplier` and `gap`."""
        import cvxpy as cp

        problem = cp.Problem(cp.Minimize(self.cost @ self.x), [self.one, *(side for _, _, side in self.sides)])
        problem.solve(solver=cp.SCIPY, scipy_options=dict(_HIGHS))
        if problem.status not in ("optimal", "optimal_inaccurate"):
            raise self._infeasible()
        prices = np.zeros(len(self.rows))
        for sign, stated, side in self.sides:
            prices[stated] += sign * side.dual_value
        self.value = float(problem.value) * self.unit
        self.multiplier = float(prices[0]) * self.unit / float(self.scale[0])
        self.gap = self._gap(prices, float(problem.value))
        x = np.maximum(np.asarray(self.x.value, dtype=float), 0.0)
        parts = np.split(x, np.cumsum(self.sizes)[:-1])
        return [part / part.sum() for part in parts]

    def _gap(self, prices: Floats, value: float) -> float:
        """Primal value minus the value of the Lagrangian at its minimum over all points: an upper bound of the loss."""
        lagrangian = self.cost + prices @ (self.used / self.scale[:, None])
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        ends = [r.high if p > 0 else r.low for r, p in zip(self.rows, prices, strict=True)]
        spent = sum(p * e / s for p, e, s in zip(prices, ends, self.scale, strict=True) if p != 0 and math.isfinite(e))
        bound = float(np.minimum.reduceat(lagrangian, starts).sum() - spent)
        return abs(value - bound) / max(abs(value), 1e-300)

    def _infeasible(self) -> InfeasibleError:
        """What can be had instead: the smallest budget under the other constraints, if any."""
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
        """What each column adds to a row."""
        parts = [
            row.rate[list(who)] @ p[0] + row.density[list(who)] @ p[1]
            for who, p in zip(self.members, self.priced, strict=True)
        ]
        return np.concatenate(parts)

    def _groups(self) -> Any:
        from scipy.sparse import csr_array

        choice = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return csr_array((np.ones(choice.size), (choice, np.arange(choice.size))))
