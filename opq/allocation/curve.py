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

from opq.allocation.operating_points import SMALLEST_STEP, measure, pairs
from opq.allocation.stats import TensorStats
from opq.base.arrays import Floats, Ints

THETAS = (0.5, 0.54, 0.58, 0.62, 0.66, 0.7, 0.74, 0.8)
"""Values of theta that are tried: the optimum for a Laplacian lies between 0.5 (high rates) and 0.793 (0.2 bits), see
`laplace.best_quantizer` and docs/mathematics.md. Their number trades time for the accuracy of the hull."""
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
        if stats.max_abs < SMALLEST_STEP:
            zero = np.zeros(1)
            return cls(zero, zero + thetas[0], zero, zero + stats.mean_square, zero)
        step, theta = pairs(stats.max_abs, thetas)
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
