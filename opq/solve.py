"""Curves, sensitivities and a budget -> the allocation, by one dual scalar.

Letters: `i` a tensor, `n_i` its size, `a_i` its sensitivity, `R_i` bits per weight, `D_i` mean squared error,
`B` the budget in bits, `lambda` the multiplier.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from opq import laplace
from opq.curve import Curve, Point
from opq.errors import CertificateError, InfeasibleError, OptionError
from opq.stats import Floats

Bounds = Sequence[tuple[float, float] | None]
"""Smallest and largest rate of each tensor in bits per weight, or None."""

_SPARSEST = math.log(1e-4)
"""log of the smallest density that `paper` tries."""
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
    low, high = rate_bounds(curves, bounds)
    smallest = float(n @ low)
    if not bits_total >= smallest * (1 - ROUNDING):
        raise InfeasibleError("the budget cannot be met", got=f"{bits_total:.6g} bits", wanted=_at_least(smallest))
    bits_total = max(bits_total, smallest)

    def rates(x: float) -> Floats:
        return np.clip([c.rate_at_slope(x - la) for c, la in zip(curves, log_a, strict=True)], low, high)

    if n @ high <= bits_total:
        return _certified(curves, n, log_a, (low, high), high, math.inf, -math.inf)
    knots = [c.slopes[0] + la for c, la in zip(curves, log_a, strict=True)]
    knots += [[c.log_slope(r) + la for r in (lo, hi)] for c, la, lo, hi in zip(curves, log_a, low, high, strict=True)]
    x = _meet(lambda x: float(n @ rates(x)), np.unique(np.concatenate(knots)), bits_total)
    return _certified(curves, n, log_a, (low, high), rates(x), bits_total, x)


def prune(
    taus: Sequence[float], sizes: Sequence[int], sensitivities: Sequence[float], sparsity: float
) -> tuple[Floats, float]:
    """The paper's pruning thresholds, under the Laplacian prior.

        min  sum_i a_i n_i E_i(s_i)   subject to   sum_i n_i s_i = (1 - rho) N,   s_i = exp(-beta_i / tau_i)

    gives `a_i beta_i^2 = lambda`: the root of one decreasing function of `lambda`.

    Args:
        taus: `tau_i = mean|w|`; 0 for a tensor of zeros.
        sparsity: `rho` in [0, 1), fraction of all weights set to zero.

    Returns:
        `beta_i`, and `lambda`.
    """
    if not 0 <= sparsity < 1:
        raise OptionError("the sparsity is not a fraction", got=sparsity, wanted="0 <= sparsity < 1")
    n, log_a = _checked(sizes, sensitivities, len(taus))
    tau, root_a = np.asarray(taus, dtype=float), np.exp(log_a / 2)
    kept = (1 - sparsity) * n.sum()
    if kept >= n[tau > 0].sum():
        return np.zeros_like(tau), 0.0
    root = _root(lambda b: float(n @ laplace.density(b / root_a, tau)), kept, guess=float(np.max(tau * root_a)))
    return root / root_a, root * root


def steps(
    ranges: Sequence[npt.ArrayLike], kept: Sequence[npt.ArrayLike], sensitivities: Sequence[float], bits: float
) -> tuple[Floats, float]:
    """The paper's unified channel-wise steps: one step a tensor, shared by the codebooks of its channels.

        min  sum_i a_i m_i Delta_i^2 / 12   subject to   sum_ij m_ij log2(range_ij / Delta_i + 1) = bits * sum_ij m_ij

    gives in high resolution `Delta_i^2 = 6 lambda / (a_i ln 2)`: the root of one decreasing function of `lambda`.

    Args:
        ranges: of each tensor, `range_ij` = largest minus smallest kept weight of each channel.
        kept: of each tensor, `m_ij` = kept weights of each channel.
        bits: mean bits per kept weight.

    Returns:
        `Delta_i`, and `lambda`.
    """
    if not (bits > 0 and math.isfinite(bits)):
        raise OptionError("bits per kept weight", got=bits, wanted="a positive number")
    _, log_a = _checked([1] * len(ranges), sensitivities, len(kept))
    widest = max((float(np.max(r, initial=0.0)) for r in ranges), default=0.0)
    if widest == 0:
        return np.ones(len(ranges)), 0.0
    weight = math.sqrt(6 / math.log(2)) * np.exp(-log_a / 2)
    root = _root(lambda x: nominal_bits(ranges, kept, x * weight), bits, guess=widest / float(np.max(weight)))
    return root * weight, root * root


def nominal_bits(ranges: Sequence[npt.ArrayLike], kept: Sequence[npt.ArrayLike], step: npt.ArrayLike) -> float:
    """Mean bits per kept weight, `sum_ij m_ij log2(range_ij / Delta_i + 1) / sum_ij m_ij`, as the paper counts them."""
    each = zip(ranges, kept, np.asarray(step, dtype=float), strict=True)
    total = sum(float(np.sum(np.asarray(m) * np.log2(np.asarray(r, dtype=float) / d + 1))) for r, m, d in each)
    return total / max(sum(float(np.sum(m)) for m in kept), 1.0)


def paper(
    taus: Sequence[float], sizes: Sequence[int], sensitivities: Sequence[float], bits_total: float
) -> tuple[Allocation, float]:
    """The paper's method for a budget of the file alone: sparsity and steps together, under the Laplacian prior.

        min over rho  of  sum_i a_i n_i D_i(beta_i, Delta_i)   subject to   sum_i n_i H_i(beta_i, Delta_i) = B

    with the paper's two laws, `a_i beta_i^2 = lambda_p` (set by rho) and `Delta_i^2 = 6 lambda / (a_i ln 2)` (set by
    B); `H_i` is the entropy of the codes, which holds the cost h(s_i) of the positions, and `D_i` the error of pruning
    and quantizing, both in closed form (`laplace.quantizer`). One scalar inside another.

    Returns:
        the allocation (theta = beta / Delta, multiplier = lambda, residual of the budget), and the sparsity rho. Where
        positions alone take more than B at every sparsity tried, its bits are more than B.

    Raises:
        CertificateError: the solution does not meet its budget (a bug).
    """
    n, log_a = _checked(sizes, sensitivities, len(taus))
    if not bits_total > 0:
        raise InfeasibleError("the budget cannot be met", got=f"{bits_total:.6g} bits", wanted="more than 0 bits")
    tau, root_a = np.asarray(taus, dtype=float), np.exp(log_a / 2)
    if not np.any(tau > 0):
        points = tuple(Point(1.0, 0.5, 0.0, 0.0, 0.0) for _ in taus)
        return Allocation(points, 0.0, 0.0, 0.0), 0.0

    worst = 10 * float((n * root_a**2) @ (2 * tau * tau))

    def settle(log_density: float) -> tuple[float, Floats, Floats]:
        """Squared error, thresholds and steps at a density; more than any error where positions alone exceed B."""
        beta, _ = prune(taus, sizes, sensitivities, -math.expm1(log_density))
        floor = float(n @ _quantized(np.full_like(tau, np.inf), beta, tau)[0])
        if floor >= bits_total:
            return worst * floor / bits_total, beta, beta
        guess = float(np.max(tau * root_a))
        step = _root(lambda x: float(n @ _quantized(x / root_a, beta, tau)[0]), bits_total, guess=guess) / root_a
        return float((n * root_a**2) @ _quantized(step, beta, tau)[1]), beta, step

    best = _minimum(lambda x: settle(x)[0], np.linspace(_SPARSEST, -1e-3, 16))
    _, beta, step = settle(best)
    figures = zip(step, beta / step, *_quantized(step, beta, tau), strict=True)
    points = tuple(Point(*map(float, f)) for f in figures)
    bits = float(n @ [p.rate for p in points])
    multiplier = float(step[0] * root_a[0]) ** 2 * math.log(2) / 6
    residual = abs(bits - bits_total) / bits_total
    if float(n @ _quantized(np.full_like(tau, np.inf), beta, tau)[0]) < bits_total:
        _tolerated(residual)
    return Allocation(points, multiplier, residual, bits), -math.expm1(best)


def _quantized(step: Floats, beta: Floats, tau: Floats) -> tuple[Floats, Floats, Floats]:
    """`laplace.quantizer` with plain rounding; zeros for tensors of zeros; an infinite step has one code a side."""
    alive = tau > 0
    unit, wide = np.where(alive, tau, 1.0), np.isinf(step)
    rate, distortion, kept = laplace.quantizer(np.where(wide, 60 * (unit + beta), step), beta, unit)
    return np.where(alive, rate, 0.0), np.where(alive, distortion, 0.0), np.where(alive, kept, 0.0)


def _root(f: Callable[[float], float], target: float, *, guess: float) -> float:
    """The x > 0 where a decreasing function takes a value (or the nearest tried): widening brackets, then Brent."""
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


def _minimum(f: Callable[[float], float], grid: Floats) -> float:
    """The least value of a function of one variable: the best of a grid, refined between its neighbours."""
    from scipy.optimize import minimize_scalar

    k = int(np.argmin([f(float(x)) for x in grid]))
    around = float(grid[max(k - 1, 0)]), float(grid[min(k + 1, grid.size - 1)])
    refined = float(minimize_scalar(f, bounds=around, method="bounded", options={"xatol": 1e-4}).x)
    return min((refined, float(grid[k])), key=f)


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
    _tolerated(residual)
    points = tuple(c.at_rate(r) for c, r in zip(curves, rates, strict=True))
    return Allocation(points, math.exp(x), residual, bits)


def _tolerated(residual: float) -> None:
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


def _checked(sizes: Sequence[int], sensitivities: Sequence[float], count: int) -> tuple[Floats, Floats]:
    """n and log a."""
    n, a = np.asarray(sizes, dtype=float), np.asarray(sensitivities, dtype=float)
    if not n.size == a.size == count:
        raise OptionError("one size and one sensitivity go with each tensor", got=(n.size, a.size), wanted=count)
    if not bool(np.all(np.isfinite(a) & (a > 0))):
        raise OptionError("a sensitivity is not positive and finite", got=float(a[~(a > 0) | ~np.isfinite(a)][0]))
    return n, np.log(a)


def _at_least(bits: float) -> str:
    return f"at least {bits:.6g} bits ({math.ceil(bits / 8)} bytes)"
