"""Small sources, and what a source must hold."""

from __future__ import annotations

import torch
from torch import nn

from opq.sources import Source


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=1e-3), nn.Flatten(), nn.Linear(8, 4))


def assert_holds(source: Source, expected: dict[str, torch.Tensor]) -> None:
    """The source holds exactly these tensors, bit by bit."""
    assert set(source.names) == set(expected)
    for spec in source:
        got = source.tensor(spec.name)
        want = expected[spec.name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype) == (spec.shape, spec.dtype)
        assert torch.equal(got.reshape(-1).view(torch.uint8), want.detach().contiguous().reshape(-1).view(torch.uint8))
