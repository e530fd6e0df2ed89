"""Curves, sensitivities and a budget -> the allocation, by one dual scalar.

Letters: `i` a tensor, `n_i` its size, `a_i` its sensitivity, `R_i` bits per weight, `D_i` mean squared error,
`B` the budget in bits, `lambda` the multiplier.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from opq.curve import Curve, Point
from opq.errors import CertificateError, InfeasibleError, OptionError
from opq.stats import Floats

Bounds = Sequence[tuple[float, float] | None]
"""Smallest and largest rate of each tensor in bits per weight, or None."""

TOLERANCE = 1e-6
"""Largest residual of a certificate that is let through."""


@dataclasses.dataclass(frozen=True, slots=True)
class Allocation:
    """The operating point of every tensor and the certificate that it is optimal."""

    points: tuple[Point, ...]
    multiplier: float
    """lambda: what one more bit takes off `sum a_i n_i D_i`; 0 when the budget is more than can be used."""
    residual: float
    """Largest relative violation of the Karush-Kuhn-Tucker conditions and of the budget."""
    bits: float
    """`sum n_i R_i`."""


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
        curves: one of each tensor.
        sizes: `n_i`, weights.
        sensitivities: `a_i > 0`.
        bits_total: `B`, bits of the coded integers of all tensors together, without overhead.
        bounds: `(l_i, u_i)` in bits per weight or None, for each tensor; clipped to what its curve can do.

    Raises:
        OptionError: a sensitivity or a bound has no meaning.
        InfeasibleError: B is below the smallest rates; the text names the smallest feasible budget.
        CertificateError: the solution does not satisfy its own conditions (a bug).
    """
    n, log_a = _checked(sizes, sensitivities, len(curves))
    low, high = _rate_bounds(curves, bounds)
    smallest = float(n @ low)
    if not bits_total >= smallest:
        raise InfeasibleError(
            "the budget cannot be met", got=f"{bits_total:.6g} bits", wanted=_at_least(smallest)
        )

    def rates(x: float) -> Floats:
        return np.clip([c.rate_at_slope(x - la) for c, la in zip(curves, log_a, strict=True)], low, high)

    if n @ high <= bits_total:
        return _certified(curves, n, log_a, (low, high), high, math.inf, -math.inf)
    knots = [c.slopes[0] + la for c, la in zip(curves, log_a, strict=True)]
    knots += [
        [c.log_slope(r) + la for r in (lo, hi)]
        for c, la, lo, hi in zip(curves, log_a, low, high, strict=True)
    ]
    x = _meet(lambda x: float(n @ rates(x)), np.unique(np.concatenate(knots)), bits_total)
    return _certified(curves, n, log_a, (low, high), rates(x), bits_total, x)


def _meet(total: Callable[[float], float], knots: Floats, target: float) -> float:
    """The x where a decreasing function, linear between the knots, takes a value (or the nearest knot)."""
    left, right = 0, knots.size - 1
    while right - left > 1:
        middle = (left + right) // 2
        left, right = (middle, right) if total(float(knots[middle])) >= target else (left, middle)
    x0, x1 = float(knots[left]), float(knots[right])
    y0, y1 = total(x0), total(x1)
    return x0 if y0 <= y1 else x0 + (x1 - x0) * min(max((y0 - target) / (y0 - y1), 0.0), 1.0)


def _certified(
    curves: Sequence[Curve],
    n: Floats,
    log_a: Floats,
    bounds: tuple[Floats, Floats],
    rates: Floats,
    target: float,
    x: float,
) -> Allocation:
    """The allocation with its residual; raises `CertificateError` above the tolerance."""
    bits = float(n @ rates)
    residual = stationarity(curves, log_a, bounds, rates, x)
    if math.isfinite(target):
        residual = max(residual, abs(bits - target) / max(target, 1.0))
    if not residual <= TOLERANCE:
        raise CertificateError(
            "the allocation is not optimal", got=f"residual {residual:.3g}", wanted=f"<= {TOLERANCE}"
        )
    points = tuple(c.at_rate(r) for c, r in zip(curves, rates, strict=True))
    return Allocation(points, math.exp(x), residual, bits)


def stationarity(
    curves: Sequence[Curve], log_a: Floats, bounds: tuple[Floats, Floats], rates: Floats, x: float
) -> float:
    """Largest relative violation of `-a_i D_i'(R_i) = lambda = e^x`, one-sided where `R_i` is at a bound."""
    worst = 0.0
    for curve, la, lo, hi, rate in zip(curves, log_a, *bounds, rates, strict=True):
        gap = curve.log_slope(rate) + la - x
        at_low, at_high = rate <= lo + 1e-12, rate >= hi - 1e-12
        violation = 0.0 if (at_low and gap <= 0) or (at_high and gap >= 0) else abs(gap)
        worst = max(worst, violation)
    return worst


def _rate_bounds(curves: Sequence[Curve], bounds: Bounds | None) -> tuple[Floats, Floats]:
    """Bounds of the rates, clipped to the ends of the curves."""
    low = np.array([c.rate[0] for c in curves], dtype=float)
    high = np.array([c.rate[-1] for c in curves], dtype=float)
    for i, bound in enumerate(bounds or ()):
        if bound is None:
            continue
        if not 0 <= bound[0] <= bound[1]:
            raise OptionError("bounds of a rate", got=bound, wanted="0 <= min <= max, bits per weight")
        low[i], high[i] = np.clip(bound, low[i], high[i])
    return low, high


def _checked(sizes: Sequence[int], sensitivities: Sequence[float], count: int) -> tuple[Floats, Floats]:
    """n and log a."""
    n, a = np.asarray(sizes, dtype=float), np.asarray(sensitivities, dtype=float)
    if not n.size == a.size == count:
        raise OptionError(
            "one size and one sensitivity go with each tensor", got=(n.size, a.size), wanted=count
        )
    if not bool(np.all(np.isfinite(a) & (a > 0))):
        raise OptionError(
            "a sensitivity is not positive and finite", got=float(a[~(a > 0) | ~np.isfinite(a)][0])
        )
    return n, np.log(a)


def _at_least(bits: float) -> str:
    return f"at least {bits:.6g} bits ({math.ceil(bits / 8)} bytes)"
