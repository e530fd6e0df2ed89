"""Small networks and hand-made plans for the tests of attach and fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from opq.plan import Plan, TensorPlan


def plan_of(model: nn.Module, *, step: float = 0.1, theta: float = 0.75) -> Plan:
    """A plan that compresses every tensor of two dimensions or more on one step."""
    first: dict[int, str] = {}
    tensors = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        like = first.setdefault(id(tensor), name)
        dtype = "F32" if tensor.is_floating_point() else "I64"
        base: dict[str, Any] = {"name": name, "shape": tuple(tensor.shape), "dtype": dtype, "reason": "test"}
        if like != name:
            tensors.append(TensorPlan(**base, action="share", like=like))
        elif tensor.dim() >= 2:
            base |= {"step": step, "threshold": theta * step, "rounding": theta}
            tensors.append(TensorPlan(**base, action="compress"))
        else:
            tensors.append(TensorPlan(**base, action="keep", exact=True))
    return Plan(method="rd", tensors=tuple(tensors))


def mlp(seed: int = 0, *, norm: bool = False) -> nn.Sequential:
    """Two layers, 12 -> 16 -> 4, perhaps with BatchNorm between."""
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(16), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(nn.Linear(12, 16), *middle, nn.Linear(16, 4))


class Tied(nn.Module):
    """An embedding whose table is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embed(ids))
        return out


def learnable_batches(count: int = 8, size: int = 16, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches whose labels are a fixed linear function of the inputs."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(12, 4, generator=generator)
    inputs = [torch.randn(size, 12, generator=generator) for _ in range(count)]
    return [(x, (x @ rule).argmax(1)) for x in inputs]
