"""A fixed grid on one weight of one module: put there, taken away, and kept through copies and pickles."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from opq.training.fixed_grid import FixedGrid
from opq.training.sites import grids, order, plain


def wrap(module: nn.Module, attribute: str, grid: FixedGrid) -> None:
    """Puts a grid between a module and one of its weights, by torch's parametrization."""
    fresh = not parametrize.is_parametrized(module)
    module.__dict__.setdefault("_opq_order", tuple(module._parameters))
    parametrize.register_parametrization(module, attribute, grid, unsafe=True)
    _shorten(type(module), attribute)
    if fresh:
        _make_copyable(type(module))


def unwrap(module: nn.Module, attribute: str) -> None:
    """Removes the grid; after the last one, the module has its class and the order of its parameters again."""
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    if grids(module):
        return
    own = module._parameters
    module._parameters = {k: own[k] for k in order(module) if k in own} | own
    del module.__dict__["_opq_order"]


def _shorten(cls: type, attribute: str) -> None:
    """Lets `module.attribute` call the grid's forward directly, if there is no other parametrization.

    The way through torch's two modules and their calls takes a twentieth of a small network's training step.
    """
    whole_way: Any = cls.__dict__[attribute]

    def get(module: Any) -> torch.Tensor:
        stack = module._modules["parametrizations"]._modules[attribute]
        if parametrize._cache_enabled or len(stack._modules) > 1 or not isinstance(stack._modules["0"], FixedGrid):
            seen: torch.Tensor = whole_way.fget(module)
            return seen
        return stack._modules["0"].forward(stack.original)

    setattr(cls, attribute, property(get, whole_way.fset))


def _make_copyable(cls: type) -> None:
    """Makes copies and pickles independent of the original.

    torch's copies of a parametrized module share its injected class, so that detaching one of them would break the
    other; and torch refuses to pickle such a module.
    """
    for name in ("__deepcopy__", "__getstate__"):
        if name in cls.__dict__:
            delattr(cls, name)
    cls.__reduce_ex__ = _reduce  # type: ignore[method-assign,assignment]


def _reduce(module: nn.Module, _protocol: object) -> tuple[Any, ...]:
    base = type(module).__bases__[0]
    getstate = getattr(base, "__getstate__", None)  # Python 3.10 has no object.__getstate__
    state = dict(module.__dict__ if getstate is None else getstate(module))
    state["_modules"] = {k: v for k, v in module._modules.items() if k != "parametrizations"}
    if isinstance(module, nn.RNNBase):  # holds a list of what its last forward computed with
        state["_flat_weights"] = [plain(module, str(name)) for name in module._flat_weights_names]
    return _rebuild, (base, state, {a: (plain(module, a), grid) for a, grid in grids(module).items()})


def _rebuild(base: type, state: dict[str, Any], own: dict[str, tuple[torch.Tensor, FixedGrid]]) -> Any:
    module: Any = object.__new__(base)
    for attribute, (w, _) in own.items():
        state["_parameters" if isinstance(w, nn.Parameter) else "_buffers"][attribute] = w
    module.__setstate__(state)
    for attribute, (_, grid) in own.items():
        wrap(module, attribute, grid)
    return module
