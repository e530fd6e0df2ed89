"""The two steps of the paper (Hu et al., AAAI 2021) in closed form: thresholds, then steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from opq.allocation import laplace
from opq.allocation.curve import Point
from opq.allocation.roots import find_root
from opq.allocation.solution import Allocation, checked_terms, tolerated
from opq.allocation.stats import TensorStats
from opq.base.arrays import Floats
from opq.errors import InfeasibleError, OptionError

_SPARSEST = math.log(1e-4)
"""log of the smallest density that `paper` tries. A choice: one weight in ten thousand is kept there."""


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
    n, log_a = checked_terms(sizes, sensitivities, len(taus))
    tau, root_a = np.asarray(taus, dtype=float), np.exp(log_a / 2)
    kept = (1 - sparsity) * n.sum()
    if kept >= n[tau > 0].sum():
        return np.zeros_like(tau), 0.0
    root = find_root(lambda b: float(n @ laplace.density(b / root_a, tau)), kept, guess=float(np.max(tau * root_a)))
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
    _, log_a = checked_terms([1] * len(ranges), sensitivities, len(kept))
    widest = max((float(np.max(r, initial=0.0)) for r in ranges), default=0.0)
    if widest == 0:
        return np.ones(len(ranges)), 0.0
    weight = math.sqrt(6 / math.log(2)) * np.exp(-log_a / 2)
    root = find_root(lambda x: nominal_bits(ranges, kept, x * weight), bits, guess=widest / float(np.max(weight)))
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
    B). `H_i` is the entropy of the codes, which includes the cost h(s_i) of the positions of the kept weights, and
    `D_i` the error of pruning and quantizing; both have a closed form (`laplace.quantizer`). The solution is found by
    two nested searches for one scalar each: rho outside, lambda inside.

    Returns:
        the allocation (theta = beta / Delta, multiplier = lambda, residual of the budget), and the sparsity rho. If at
        every sparsity tried the positions alone take more than B, the bits of the allocation are more than B.

    Raises:
        CertificateError: the solution does not meet its budget (a bug).
    """
    n, log_a = checked_terms(sizes, sensitivities, len(taus))
    if not bits_total > 0:
        raise InfeasibleError("the budget cannot be met", got=f"{bits_total:.6g} bits", wanted="more than 0 bits")
    tau, root_a = np.asarray(taus, dtype=float), np.exp(log_a / 2)
    if not np.any(tau > 0):
        points = tuple(Point(1.0, 0.5, 0.0, 0.0, 0.0) for _ in taus)
        return Allocation(points, 0.0, 0.0, 0.0), 0.0

    worst = 10 * float((n * root_a**2) @ (2 * tau * tau))

    def settle(log_density: float) -> tuple[float, Floats, Floats]:
        """Squared error, thresholds and steps at a density. Where positions alone exceed B, a value that is larger than
        every error and grows with the excess, so that the search turns back."""
        beta, _ = prune(taus, sizes, sensitivities, -math.expm1(log_density))
        floor = float(n @ _quantized(np.full_like(tau, np.inf), beta, tau)[0])
        if floor >= bits_total:
            return worst * floor / bits_total, beta, beta
        guess = float(np.max(tau * root_a))
        step = find_root(lambda x: float(n @ _quantized(x / root_a, beta, tau)[0]), bits_total, guess=guess) / root_a
        return float((n * root_a**2) @ _quantized(step, beta, tau)[1]), beta, step

    best = _minimum(lambda x: settle(x)[0], np.linspace(_SPARSEST, -1e-3, 16))
    _, beta, step = settle(best)
    figures = zip(step, beta / step, *_quantized(step, beta, tau), strict=True)
    points = tuple(Point(*map(float, f)) for f in figures)
    bits = float(n @ [p.rate for p in points])
    multiplier = float(step[0] * root_a[0]) ** 2 * math.log(2) / 6
    residual = abs(bits - bits_total) / bits_total
    if float(n @ _quantized(np.full_like(tau, np.inf), beta, tau)[0]) < bits_total:
        tolerated(residual)
    return Allocation(points, multiplier, residual, bits), -math.expm1(best)


def _quantized(step: Floats, beta: Floats, tau: Floats) -> tuple[Floats, Floats, Floats]:
    """`laplace.quantizer` with plain rounding; zeros for tensors of zeros. An infinite step leaves one code a side."""
    alive = tau > 0
    unit, wide = np.where(alive, tau, 1.0), np.isinf(step)
    rate, distortion, kept = laplace.quantizer(np.where(wide, 60 * (unit + beta), step), beta, unit)
    return np.where(alive, rate, 0.0), np.where(alive, distortion, 0.0), np.where(alive, kept, 0.0)


def _minimum(f: Callable[[float], float], grid: Floats) -> float:
    """Where a function of one variable is least: the best point of a grid, refined between the points beside it."""
    from scipy.optimize import minimize_scalar

    k = int(np.argmin([f(float(x)) for x in grid]))
    around = float(grid[max(k - 1, 0)]), float(grid[min(k + 1, grid.size - 1)])
    refined = float(minimize_scalar(f, bounds=around, method="bounded", options={"xatol": 1e-4}).x)
    return min((refined, float(grid[k])), key=f)


def thresholds(stats: Sequence[TensorStats], sensitivities: Sequence[float], sparsity: float) -> Floats:
    """`beta_i` with `a_i beta_i^2 = lambda` that prune the fraction `sparsity` of all weights.

    The law holds for any distribution that is symmetric about 0. The Laplacian prior gives a first `lambda`; since real
    tensors are not exactly Laplacian, the histograms then give the one that meets the wanted sparsity.
    """
    sizes = [s.size for s in stats]
    beta, _ = prune([s.mean_abs for s in stats], sizes, sensitivities, sparsity)
    kept = (1 - sparsity) * sum(sizes)

    def survivors(scale: float) -> float:
        return sum(s.size * density_above(s, scale * b) for s, b in zip(stats, beta, strict=True))

    if not np.any(beta > 0):
        return beta
    low, high = 0.0, 1.0
    while survivors(high) > kept and high < 2.0**40:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if survivors(middle) > kept else (low, middle)
    return beta * high


def density_above(stats: TensorStats, beta: float) -> float:
    """Fraction of weights with `|w| >= beta`, from the histogram."""
    return float(np.sum(_counts_above(stats, beta))) / max(stats.size, 1)


def _counts_above(stats: TensorStats, beta: float) -> Floats:
    """How many weights of each bin have |w| >= beta, (bins,); within a bin they are taken as uniform."""
    lower, upper, positive, negative = stats.magnitudes
    width = upper - lower
    share = np.divide(upper - beta, width, out=(upper >= beta).astype(float), where=width > 0)
    return np.asarray((positive + negative) * np.clip(share, 0.0, 1.0))
