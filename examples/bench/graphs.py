"""Graph networks and state-space models in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class GraphConvolution(nn.Module):
    """Kipf and Welling 2017: the mean over the neighbours of a linear map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        sources, targets = edge_index
        degree = torch.zeros(len(x)).index_add(0, targets, torch.ones(len(targets))).clamp(min=1)
        return (
            torch.zeros(len(x), self.linear.out_features).index_add(0, targets, self.linear(x)[sources])
            / degree[:, None]
        )


class GCN(nn.Module):
    """Two graph convolutions over an edge list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GraphConvolution(32, 64), GraphConvolution(64, 8)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x, edge_index)), edge_index)


class DenseGCN(nn.Module):
    """The same over an adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        return adj @ self.second(torch.relu(adj @ self.first(x)))


class GraphAttention(nn.Module):
    """Velickovic and others 2018, one head, over an adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.score_from, self.score_to = nn.Linear(32, 64), nn.Linear(64, 1), nn.Linear(64, 1)
        self.head = nn.Linear(64, 8)

    def forward(self, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        values = self.values(x)
        scores = nn.functional.leaky_relu(self.score_from(values) + self.score_to(values).T)
        weights = scores.masked_fill(adjacency == 0, -1e9).softmax(-1)
        return self.head(torch.relu(weights @ values))


class StateSpace(nn.Module):
    """A diagonal linear recurrence between two linear maps (S4D, Gu and others 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards, self.outwards = nn.Linear(16, 96), nn.Linear(96, 8)
        self.rate = nn.Parameter(torch.linspace(-3, 0, 96))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.inwards(x).unbind(1)
        state, kept = torch.zeros_like(steps[0]), torch.exp(-self.rate.exp())
        for step in steps:
            state = kept * state + (1 - kept) * step
        return self.outwards(state)


GRAPHS: dict[str, Callable[[], nn.Module]] = {
    "gcn": GCN,
    "gcn-dense": DenseGCN,
    "gat-dense": GraphAttention,
    "state-space": StateSpace,
}
