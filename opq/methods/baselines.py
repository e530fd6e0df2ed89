"""Baselines: magnitude and LAMP pruning with one uniform grid a tensor; pruning with values shared by k-means."""

from __future__ import annotations

import numpy as np
import torch

from opq.compression.result import Result
from opq.methods import pruning
from opq.methods.coded import Coded, in_table, on_grid
from opq.methods.job import Job
from opq.methods.kmeans import kmeans
from opq.methods.options import Sharing, Uniform
from opq.methods.prune_and_share import chosen, prune_and_share
from opq.methods.sparsity_search import at_budget


def uniform(job: Job) -> Result:
    """`magnitude` and `lamp`: prune, round to a symmetric grid of `bits` bits. No training: see `opq.finetune`."""
    settings = job.settings
    assert isinstance(settings, Uniform)

    def make(sparsity: float) -> Result:
        lamp = job.options.method == "lamp"
        found = pruning.lamp(job.weights, sparsity) if lamp else chosen(job.weights, sparsity, settings.scope)
        return job.result({n: on_grid(n, w * found[n], settings.bits) for n, w in job.weights.items()}, {})

    return at_budget(job, make)[1]


def kmeans_sharing(job: Job) -> Result:
    """Deep Compression (Han, Mao, Dally, ICLR 2016) with this package's entropy coder in place of Huffman's code."""
    settings = job.settings
    assert isinstance(settings, Sharing)
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
