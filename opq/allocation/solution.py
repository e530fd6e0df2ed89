"""What every allocation gives, and the certificate that it is optimal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from opq.allocation.curve import Curve, Point
from opq.base.arrays import Floats
from opq.errors import CertificateError, OptionError

Bounds = Sequence[tuple[float, float] | None]
"""Smallest and largest rate of each tensor in bits per weight, or None."""
TOLERANCE = 1e-6
"""Largest residual of a certificate that is let through."""
ROUNDING = 1e-12
"""Relative error of a sum of rates, whose order depends on the machine."""


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


def tolerated(residual: float) -> None:
    if not residual <= TOLERANCE:
        raise CertificateError(
            "the allocation is not optimal", got=f"residual {residual:.3g}", wanted=f"<= {TOLERANCE}"
        )


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


def rate_bounds(curves: Sequence[Curve], bounds: Bounds | None) -> tuple[Floats, Floats]:
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


def checked_terms(sizes: Sequence[int], sensitivities: Sequence[float], count: int) -> tuple[Floats, Floats]:
    """n and log a."""
    n, a = np.asarray(sizes, dtype=float), np.asarray(sensitivities, dtype=float)
    if not n.size == a.size == count:
        raise OptionError("one size and one sensitivity go with each tensor", got=(n.size, a.size), wanted=count)
    if not bool(np.all(np.isfinite(a) & (a > 0))):
        raise OptionError("a sensitivity is not positive and finite", got=float(a[~(a > 0) | ~np.isfinite(a)][0]))
    return n, np.log(a)


def at_least(bits: float) -> str:
    return f"at least {bits:.6g} bits ({math.ceil(bits / 8)} bytes)"
