"""`TensorStats`, steps and dead zones -> rates and distortions: the points of which a `Curve` is the lower hull.

Letters: `step` = Delta, `theta` half the dead zone in steps. A pair of them is one quantizer
`q = sign(w) floor(|w|/step + 1 - theta)` where `|w| >= theta step`, else 0; the weight is decoded as `step q`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opq.allocation.stats import TensorStats
from opq.base.arrays import Floats, Ints
from opq.coding.symbols import DIRECT, EDGES, LAST, bits_behind
from opq.plan import LARGEST_CODE

_MANY = 48
"""From this many levels on either side of zero, theta is 1/2: at such rates a dead zone gains nothing. A choice."""
_VERY_MANY = 512
"""From this many levels on either side, the rate is practically linear in the log of the step, so that few steps are
enough. A choice."""
_STEPS = (16, 8, 4)
"""Steps tried in an octave: below `_MANY` levels, below `_VERY_MANY`, and beyond. A choice that trades time for the
accuracy of the hull; fewer steps at high rates halved the time of a curve."""
_FINE = 256
"""Bins in an octave of the histogram, as `stats.SHIFT` makes them."""
SMALLEST_STEP = 2.0**-126
"""The smallest step, whose reciprocal float32 can hold. Tensors whose weights are all smaller are pruned."""


def pairs(largest: float, thetas: Sequence[float]) -> tuple[Floats, Floats]:
    """Pairs of step and theta, each (pairs,), from the largest step to the smallest."""
    many, very_many, end = (math.log2(levels) for levels in (_MANY, _VERY_MANY, LARGEST_CODE))
    octaves = [np.arange(0, many, 1 / _STEPS[0]), np.arange(many, very_many, 1 / _STEPS[1])]
    octaves += [np.append(np.arange(very_many, end, 1 / _STEPS[2]), end)]
    coarse, fine = largest * np.exp2(-octaves[0]), largest * np.exp2(-np.concatenate(octaves[1:]))
    coarse, fine = coarse[coarse >= SMALLEST_STEP], fine[fine >= SMALLEST_STEP]
    tried = [(s, t) for s in coarse for t in thetas] + [(s, min(thetas)) for s in fine]
    step, theta = np.array(tried).T
    return step, theta


def measure(
    stats: TensorStats, step: Floats, theta: Floats, *, rounding: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Rate, distortion and density of a tensor at pairs of step and theta, each (pairs,).

    Codes are `sign(w) max(1, floor(|w|/step + 1 - rounding))` where `|w| >= theta step`, else 0; `rounding` is theta
    unless given. The error of a code is computed from the cumulative histogram between the code's boundaries, as long
    as the bins are narrower than the step, which is up to 256 steps. Beyond, errors are taken as uniform in a step.

    Returns:
        rate in bits per weight (entropy of the symbols that stand for the codes, and the bits behind large symbols),
        distortion (mean squared error), density; each (pairs,). Zeros for a tensor of zeros.
    """
    if stats.max_abs == 0:
        return np.zeros_like(step), np.zeros_like(step), np.zeros_like(step)
    n, rounding = stats.size, theta if rounding is None else rounding
    # Per pair, (pairs,): where bins become wider than the step, the end of the exact part, the magnitudes of its codes.
    wide = np.exp2(np.ceil(np.log2(np.maximum(step * _FINE, theta * step))))
    top = np.minimum(wide, np.nextafter(stats.max_abs, math.inf))
    levels = np.maximum(np.ceil(top / step - rounding), 0).astype(np.int64) + 1
    # The codes of all pairs one after the other, (sum of levels,): those of a pair begin at `first`.
    first = np.concatenate([[0], np.cumsum(levels)[:-1]])
    k = np.arange(levels.sum()) - np.repeat(first, levels)
    edges = np.maximum(k + np.repeat(rounding, levels), np.repeat(theta, levels))
    edges[first] = theta
    edges = np.minimum(edges * np.repeat(step, levels), np.repeat(top, levels))
    plus, minus, sum_abs, squares = (_differences(c, first) for c in _cumulative(stats, edges))
    point = k * np.repeat(step, levels)
    error = squares - 2 * point * sum_abs + point * point * (plus + minus)
    dead = plus[first] + minus[first]
    bits = _self_information(plus, n) + _self_information(minus, n)
    bits[first] = _self_information(dead, n)
    # Summed over the codes of each pair, (pairs,) again.
    rate, distortion = np.add.reduceat(bits, first), np.add.reduceat(error, first)
    large = levels > DIRECT
    rate[large] = _bits(stats, step[large], theta[large], rounding[large])
    distortion += _beyond(stats, wide) * step * step * (rounding**3 + (1 - rounding) ** 3) / 3
    return np.maximum(rate, 0) / n, np.maximum(distortion, 0) / n, 1 - dead / n


def _bits(stats: TensorStats, step: Floats, theta: Floats, rounding: Floats) -> Floats:
    """Bits of all codes at pairs (pairs,) where some codes are large: of their symbols and of the bits behind these."""
    last = np.array(EDGES[1:], np.float64) - 1  # (symbols,): the largest magnitude that each symbol stands for
    edges = np.maximum(last + rounding[:, None], theta[:, None]) * step[:, None]  # (pairs, symbols)
    edges[:, 0], edges[:, -1] = theta * step, np.inf
    plus, minus = (np.maximum(np.diff(c, axis=1, prepend=0.0), 0.0) for c in _cumulative(stats, edges)[:2])
    bits = _self_information(plus, stats.size) + _self_information(minus, stats.size)
    bits[:, 0] = _self_information(plus[:, 0] + minus[:, 0], stats.size)
    return np.asarray((bits + (plus + minus) * bits_behind(0, LAST)).sum(axis=1))


def _cumulative(stats: TensorStats, edges: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Of the weights with |w| < edge: the counts of w >= 0 and of w < 0, sum |w| and sum w^2; each shaped like `edges`.

    Within a bin weights are taken as uniform; an edge inside a bin takes its share of the bin.
    """
    lower, upper, positive, negative = stats.magnitudes  # (bins,) each
    both = positive + negative
    j = np.searchsorted(upper, edges, side="left")  # the bin of each edge; like all that follows shaped like `edges`
    inside = j < lower.size
    at = np.minimum(j, lower.size - 1)
    low, width = lower[at], upper[at] - lower[at]
    reach = np.where(inside, np.clip(edges - low, 0, width), 0.0)
    share = np.divide(reach, width, out=np.zeros_like(reach), where=width > 0)
    part, high = both[at] * share, low + reach
    below = [_cumsum(c) for c in (positive, negative, both * (lower + upper) / 2)]
    below.append(_cumsum(both * (lower * lower + lower * upper + upper * upper) / 3))
    return (
        below[0][j] + positive[at] * share,
        below[1][j] + negative[at] * share,
        below[2][j] + part * (low + high) / 2,
        below[3][j] + part * (low * low + low * high + high * high) / 3,
    )


def _beyond(stats: TensorStats, wide: Floats) -> Floats:
    """The number of weights in the bins from `wide` (pairs,) on."""
    lower, _, positive, negative = stats.magnitudes
    counts = _cumsum(positive + negative)
    return np.asarray(counts[-1] - counts[np.searchsorted(lower, wide, side="left")])


def _cumsum(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _differences(cumulative: Floats, first: Ints) -> Floats:
    """The sums of each code from cumulative sums at the codes' upper edges; the codes of a pair begin at `first`."""
    out = np.diff(cumulative, prepend=0.0)
    out[first] = cumulative[first]
    return np.maximum(out, 0.0)


def _self_information(counts: Floats, n: int) -> Floats:
    """`-c log2(c / n)`, 0 where c is 0."""
    return -counts * np.log2(np.maximum(counts, 1e-12) / n)
