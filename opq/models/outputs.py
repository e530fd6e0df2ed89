"""The floating-point tensors in the output of a forward, whatever they are wrapped in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch


def floating(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors in a forward's output: a tensor, tuple, dict or dataclass, or a nest of these."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    return [tensor for _, member in _named(output) for tensor in floating(member)]


_INNER = ("hidden_states", "attentions", "past_key_values", "encoder_last_hidden_state", "cache_params", "mems")
"""How the names end of what a model only shows of its inside."""


def weighing(output: Any) -> list[torch.Tensor]:
    """The floating-point tensors in a forward's output that errors are measured on, each once.

    Left out is what stands beside the output proper: hidden states, attentions and caches by their names, and nests of
    tensors beside a tensor (the state of an LSTM, the inside of a transformer).
    """
    found = _proper(output)
    places = [(t.data_ptr(), t.shape, t.stride()) if t.numel() else (k,) for k, t in enumerate(found)]
    return [t for k, t in enumerate(found) if places.index(places[k]) == k]


def _proper(output: Any) -> list[torch.Tensor]:
    """Without what lies beside the output proper; all where nothing else is there."""
    if isinstance(output, torch.Tensor):
        return floating(output)
    members = [member for name, member in _named(output) if not name.endswith(_INNER)]
    direct = [t for member in members if isinstance(member, torch.Tensor) for t in floating(member)]
    nested = [t for member in members for t in _proper(member)]
    return direct or nested or floating(output)


def _named(output: Any) -> list[tuple[str, Any]]:
    """Names and members of a nest."""
    if isinstance(output, Mapping):
        return [(str(name), member) for name, member in output.items()]
    if isinstance(output, (tuple, list)):
        return [("", member) for member in output]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [(f.name, getattr(output, f.name)) for f in dataclasses.fields(output)]
    return []


def counted(output: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """An output (samples, length, ...) with the tokens outside the mask set to 0; one of another shape as it is."""
    if mask is None or output.shape[:2] != mask.shape:
        return output
    return output * mask.view(*mask.shape, *[1] * (output.dim() - 2)).to(output)
