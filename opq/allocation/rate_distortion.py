"""The allocation of a budget to tensors, given their curves and sensitivities, by one dual scalar.

Letters: `i` a tensor, `n_i` its size, `a_i` its sensitivity, `R_i` bits per weight, `D_i` mean squared error,
`B` the budget in bits, `lambda` the multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opq.allocation.curve import Curve
from opq.allocation.roots import meeting_point
from opq.allocation.solution import (
    ROUNDING,
    Allocation,
    Bounds,
    at_least,
    checked_terms,
    rate_bounds,
    stationarity,
    tolerated,
)
from opq.base.arrays import Floats
from opq.errors import InfeasibleError


def allocate(
    curves: Sequence[Curve],
    sizes: Sequence[int],
    sensitivities: Sequence[float],
    bits_total: float,
    *,
    bounds: Bounds | None = None,
) -> Allocation:
    """The rate-distortion optimum: method `"rd"`.

        min  sum_i a_i n_i D_i(R_i)   subject to   sum_i n_i R_i <= B,   l_i <= R_i <= u_i

    Every `D_i` is strictly convex, so the optimum is unique: `-a_i D_i'(R_i) = lambda`, clipped to the bounds
    (Shoham and Gersho 1988). `R_i` is piecewise linear in `log lambda`; the budget is met exactly.

    Args:
        curves: the curve of each tensor.
        sizes: `n_i`, weights.
        sensitivities: `a_i > 0`.
        bits_total: `B`, bits of the coded integers of all tensors together, without overhead.
        bounds: `(l_i, u_i)` in bits per weight or None, for each tensor; clipped to the ends of its curve.

    Raises:
        OptionError: a sensitivity or a bound has no meaning.
        InfeasibleError: B is less than the smallest rates take; the text gives the smallest feasible budget.
        CertificateError: the solution does not satisfy its own conditions (a bug).
    """
    n, log_a = checked_terms(sizes, sensitivities, len(curves))
    low, high = rate_bounds(curves, bounds)
    smallest = float(n @ low)
    if not bits_total >= smallest * (1 - ROUNDING):
        raise InfeasibleError("the budget cannot be met", got=f"{bits_total:.6g} bits", wanted=at_least(smallest))
    bits_total = max(bits_total, smallest)

    def rates(x: float) -> Floats:
        return np.clip([c.rate_at_slope(x - la) for c, la in zip(curves, log_a, strict=True)], low, high)

    if n @ high <= bits_total:
        return _certified(curves, n, log_a, (low, high), high, math.inf, -math.inf)
    knots = [c.slopes[0] + la for c, la in zip(curves, log_a, strict=True)]
    knots += [[c.log_slope(r) + la for r in (lo, hi)] for c, la, lo, hi in zip(curves, log_a, low, high, strict=True)]
    x = meeting_point(lambda x: float(n @ rates(x)), np.unique(np.concatenate(knots)), bits_total)
    return _certified(curves, n, log_a, (low, high), rates(x), bits_total, x)


def _certified(
    curves: Sequence[Curve],
    n: Floats,
    log_a: Floats,
    bounds: tuple[Floats, Floats],
    rates: Floats,
    target: float,
    x: float,
) -> Allocation:
    """The allocation at rates (tensors,) with its residual; raises `CertificateError` above the tolerance.

    Args:
        target: the budget in bits, infinite where it is more than can be used.
        x: log of the multiplier.
    """
    bits = float(n @ rates)
    residual = stationarity(curves, log_a, bounds, rates, x)
    if math.isfinite(target):
        residual = max(residual, abs(bits - target) / max(target, 1.0))
    tolerated(residual)
    points = tuple(c.at_rate(r) for c, r in zip(curves, rates, strict=True))
    return Allocation(points, math.exp(x), residual, bits)
