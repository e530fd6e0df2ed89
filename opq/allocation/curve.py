"""`TensorStats` -> `Curve`: the lower convex hull of (rate, distortion) over step and dead zone.

Letters: `step` = Delta, `theta` half the dead zone in steps, `R` rate in bits per weight (the entropy of the codes),
`D` distortion (mean squared error per weight), `mu = -dD/dR` the slope.

The quantizer is `q = sign(w) floor(|w|/step + 1 - theta)` where `|w| >= theta step`, else 0; the weight is decoded as
`step q`. Its rate and distortion are computed on a grid of steps and thetas, and the lower convex hull of these points
is a list of vertices. The hull is rounded at its vertices: there `log mu` is linear in `R` from the slope of one chord
to that of the next (as it is where `D ~ 2^-2R`). So `D(R)` is strictly convex with a continuous derivative, and slopes
and rates correspond one to one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from opq.allocation.stats import TensorStats
from opq.base.arrays import Floats, Ints
from opq.coding.symbols import DIRECT, EDGES, LAST, bits_behind
from opq.plan import LARGEST_CODE

THETAS = (0.5, 0.54, 0.58, 0.62, 0.66, 0.7, 0.74, 0.8)
"""Values of theta that are tried: the optimum for a Laplacian lies between 0.5 (high rates) and 0.793 (0.2 bits), see
`laplace.best_quantizer` and docs/mathematics.md. Their number trades time for the accuracy of the hull."""
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
_SMALLEST = 2.0**-126
"""The smallest step, whose reciprocal float32 can hold. Tensors whose weights are all smaller are pruned."""
_BEND = 1e-3
"""A point of the hull where the slope changes by less than this fraction is not kept as a vertex. A choice: nearly
straight corners would make the map between slopes and rates needlessly long and ill conditioned."""


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """One operating point of one tensor."""

    step: float
    theta: float
    """Half the dead zone in steps: the threshold is `theta * step`."""
    rate: float
    """Bits per weight."""
    distortion: float
    """Mean squared error per weight."""
    density: float
    """Fraction of weights that are not zero."""

    @property
    def threshold(self) -> float:
        """Half the dead zone, in units of the weight."""
        return self.theta * self.step


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """The lower convex hull of a tensor's operating points, from few bits to many.

    All arrays have the shape (vertices,), with at least one vertex; `rate` is strictly ascending, `distortion`
    descending.
    """

    log_step: Floats
    theta: Floats
    rate: Floats
    distortion: Floats
    density: Floats

    @classmethod
    def of(cls, stats: TensorStats, *, thetas: Sequence[float] = THETAS) -> Curve:
        """The curve of one tensor; `thetas=(0.5,)` gives that of plain rounding.

        Steps go from `max|w| / 32767` to `max|w|`, where at least one weight is not quantized to zero. A tensor of
        zeros, or without weights, has one point, of rate 0 and distortion 0.
        """
        if stats.max_abs < _SMALLEST:
            zero = np.zeros(1)
            return cls(zero, zero + thetas[0], zero, zero + stats.mean_square, zero)
        step, theta = _grid(stats.max_abs, thetas)
        rate, distortion, density = measure(stats, step, theta)
        on = lower_hull(rate, distortion)
        return cls(np.log(step[on]), theta[on], rate[on], distortion[on], density[on])

    @functools.cached_property
    def slopes(self) -> tuple[Floats, Floats]:
        """Nodes of the map between `log mu` (ascending) and `R` (descending), linear between nodes.

        Around a vertex, over nearly half (0.45) of the shorter adjacent chord on either side, the slope changes from
        that of one chord to that of the next. On the rest of a chord it stays near the chord's own slope; it is tilted
        by a quarter of the distance to the nearer neighbour's, so that the map has an inverse.

        Returns:
            log mu and R, each (2 chords,), or (1,) for a curve of one vertex.
        """
        length = np.diff(self.rate)  # (chords,), as are log_mu and tilt
        if not length.size:
            return np.zeros(1), self.rate
        log_mu = np.log(-np.diff(self.distortion)) - np.log(length)
        reach = np.concatenate([[0.0], 0.45 * np.minimum(length[1:], length[:-1]), [0.0]])  # (vertices,)
        rate = np.stack([self.rate[:-1] + reach[:-1], self.rate[1:] - reach[1:]], axis=1)  # (chords, 2): from, to
        gap = np.pad(-np.diff(log_mu), 1, constant_values=1.0)  # (vertices,)
        tilt = np.minimum(gap[1:], gap[:-1]) / 4
        tilted = np.stack([log_mu + tilt, log_mu - tilt], axis=1)
        return tilted.ravel()[::-1], rate.ravel()[::-1]

    @functools.cached_property
    def _integral(self) -> Floats:
        """D at the nodes of `slopes`, in their order: mu integrated from the highest rate down."""
        log_mu, rate = self.slopes
        pieces = _exponential_mean(log_mu[1:], log_mu[:-1]) * -np.diff(rate)
        return np.concatenate([[self.distortion[-1]], self.distortion[-1] + np.cumsum(pieces)])

    def rate_at_slope(self, log_mu: float) -> float:
        """R where `-dD/dR = mu`, clipped to the ends of the curve."""
        nodes, rate = self.slopes
        return float(np.interp(log_mu, nodes, rate))

    def log_slope(self, rate: float) -> float:
        """log of `mu = -dD/dR` at a rate, clipped to the ends of the curve."""
        nodes, rates = self.slopes
        return float(np.interp(rate, rates[::-1], nodes[::-1]))

    def distortion_at(self, rate: float) -> float:
        """D(R): strictly convex, decreasing, with derivative `-exp(log_slope(R))`; clipped to the ends."""
        return float(self.sample(np.array([rate]))[2][0])

    def sample(self, rate: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """log step, theta, distortion and density at rates, clipped to the ends of the curve; same shape as `rate`."""
        rate = np.clip(rate, self.rate[0], self.rate[-1])
        log_step, theta, density = (
            np.interp(rate, self.rate, values) for values in (self.log_step, self.theta, self.density)
        )
        nodes, rates = self.slopes
        k = np.clip(np.searchsorted(-rates, -rate, side="right") - 1, 0, rates.size - 1)
        mean = _exponential_mean(nodes[k], np.interp(rate, rates[::-1], nodes[::-1]))
        return log_step, theta, self._integral[k] + mean * (rates[k] - rate), density

    def at_slope(self, mu: float) -> Point:
        """The operating point where one more bit per weight lowers the distortion by `mu`."""
        return self.at_rate(self.rate_at_slope(math.log(mu)))

    def at_rate(self, rate: float) -> Point:
        """The operating point of a rate in bits per weight, clipped to the ends of the curve."""
        rate = float(np.clip(rate, self.rate[0], self.rate[-1]))
        log_step, theta, distortion, density = (float(v[0]) for v in self.sample(np.array([rate])))
        return Point(math.exp(log_step), theta, rate, distortion, density)

    def rate_at_step(self, log_step: Floats) -> Floats:
        """R where the step is exp(log_step), clipped to the ends of the curve; an array of the same shape."""
        return np.interp(-log_step, -np.minimum.accumulate(self.log_step), self.rate)

    def at_step(self, step: float) -> Point:
        """The operating point of a step on the hull, clipped to the ends of the curve."""
        return self.at_rate(float(self.rate_at_step(np.array([math.log(step)]))[0]))


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


def _grid(largest: float, thetas: Sequence[float]) -> tuple[Floats, Floats]:
    """Pairs of step and theta, each (pairs,), from the largest step to the smallest."""
    many, very_many, end = (math.log2(levels) for levels in (_MANY, _VERY_MANY, LARGEST_CODE))
    octaves = [np.arange(0, many, 1 / _STEPS[0]), np.arange(many, very_many, 1 / _STEPS[1])]
    octaves += [np.append(np.arange(very_many, end, 1 / _STEPS[2]), end)]
    coarse, fine = largest * np.exp2(-octaves[0]), largest * np.exp2(-np.concatenate(octaves[1:]))
    coarse, fine = coarse[coarse >= _SMALLEST], fine[fine >= _SMALLEST]
    pairs = [(s, t) for s in coarse for t in thetas] + [(s, min(thetas)) for s in fine]
    step, theta = np.array(pairs).T
    return step, theta


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


def _exponential_mean(a: Floats, b: Floats) -> Floats:
    """Mean of exp over [a, b]: (e^b - e^a) / (b - a), stable where b is near a."""
    half = np.abs(b - a) / 2
    small = half < 1e-4
    safe = np.where(small, 1.0, half)
    return np.asarray(np.exp((a + b) / 2) * np.where(small, 1 + half * half / 6, np.sinh(safe) / safe))


def lower_hull(rate: Floats, distortion: Floats) -> Ints:
    """Indices of the vertices of the lower convex hull of points (points,): rates ascend, distortions descend."""
    order = np.lexsort((distortion, rate))
    lowest = np.minimum.accumulate(distortion[order])
    falls = order[np.concatenate([[True], lowest[1:] < lowest[:-1]])]
    hull: list[tuple[float, float, int]] = []
    for point in zip(rate[falls].tolist(), distortion[falls].tolist(), falls.tolist(), strict=True):
        while hull and point[0] - hull[-1][0] <= 1e-9:
            hull.pop()
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.array([i for _, _, i in hull], dtype=np.int64)


def _above(a: tuple[float, float, int], b: tuple[float, float, int], c: tuple[float, float, int]) -> bool:
    """Whether b is no vertex between a and c: it lies above their chord, or the slope changes too little at it."""
    return (a[1] - b[1]) * (c[0] - b[0]) <= (b[1] - c[1]) * (b[0] - a[0]) * (1 + _BEND)
