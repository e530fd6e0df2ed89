"""Roots of monotone functions of one multiplier."""

from __future__ import annotations

import math
from collections.abc import Callable

from opq.base.arrays import Floats


def find_root(f: Callable[[float], float], target: float, *, guess: float) -> float:
    """The x > 0 where a decreasing function takes the value `target`: the bracket is widened, then Brent's method.

    Where no bracket is found between 1e-150 and 1e150, the end that comes nearest.
    """
    from scipy.optimize import brentq

    low = high = guess
    factor = 4.0
    while (at_low := f(low)) < target and low > 1e-150:
        low, factor = low / factor, factor**1.5
    factor = 4.0
    while (at_high := f(high)) > target and high < 1e150:
        high, factor = high * factor, factor**1.5
    if at_low <= target or at_high >= target:
        return low if at_low <= target else high
    root = brentq(lambda y: f(math.exp(y)) - target, math.log(low), math.log(high), xtol=1e-14, rtol=1e-14)
    return math.exp(root)


def meeting_point(total: Callable[[float], float], knots: Floats, target: float) -> float:
    """The x where a decreasing function that is linear between knots takes the value `target`, or the nearest knot."""
    left, right = 0, knots.size - 1
    while right - left > 1:
        middle = (left + right) // 2
        left, right = (middle, right) if total(float(knots[middle])) >= target else (left, middle)
    x0, x1 = float(knots[left]), float(knots[right])
    y0, y1 = total(x0), total(x1)
    return x0 if y0 <= y1 else x0 + (x1 - x0) * min(max((y0 - target) / (y0 - y1), 0.0), 1.0)
