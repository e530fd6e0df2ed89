"""Modules that multiply by several weights, or by what no hook sees: which weights, and what they are multiplied by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from opq.probing import experts, recurrent
from opq.quantizing.moment import Layout


def layouts(module: nn.Module) -> dict[str, Layout]:
    """By name the weights of a module whose inputs `seen` gives; none for a module whose inputs a hook sees."""
    stacks = experts.matrices(module)
    if stacks:
        count = len(getattr(module, stacks[0]))
        return dict.fromkeys(stacks, Layout(groups=count, transposed=experts.turned(module), stacked=True))
    return dict.fromkeys(recurrent.matrices(module), Layout())


def seen(module: nn.Module, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By name the inputs (rows, d) of each weight, of a stack (groups, rows, d), in one call with these tensors."""
    return experts.seen(module, given) if experts.matrices(module) else recurrent.seen(module, given)
