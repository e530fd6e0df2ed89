"""What the matrices of stacked experts are multiplied by, which no hook sees: of each expert the tokens sent to it.

transformers (5.0 or newer) keeps all experts of a layer in tensors of three dimensions, and calls their module with the
tokens, the experts chosen for each, and how much each counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

_DOWN = "down_proj"


def matrices(module: nn.Module) -> tuple[str, ...]:
    """The names of the stacks (experts, ...) of a module whose inputs `seen` gives; none for other modules."""
    told = all(hasattr(module, name) for name in ("is_transposed", "has_gate", "has_bias", "num_experts"))
    names = (_up(module), _DOWN) if told else ()
    own = dict(module.named_parameters(recurse=False))
    return names if all(name in own and own[name].dim() == 3 for name in names) else ()


def turned(module: nn.Module) -> bool:
    """Whether each expert's matrix is stored (inputs, outputs)."""
    return bool(module.is_transposed)


def seen(module: nn.Module, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By weight name the inputs (experts, tokens, d) of each stack in one call; experts of fewer tokens have zeros.

    Args:
        given: the tensors of the call: tokens (tokens, d), and integers (tokens, chosen).
    """
    x = next(t for t in given if t.is_floating_point())
    chosen = next(t for t in given if not t.is_floating_point())
    up, bias = getattr(module, _up(module)), getattr(module, f"{_up(module)}_bias", None)
    outer, inner = list[torch.Tensor](), list[torch.Tensor]()
    for number in range(len(up)):
        own = x[(chosen == number).any(-1)]
        y = own @ (up[number] if turned(module) else up[number].T)
        y = y if bias is None else y + bias[number]
        outer.append(own)
        inner.append(module._apply_gate(y) if module.has_gate else module.act_fn(y))  # type: ignore[operator]
    return {_up(module): pad_sequence(outer, batch_first=True), _DOWN: pad_sequence(inner, batch_first=True)}


def _up(module: nn.Module) -> str:
    return "gate_up_proj" if module.has_gate else "up_proj"
