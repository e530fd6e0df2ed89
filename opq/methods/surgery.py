"""Dynamic network surgery as OLMP uses it: masks that follow a threshold while their layer is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from opq.methods.pruning import hysteresis
from opq.methods.training_copy import straight


class Layer(nn.Module):
    """One layer's threshold, shared by its weight and its bias; in buffers, so that checkpoints contain it.

    `mu` and `sigma` are those of the weights that are not zero: of a network that was pruned before, the kept ones.
    """

    mu: torch.Tensor
    sigma: torch.Tensor
    c: torch.Tensor
    step: torch.Tensor

    def __init__(self, tensors: Iterable[torch.Tensor], gamma: float):
        super().__init__()
        magnitudes = torch.cat([w.detach().flatten().abs() for w in tensors]).double()
        magnitudes = magnitudes[magnitudes > 0] if magnitudes.any() else torch.zeros(1, dtype=torch.float64)
        self.gamma = gamma
        self.register_buffer("mu", magnitudes.mean())
        self.register_buffer("sigma", magnitudes.std(correction=0))
        self.register_buffer("c", torch.tensor(-torch.inf, dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def threshold(self, c: float | None = None) -> float:
        """`t = mu + c sigma`; before the first search minus infinity, so that nothing is pruned."""
        c = float(self.c) if c is None else c
        return float(self.mu) + c * float(self.sigma) if math.isfinite(c) else c


class Surgery(nn.Module):
    """The mask of one tensor: `w m` in the forward pass, a gradient for every weight in the backward pass."""

    mask: torch.Tensor

    def __init__(self, w: torch.Tensor, layer: Layer, *, leads: bool):
        super().__init__()
        self.layer, self.leads, self.frozen = layer, leads, False
        self.register_buffer("mask", torch.ones_like(w, dtype=torch.bool))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        if self.training and not self.frozen and self._due():
            self.mask.copy_(hysteresis(self.mask, w, self.layer.threshold()))
        return straight(w, w.detach() * self.mask)

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        return w

    def _due(self) -> bool:
        """Whether the mask is updated in this step: with probability 1 / (1 + gamma step).

        The layer's first tensor counts its steps.
        """
        step = int(self.layer.step)
        if self.leads:
            self.layer.step += 1
        return bool(torch.rand(()) * (1 + self.layer.gamma * step) < 1)
