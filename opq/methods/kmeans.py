"""k-means over vectors: Lloyd's algorithm, with reproducible results.

    min over C, l of  sum_j |x_j - c_l(j)|^2

Letters: `x` n vectors of d weights, (n, d); `c` K centroids, (K, d); `l` the label of each vector, (n,). Sums are taken
in float64 in a fixed order, so that the number of threads can matter only where distances are equal.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

from opq.errors import CentroidsError, OptionError

Vectors = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
CHUNK = 1 << 22
"""Distances held at once: 32 MiB of float64. A choice that trades memory for the overhead of numpy calls."""


@dataclasses.dataclass(frozen=True, slots=True)
class Clusters:
    """K centroids (K, d) and the label of each of the n vectors, (n,)."""

    centroids: Vectors
    labels: Labels
    error: float
    """Sum of the squared distances."""


def kmeans(
    x: Vectors,
    k: int,
    *,
    seed: int = 0,
    start: Literal["plus", "linear"] = "plus",
    iterations: int = 50,
    zero: bool = False,
) -> Clusters:
    """Centroids and labels at a fixed point of Lloyd's algorithm, or after `iterations` rounds.

    Args:
        x: (n, d).
        k: number of centroids; without the zero centroid, at most n.
        start: `plus` draws them by k-means++ (Arthur and Vassilvitskii 2007); `linear` spaces them evenly from the
            smallest to the largest value, for d = 1 (Deep Compression, section 3).
        zero: whether centroid 0 is, and stays, the zero vector.

    Raises:
        CentroidsError: fewer vectors than centroids.
    """
    free = k - 1 if zero else k
    _check(x, free, start)
    c = _linear(x, free) if start == "linear" else _plus(x, free, seed, zero)
    c = np.concatenate([np.zeros((1, x.shape[1])), c]) if zero else c
    labels, distances = nearest(x, c)
    for _ in range(iterations):
        c = _means(x, labels, distances, c, zero)
        before = labels
        labels, distances = nearest(x, c)
        if np.array_equal(before, labels):
            break
    return Clusters(c, labels, float(distances.sum()))


def nearest(x: Vectors, c: Vectors) -> tuple[Labels, Vectors]:
    """For each vector, the label of its nearest centroid (the first of equally near ones), and the squared distance."""
    rows = max(1, CHUNK // len(c))
    squares = (c**2).sum(1)
    parts = [np.argmin(squares - 2 * (x[s : s + rows] @ c.T), axis=1) for s in range(0, len(x), rows)]
    labels = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return labels, ((x - c[labels]) ** 2).sum(1)


def _check(x: Vectors, k: int, start: str) -> None:
    if x.ndim != 2 or (start == "linear" and x.shape[1] != 1):
        raise OptionError("k-means: wrong shape of the vectors", got=x.shape, wanted="n x d; n x 1 for start='linear'")
    if not 1 <= k <= len(x):
        raise CentroidsError("k-means: more centroids than vectors", got=f"{k} for {len(x)}", wanted=f"1 to {len(x)}")


def _linear(x: Vectors, k: int) -> Vectors:
    return np.linspace(x.min(), x.max(), k)[:, None]


def _plus(x: Vectors, k: int, seed: int, zero: bool) -> Vectors:
    """Each centroid is a vector drawn with probability in proportion to its squared distance from those before."""
    rng = np.random.default_rng(seed)
    chosen = np.empty((k, x.shape[1]))
    distances = (x**2).sum(1) if zero else np.ones(len(x))
    for j in range(k):
        mass = np.cumsum(distances)
        at = int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
        chosen[j] = x[min(at, len(x) - 1)]
        own = ((x - chosen[j]) ** 2).sum(1)
        distances = np.minimum(distances, own) if j or zero else own
    return chosen


def _means(x: Vectors, labels: Labels, distances: Vectors, c: Vectors, zero: bool) -> Vectors:
    """The mean of each cluster, (K, d); for an empty cluster, the vector that is farthest from its own centroid."""
    counts = np.bincount(labels, minlength=len(c))
    sums = np.stack([np.bincount(labels, x[:, j], minlength=len(c)) for j in range(x.shape[1])], axis=1)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], c)
    empty = [e for e in np.flatnonzero(counts == 0) if not (zero and e == 0)]
    if empty:
        farthest = np.argsort(-distances, kind="stable")[: len(empty)]
        moved = distances[farthest] > 0
        means[np.array(empty)[moved]] = x[farthest[moved]]
    if zero:
        means[0] = 0
    return means
