"""Baselines: magnitude and LAMP pruning with a uniform grid for each tensor; pruning with values shared by k-means."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np
import torch

from opq.compression.result import Result
from opq.errors import OptionError
from opq.methods import pruning
from opq.methods.coded import Coded, in_table, on_grid
from opq.methods.job import Job
from opq.methods.kmeans import kmeans
from opq.methods.options import Pruning, place
from opq.methods.prune_and_share import chosen, prune_and_share
from opq.methods.sparsity_search import at_budget


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Uniform(Pruning):
    """What `magnitude` and `lamp` share: pruning, then a uniform grid for each tensor."""

    scope: Literal["tensor", "network"] = "tensor"
    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("bits", 2, 15, whole=True)
        if self.epochs:
            remedy = "Leave it out, and pass the result to opq.finetune."
            raise OptionError(place(type(self), "epochs"), got=self.epochs, wanted="0", remedy=remedy)

    def run(self, job: Job) -> Result:
        return uniform(job)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Magnitude(Uniform):
    """`magnitude`: the smallest weights are pruned, the others are rounded to a uniform grid for each tensor.

    Nothing is trained here: pass the result to `opq.finetune`. The options of training (`data`, `evaluate`,
    `checkpoint`, `epochs`, `lr`, `distill`, `teacher`) are those of all published methods and are not used.

    Args:
        sparsity: fraction of weights that is pruned; None: the one that meets the budget of the file.
        scope: `"tensor"`, the same sparsity in every tensor, or `"network"`, one threshold for all.
        bits: a kept weight has 2^(bits-1) - 1 levels on each side of zero.

    Raises:
        OptionError: a value has no meaning.
    """

    name: ClassVar[str] = "magnitude"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Lamp(Uniform):
    """`lamp`: weights with the lowest LAMP scores are pruned, the others are rounded to a uniform grid for each tensor.

    Nothing is trained here: pass the result to `opq.finetune`. The options of training (`data`, `evaluate`,
    `checkpoint`, `epochs`, `lr`, `distill`, `teacher`) are those of all published methods and are not used; nor is
    `scope`, since the score compares the weights of all tensors.

    Args:
        sparsity: fraction of weights that is pruned; None: the one that meets the budget of the file.
        bits: a kept weight has 2^(bits-1) - 1 levels on each side of zero.

    Raises:
        OptionError: a value has no meaning.
    """

    name: ClassVar[str] = "lamp"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class KMeans(Pruning):
    """`kmeans`: prune, train, share values by k-means, train the values (Deep Compression).

    Args:
        data: batches of (inputs, targets) in an iterable that can be read once an epoch, or a function of the epoch
            that gives one. Needed where `epochs` is above 0.
        evaluate: not used.
        checkpoint: a path from which an interrupted training goes on.
        epochs: passes over `data` after pruning, and again after sharing; 0: nothing is trained.
        lr: learning rate of Adam.
        distill: weight of a teacher's outputs in the loss, 0 to 1.
        teacher: the module whose outputs are distilled; None: the original network.
        sparsity: fraction of weights that is pruned; None: the one that meets the budget of the file.
        scope: `"network"`, one threshold for all, or `"tensor"`, the same sparsity in every tensor.
        bits: each tensor has 2^bits - 1 shared values, and zero.

    Raises:
        OptionError: a value has no meaning.
    """

    name: ClassVar[str] = "kmeans"

    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._number("bits", 1, 8, whole=True)

    def run(self, job: Job) -> Result:
        return kmeans_sharing(job)


def uniform(job: Job) -> Result:
    """`magnitude` and `lamp`: prune, round to a symmetric grid of `bits` bits. No training: see `opq.finetune`."""
    settings = job.settings
    assert isinstance(settings, Uniform)

    def make(sparsity: float) -> Result:
        lamp = isinstance(settings, Lamp)
        found = pruning.lamp(job.weights, sparsity) if lamp else chosen(job.weights, sparsity, settings.scope)
        return job.result({n: on_grid(n, w * found[n], settings.bits) for n, w in job.weights.items()}, {})

    return at_budget(job, make)[1]


def kmeans_sharing(job: Job) -> Result:
    """Deep Compression (Han, Mao, Dally, ICLR 2016) with this package's entropy coder in place of Huffman's code."""
    settings = job.settings
    assert isinstance(settings, KMeans)
    return prune_and_share(job, lambda name, w: shared_values(name, w, 2**settings.bits - 1))


def shared_values(name: str, w: torch.Tensor, k: int) -> Coded:
    """Non-zero weights share at most `k` values: k-means from centroids spaced evenly over their range."""
    flat = w.detach().double().flatten().numpy()
    live = np.flatnonzero(flat)
    labels, values = np.zeros(flat.size, np.int64), np.zeros(1, np.float64)
    if live.size:
        found = kmeans(flat[live, None], min(k, live.size), start="linear")
        values, labels[live] = np.concatenate([values, found.centroids[:, 0]]), found.labels + 1
    return in_table(name, w, values, labels)
