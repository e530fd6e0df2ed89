"""Product quantization of a pruned network (Fang, Liu, Xie, Zhang, Liu; CCC 2020). docs/methods/pq.md.

The steps: prune, train, cut every tensor into blocks of d weights, k-means with K centroids, train the codebooks.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from opq.compression.result import Result
from opq.methods.coded import Coded, in_product
from opq.methods.job import Job
from opq.methods.options import Pruning
from opq.methods.product import block_size, encode
from opq.methods.prune_and_share import prune_and_share

BLOCKS_A_CENTROID = 4
"""The least number of blocks for each centroid of a tensor. A choice: with fewer, the codebook would take more bytes
than it saves."""
FEWEST = 16
"""If a tensor's blocks are enough for fewer centroids than this, smaller blocks are used. A choice."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ProductQuantization(Pruning):
    """`pq`: prune, train, product-quantize, train the codebooks.

    Args:
        data: batches of (inputs, targets) in an iterable that can be read once an epoch, or a function of the epoch
            that gives one. Needed where `epochs` is above 0.
        evaluate: not used.
        checkpoint: a path from which an interrupted training continues.
        epochs: passes over `data` after pruning, and again after quantization; 0: nothing is trained.
        lr: learning rate of Adam.
        distill: weight of a teacher's outputs in the loss, 0 to 1.
        teacher: the module whose outputs are distilled; None: the original network.
        sparsity: fraction of weights that is pruned; None: the one that meets the budget of the file.
        scope: `"network"`, one threshold for all, or `"tensor"`, the same sparsity in every tensor.
        centroids: K, the number of vectors in a codebook; 256 gives 8-bit codes.
        linear: d, the number of weights in a vector, for matrices.
        conv: d, for convolutions.

    Raises:
        OptionError: a value has no meaning.
    """

    name: ClassVar[str] = "pq"

    centroids: int = 256
    linear: int = 4
    conv: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("centroids", 2, 4096, whole=True)
        self._number("linear", 1, 4096, whole=True)
        self._number("conv", 1, 4096, whole=True)

    def run(self, job: Job) -> Result:
        return pq(job)


def pq(job: Job) -> Result:
    """Pruning, then product quantization with `centroids` vectors; a budget, if there is one, sets the sparsity."""
    settings = job.settings
    assert isinstance(settings, ProductQuantization)
    return prune_and_share(job, lambda name, w: product(name, w, settings, job.options.seed))


def product(name: str, w: torch.Tensor, settings: ProductQuantization, seed: int) -> Coded:
    """One tensor: d by the tensor's kind, and a divisor of its columns; K at most what its blocks are enough for."""
    d = block_size(tuple(w.shape), settings.conv if w.dim() > 2 else settings.linear)
    while d > 1 and _most(w, d) < min(FEWEST, settings.centroids):
        d = block_size(tuple(w.shape), d - 1)
    k = max(2, min(settings.centroids, _most(w, d)))
    return in_product(name, w, encode(w, d, min(k, w.numel() // d), seed=seed, iterations=25))


def _most(w: torch.Tensor, d: int) -> int:
    """The number of centroids that the tensor's blocks are enough for."""
    return w.numel() // d // BLOCKS_A_CENTROID
