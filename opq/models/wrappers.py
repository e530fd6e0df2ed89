"""Modules that only wrap the user's model, and change the names of its tensors."""

from __future__ import annotations

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DistributedDataParallel` or `DataParallel`; any other as it is."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrapped(model.module)
    compiled = dict(model.named_children()).get("_orig_mod")  # importing torch's compiler to ask it takes seconds
    return model if compiled is None else unwrapped(compiled)
