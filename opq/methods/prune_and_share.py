"""Prune, train, share values by k-means, train the shared values: Deep Compression and product quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from opq.compression.result import Result
from opq.file import stored
from opq.methods import pruning
from opq.methods.coded import Coded, in_product, in_table
from opq.methods.job import Job
from opq.methods.options import Pruning
from opq.methods.product import ProductCode
from opq.methods.sparsity_search import at_budget
from opq.methods.training_copy import Live, Masked, Shared

Code = Callable[[str, torch.Tensor], Coded]
"""Makes the codes of a pruned tensor, given its name and its values."""


def prune_and_share(job: Job, code: Code) -> Result:
    """The result; with `epochs=0` from the weights alone, otherwise trained after pruning and again after sharing.

    A budget of the file is met twice: before training, to find the sparsity, and with the trained weights.
    """
    settings = job.settings
    assert isinstance(settings, Pruning)
    if not settings.epochs:
        return at_budget(job, lambda s: _shared(job, job.weights, s, code, {}))[1]
    live = job.live()
    sparsity, _ = at_budget(job, lambda s: _shared(job, job.weights, s, code, {}))
    live.put({n: Masked(m.to(live.plain(n).device)) for n, m in chosen(job.weights, sparsity, settings.scope).items()})
    _train(job, live, "prune")
    live.take(seen=True)
    trained, kept = {n: live.plain(n).cpu().float() for n in job.weights}, job.kept(live)
    sparsity, _ = at_budget(job, lambda s: _shared(job, trained, s, code, kept), least=sparsity)
    coded = _coded(trained, sparsity, settings.scope, code)
    shared = {name: _live(c, live.plain(name).device) for name, c in coded.items()}
    live.put(shared)
    _train(job, live, "share")
    return job.result({n: _trained(n, coded[n], shared[n]) for n in coded}, job.kept(live))


def chosen(w: Mapping[str, torch.Tensor], sparsity: float, scope: str) -> pruning.Masks:
    """Masks by magnitude."""
    return pruning.uniform(w, sparsity) if scope == "tensor" else pruning.overall(w, sparsity)


def _coded(w: Mapping[str, torch.Tensor], sparsity: float, scope: str, code: Code) -> dict[str, Coded]:
    found = chosen(w, sparsity, scope)
    return {name: code(name, w[name] * found[name]) for name in w}


def _shared(
    job: Job, w: Mapping[str, torch.Tensor], sparsity: float, code: Code, kept: Mapping[str, torch.Tensor]
) -> Result:
    assert isinstance(job.settings, Pruning)
    return job.result(_coded(w, sparsity, job.settings.scope, code), kept)


def _train(job: Job, live: Live, stage: str) -> None:
    trainable = [p for p in live.model.parameters() if p.requires_grad]
    job.train(live, f"{job.options.method}-{stage}", torch.optim.Adam(trainable, job.settings.lr))


def _live(coded: Coded, device: torch.device) -> Shared:
    """A codebook as parameters to train, with its labels fixed."""
    item, shape = coded.stored, tuple(coded.weights.shape)
    assert isinstance(item, stored.Table | stored.Product)
    centroids = item.values[:, None] if isinstance(item, stored.Table) else item.centroids
    labels = torch.from_numpy(item.indices.reshape(-1).astype(np.int64))
    return Shared(torch.from_numpy(centroids), labels, shape).to(device)


def _trained(name: str, coded: Coded, shared: Shared) -> Coded:
    """The same labels with the trained codebook."""
    centroids = shared.centroids.detach().cpu().numpy()
    item = coded.stored
    if isinstance(item, stored.Table):
        return in_table(name, coded.weights, centroids[:, 0], np.asarray(item.indices))
    assert isinstance(item, stored.Product)
    rounded = centroids.astype(np.float16).astype(np.float32)
    return in_product(name, coded.weights, ProductCode(rounded, np.asarray(item.indices)))
