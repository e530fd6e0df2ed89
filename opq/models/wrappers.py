"""Modules that hold the user's model as their only content, and under whose names it would not be known again."""

from __future__ import annotations

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DistributedDataParallel` or `DataParallel`; any other as it is."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrapped(model.module)
    compiled = dict(model.named_children()).get("_orig_mod")  # importing torch's compiler to ask it takes seconds
    return model if compiled is None else unwrapped(compiled)
