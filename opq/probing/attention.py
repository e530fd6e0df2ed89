"""What the output projection of `nn.MultiheadAttention` is multiplied by.

The module hands the projection's weight to a function and never calls the projection, so that no hook of it runs.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from opq.models.observe import Hook


@contextlib.contextmanager
def projecting(model: nn.Module, wanted: Mapping[str, nn.Module], see: Hook) -> Iterator[None]:
    """Calls `see(name, projection, inputs)` for those of the modules that are such projections, before each runs.

    Args:
        wanted: modules of the model by name.
    """

    def hook(name: str) -> Callable[..., None]:
        def before(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(name, module.out_proj, [_heads(module, args, kwargs)])

        return before

    names = {id(module): name for name, module in wanted.items()}
    handles = []
    try:
        for module in model.modules():
            if _hands_over(module) and (name := names.get(id(module.out_proj))) is not None:
                handles.append(module.register_forward_pre_hook(hook(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hands_over(module: nn.Module) -> bool:
    """Whether it is attention as torch has it; a subclass with a forward of its own may call its projection."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


@torch.no_grad()
def _heads(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """What the heads give in one call, as the module's output has it: with an identity for the projection."""
    weight = module.out_proj.weight
    identity = nn.Linear(1, 1, bias=False, device="meta")
    identity.weight = nn.Parameter(torch.eye(len(weight), dtype=weight.dtype, device=weight.device))
    twin = nn.Module.__new__(type(module))
    twin.__dict__ = {**vars(module), "_modules": {**module._modules, "out_proj": identity}}
    twin.__dict__["_forward_pre_hooks"] = OrderedDict()
    found: torch.Tensor = twin.forward(*args, **kwargs)[0]
    return found
