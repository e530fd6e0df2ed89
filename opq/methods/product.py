"""Product quantization of one tensor: blocks of d weights, a codebook of K centroids, one label a block.

Letters: `w` a weight tensor of rows (output channels) x columns, `d` the block size, `c` K x d centroids, `l` labels.
Blocks run along the rows; label 0 is the zero block, so pruned blocks stay pruned. `encode` and `decode` are inverse on
the codebook: `decode(encode(decode(l))) = decode(l)`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch

from opq.errors import CentroidsError, OptionError
from opq.methods.kmeans import kmeans, nearest


@dataclasses.dataclass(frozen=True, slots=True)
class ProductCode:
    """One tensor as labels into a codebook of vectors."""

    centroids: npt.NDArray[np.float32]
    """(K, d); row 0 is zero."""
    labels: npt.NDArray[np.int64]
    """(blocks,) in row order: 0 for a pruned block, the others numbered by falling frequency."""


def block_size(shape: tuple[int, ...], d: int) -> int:
    """The largest divisor of the columns that is at most `d`, so that no block crosses a row.

    Columns of a convolution are input channel x kernel. A row shorter than `d` is one block.
    """
    columns = _columns(shape)
    return next(size for size in range(min(d, columns), 0, -1) if columns % size == 0)


def blocks(w: torch.Tensor, d: int) -> npt.NDArray[np.float64]:
    """The blocks of `w`, (n / d, d).

    Raises:
        OptionError: `d` does not divide the columns.
    """
    columns = _columns(tuple(w.shape))
    if d < 1 or columns % d:
        raise OptionError("blocks do not fit the rows", got=f"d={d}", wanted=f"a divisor of {columns} columns")
    return w.detach().cpu().double().reshape(-1, d).numpy()


def encode(w: torch.Tensor, d: int, k: int, *, seed: int = 0, iterations: int = 50) -> ProductCode:
    """Codebook and labels that minimise the squared error, by k-means with one centroid held at zero.

    Centroids are rounded to float16 before the labels are chosen, so that each label is nearest among those stored.

    Raises:
        CentroidsError: more centroids than blocks.
    """
    x = blocks(w, d)
    if k > len(x):
        raise CentroidsError("more centroids than blocks", got=f"{k} for {len(x)} blocks", wanted=f"1 to {len(x)}")
    live = x[np.any(x != 0, axis=1)]
    free = min(k, len(live) + 1)
    found = kmeans(live, free, seed=seed, iterations=iterations, zero=True) if free > 1 else None
    c = np.zeros((1, d)) if found is None else found.centroids.astype(np.float16).astype(np.float64)
    labels, _ = nearest(x, c)
    order, rank = by_frequency(labels, len(c))
    return ProductCode(c[order].astype(np.float32), rank[labels])


def decode(product: ProductCode, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights that the labels stand for, float32."""
    return torch.from_numpy(product.centroids[product.labels]).reshape(shape)


def _columns(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def by_frequency(labels: npt.NDArray[np.integer], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The order of the entries: 0, then those in use by falling frequency, which suits entropy coding. And the inverse:
    the new label of each old one."""
    counts = np.bincount(labels.reshape(-1), minlength=k)
    order = np.argsort(-counts[1:], kind="stable") + 1
    order = np.concatenate([[0], order[counts[order] > 0]]).astype(np.int64)
    rank = np.zeros(k, np.int64)
    rank[order] = np.arange(len(order))
    return order, rank
