"""BatchNorm statistics during and after fine-tuning."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from opq.models.observe import batchnorms
from opq.training.objective import inputs_and_targets, run, to_device


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Any], count: int) -> None:
    """Estimates running means and variances anew, as plain averages over `count` training batches; in place."""
    norms = [(norm, norm.momentum) for norm in batchnorms(model) if norm.running_mean is not None]
    if not norms:
        return
    model.eval()
    for norm, _ in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    device = next(model.parameters()).device
    for batch in itertools.islice(batches, count):
        run(model, inputs_and_targets(to_device(batch, device))[0])
    for norm, momentum in norms:
        norm.momentum = momentum
        norm.eval()
