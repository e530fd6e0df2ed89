"""Product quantization of a pruned network (Fang, Liu, Xie, Zhang, Liu; CCC 2020). docs/methods/pq.md.

prune, train, cut every tensor into blocks of d weights, k-means with K centroids, train the codebooks.
"""

from __future__ import annotations

import torch

from opq.compression.result import Result
from opq.methods.coded import Coded, in_product
from opq.methods.job import Job
from opq.methods.options import ProductQuantization
from opq.methods.product import block_size, encode
from opq.methods.prune_and_share import prune_and_share

BLOCKS_A_CENTROID = 4
"""A tensor has at least so many blocks for each of its centroids, so that its codebook is no larger than it saves."""
FEWEST = 16
"""Where that leaves fewer centroids than this, blocks are made smaller."""


def pq(job: Job) -> Result:
    """Pruning, then product codes of `centroids` vectors; the budget, where there is one, sets the sparsity."""
    settings = job.settings
    assert isinstance(settings, ProductQuantization)
    return prune_and_share(job, lambda name, w: product(name, w, settings, job.options.seed))


def product(name: str, w: torch.Tensor, settings: ProductQuantization, seed: int) -> Coded:
    """One tensor: d by its kind, at most what its rows are divided by; K at most what its blocks are enough for."""
    d = block_size(tuple(w.shape), settings.conv if w.dim() > 2 else settings.linear)
    while d > 1 and _most(w, d) < min(FEWEST, settings.centroids):
        d = block_size(tuple(w.shape), d - 1)
    k = max(2, min(settings.centroids, _most(w, d)))
    return in_product(name, w, encode(w, d, min(k, w.numel() // d), seed=seed, iterations=25))


def _most(w: torch.Tensor, d: int) -> int:
    """Centroids that the tensor's blocks are enough for."""
    return w.numel() // d // BLOCKS_A_CENTROID
