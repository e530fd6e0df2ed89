"""Attaches and detaches the fixed compression module: masks and codebooks are fixed, only weights are trained.

After `attach(model, plan)` any training loop can be used: the forward pass uses pruned, quantized weights, and the
optimizer updates the plain ones (`fixed_grid` has the mathematics). `opq.collect(model, plan)` proves that the weights
are on the plan's grid and gives the file; `detach(model)` removes the module again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from opq.errors import AttachError, NativeError, OptionError
from opq.models.attachment import is_attached
from opq.models.wrappers import unwrapped
from opq.plan import Plan, TensorPlan
from opq.quantizing.grid import dequantize, quantize
from opq.training import kernel
from opq.training.fixed_grid import FixedGrid, has_kernel, is_sharded, mask_like
from opq.training.grid_plan import is_other, on_grids
from opq.training.parametrizing import unwrap, wrap
from opq.training.proving import exact_codes
from opq.training.sites import find, grids, plain

if TYPE_CHECKING:
    from opq.compression.result import Result


def attach(model: nn.Module, plan: Plan | Result, *, native: bool | None = None) -> nn.Module:
    """Attaches the fixed compression module to a live model, in place; returns the model.

    With a `Plan`, the masks are determined by quantizing the present weights. Values do not change, except that a
    weight on the edge between two levels moves to its own level. With a compression result, its values (codes after
    error feedback, re-normalised statistics) are first copied into the model, and the masks are its nonzero codes.
    Parameters keep their identity, so that an existing optimizer continues to work. Attach before `fully_shard`;
    before or after `DistributedDataParallel` and `torch.compile`.

    A trellis cannot be trained, nor can steps by row. In their place come the plain grids of the same rates, so that
    the file keeps its size, and the model's present weights; a `GridWarning` says so.

    Args:
        native: True for the C++ kernel that `opq native` compiles, False for torch's own operations, None for the
            kernel if it is compiled. It is used for float32 weights on a CPU, and gives the same values faster.

    Raises:
        AttachError: the module is attached already, the model is sharded already, or torch cannot parametrize it.
        MismatchError: names, shapes or ties of the plan and the model differ; they are listed.
        OptionError: the plan's method has codebooks that are not grids.
        NativeError: the kernel is requested but not compiled.

    Example:
        >>> import opq
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> plan = opq.solve(model, bits=6, probe=False)
        >>> opq.attach(model, plan) is model
        True
        >>> type(model[0].parametrizations.weight[0]).__name__
        'FixedGrid'
    """
    inner = unwrapped(model)
    _check_attachable(inner)
    if native and kernel.operator() is None:
        raise NativeError("there is no compiled kernel", got="native=True", wanted=f"the file {kernel.path()}")
    given = plan if isinstance(plan, Plan) else plan.plan
    sites = find(inner, given)
    trained = on_grids(given, lambda name: plain(*sites[name][0]))
    result = plan if not isinstance(plan, Plan) and trained is given else None
    plan = trained
    _check_grids(plan)
    if result is not None:
        inner.load_state_dict(result.state_dict())
    codes = {n: quantize(plain(*of[0]), plan[n]) if result is None else result.codes[n] for n, of in sites.items()}
    for name, of in sites.items():
        grid = _fixed(plain(*of[0]), plan[name], codes.pop(name), native)
        for module, attribute in of:
            wrap(module, attribute, grid)
    return model


@torch.no_grad()
def _fixed(w: torch.Tensor, plan: TensorPlan, codes: torch.Tensor, native: bool | None) -> FixedGrid:
    """The grid of weights with these codes, whose mask is the nonzero codes.

    Weights on the edge between two levels that the grid would round to the other one are moved to their own level.
    """
    codes = codes.to(w.device)
    largest = int(codes.abs().max()) if codes.numel() else 0
    compiled = native is not False and has_kernel(w, plan, largest)
    mask = mask_like(w, codes != 0, byte=compiled or w.device.type != "cpu")
    grid = FixedGrid(plan, mask, largest, compiled=compiled)
    own = dequantize(codes, plan, w.dtype)
    off = (grid(w) - own).abs() > plan.step / 2
    if bool(off.any()):
        w[off] = own[off]
    return grid


def plan_in_force(model: nn.Module, plan: Plan | Result) -> Plan:
    """The plan that is trained: the given one, with the attached plain grids in place of other ones."""
    plan = plan if isinstance(plan, Plan) else plan.plan
    found = {grid.plan.name: grid.plan for _, _, grid in attached(model)}
    tensors = (found.get(t.name, t) if is_other(t) else t for t in plan)
    return plan.replace(tensors=tuple(tensors))


def _check_attachable(model: nn.Module) -> None:
    if is_attached(model):
        raise AttachError("the compression module is attached already", wanted="a model without it")
    if isinstance(model, torch.jit.ScriptModule):
        raise AttachError("a ScriptModule cannot be parametrized", wanted="the torch.nn.Module that it was made from")
    if any(map(is_sharded, model.parameters())):
        remedy = "Call opq.attach(model, plan) before fully_shard(model)."
        raise AttachError("the model is sharded already", wanted="whole tensors", remedy=remedy)


def _check_grids(plan: Plan) -> None:
    for tensor in plan.compressed:
        if tensor.codebook != "grid":
            remedy = "Compress with method='rd' or 'opq': their codebooks are multiples of a step."
            raise OptionError(f"tensor {tensor.name!r} has no grid to train on", got=tensor.codebook, remedy=remedy)


def detach(model: nn.Module, *, bake: bool = False) -> nn.Module:
    """Removes the compression module in place; returns the model.

    Classes, parameter identities and their order are as before `attach`. The values are the plain weights,
    or with `bake=True` the pruned and quantized ones that the forward pass used.

    Raises:
        AttachError: nothing is attached, or another parametrization was registered on top.

    Example:
        >>> import opq
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> opq.detach(opq.attach(model, opq.solve(model, bits=6, probe=False)), bake=True) is model
        True
        >>> 0.1 < float((model[0].weight != 0).float().mean()) <= 1.0
        True
    """
    found = list(attached(model))
    if not found:
        raise AttachError("no compression module is attached")
    for module, attribute, _ in found:
        stacks: Any = module.parametrizations
        if len(stacks[attribute]) > 1:
            fact = f"{type(module).__name__}.{attribute} has another parametrization on top"
            raise AttachError(fact, remedy="Remove that one first.")
    if bake:
        for module, attribute, grid in found:
            _bake(plain(module, attribute), grid)
    for module, attribute, _ in found:
        unwrap(module, attribute)
    return model


@torch.no_grad()
def _bake(w: torch.Tensor, grid: FixedGrid) -> None:
    if is_sharded(w):
        raise AttachError("cannot bake a sharded model in place", remedy="Use opq.collect on every rank, then save.")
    w.copy_(dequantize(exact_codes(grid(w), grid.plan), grid.plan, w.dtype))


def attached(model: nn.Module) -> Iterator[tuple[nn.Module, str, FixedGrid]]:
    """Every module and attribute with a grid; tied tensors once for each module."""
    for module in list(model.modules()):
        for attribute, grid in grids(module).items():
            yield module, attribute, grid
