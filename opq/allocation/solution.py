"""The result of every allocation, and the certificate that it is optimal."""

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
"""The largest residual of a certificate that is accepted. A choice: rounding errors stay orders of magnitude below it
(tests/allocation), and an error of this size is finer than the 24 bits in which a file holds a step."""
ROUNDING = 1e-12
"""Relative rounding error allowed in a sum of rates, whose order of summation depends on the machine."""


@dataclasses.dataclass(frozen=True, slots=True)
class Allocation:
    """The operating point of every tensor and the certificate that it is optimal."""

    points: tuple[Point, ...]
    multiplier: float
    """lambda: by how much one more bit lowers `sum a_i n_i D_i`; 0 when the budget is more than can be used."""
    residual: float
    """Largest relative violation of the Karush-Kuhn-Tucker conditions and of the budget."""
    bits: float
    """`sum n_i R_i`."""


def tolerated(residual: float) -> None:
    """Raises `CertificateError` where a residual is above `TOLERANCE`, or is not a number."""
    if not residual <= TOLERANCE:
        raise CertificateError(
            "the allocation is not optimal", got=f"residual {residual:.3g}", wanted=f"<= {TOLERANCE}"
        )


def stationarity(
    curves: Sequence[Curve], log_a: Floats, bounds: tuple[Floats, Floats], rates: Floats, x: float
) -> float:
    """The largest relative violation of `-a_i D_i'(R_i) = lambda = e^x`; one-sided where `R_i` is at a bound."""
    worst = 0.0
    for curve, la, lo, hi, rate in zip(curves, log_a, *bounds, rates, strict=True):
        gap = curve.log_slope(rate) + la - x
        at_low, at_high = rate <= lo + 1e-12, rate >= hi - 1e-12
        violation = 0.0 if (at_low and gap <= 0) or (at_high and gap >= 0) else abs(gap)
        worst = max(worst, violation)
    return worst


def rate_bounds(curves: Sequence[Curve], bounds: Bounds | None) -> tuple[Floats, Floats]:
    """The lower and the upper bounds of the rates, (tensors,) each, clipped to the ends of the curves."""
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
    """`n` and `log a` as arrays, (tensors,) each; raises `OptionError` where they are not one each, or not positive."""
    n, a = np.asarray(sizes, dtype=float), np.asarray(sensitivities, dtype=float)
    if not n.size == a.size == count:
        raise OptionError("one size and one sensitivity go with each tensor", got=(n.size, a.size), wanted=count)
    if not bool(np.all(np.isfinite(a) & (a > 0))):
        raise OptionError("a sensitivity is not positive and finite", got=float(a[~(a > 0) | ~np.isfinite(a)][0]))
    return n, np.log(a)


def at_least(bits: float) -> str:
    """A smallest budget, for error messages."""
    return f"at least {bits:.6g} bits ({math.ceil(bits / 8)} bytes)"
