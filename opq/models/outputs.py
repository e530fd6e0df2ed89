"""The floating-point tensors in the output of a forward, whatever they are wrapped in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch


def floating(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors in a forward's output: a tensor, tuple, dict or dataclass, or a nest of these."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        members: Iterable[Any] = output.values()
    elif isinstance(output, (tuple, list)):
        members = output
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        members = [getattr(output, f.name) for f in dataclasses.fields(output)]
    else:
        return []
    return [tensor for member in members for tensor in floating(member)]


def counted(output: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """An output (samples, length, ...) with the tokens outside the mask set to 0; one of another shape as it is."""
    if mask is None or output.shape[:2] != mask.shape:
        return output
    return output * mask.view(*mask.shape, *[1] * (output.dim() - 2)).to(output)
