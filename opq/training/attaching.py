"""Attach and detach the fixed compression module: masks and codebooks stay, only weights move.

`attach(model, plan)`, then any training loop: the forward pass sees pruned, quantized weights and the optimizer the
plain ones (`opq.fixed` has the mathematics). `opq.collect(model, plan)` proves what was trained and gives the file;
`detach(model)` gives the model as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from opq.errors import AttachError, NativeError, OffCodebookError, OptionError
from opq.models.attachment import is_attached
from opq.models.wrappers import unwrapped
from opq.plan import LARGEST_CODE, Plan, TensorPlan
from opq.quantizing.grid import dequantize, quantize
from opq.training import kernel
from opq.training.fixed_grid import FixedGrid, digest, has_kernel, is_sharded, mask_like, whole
from opq.training.sites import find, grids, order, plain, tensors

if TYPE_CHECKING:
    from opq.compression.result import Result


def attach(model: nn.Module, plan: Plan | Result, *, native: bool | None = None) -> nn.Module:
    """Put the fixed compression module on a live model, in place; returns the model.

    With a `Plan`, its quantizer of the present weights decides the masks, and no value changes but that of a
    weight on the very edge of a level, which moves to that level. With a compression result, its values
    (codes after error feedback, re-normalised statistics) are copied into the model first, and the masks are its
    non-zero codes. Parameters keep their identity, so an optimizer made before goes on working. Attach before
    `fully_shard`; before or after `DistributedDataParallel` and `torch.compile`.

    Args:
        native: True for the kernel in C++ that `opq native` compiles, False for torch's own operations; None takes
            the kernel where there is one. It does for float32 weights on a CPU, and gives the same values sooner.

    Raises:
        AttachError: attached already, sharded already, or a module that torch cannot parametrize.
        MismatchError: names, shapes or ties of the plan and the model differ; they are listed.
        OptionError: the plan is of a method whose codebooks are no grid.
        NativeError: the kernel is asked for and has not been compiled.

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
    result = None if isinstance(plan, Plan) else plan
    plan = plan if isinstance(plan, Plan) else plan.plan
    _check_grids(plan)
    sites = find(inner, plan)
    if result is not None:
        inner.load_state_dict(result.state_dict())
    codes = {n: quantize(plain(*of[0]), plan[n]) if result is None else result.codes[n] for n, of in sites.items()}
    for name, of in sites.items():
        grid = _fixed(plain(*of[0]), plan[name], codes.pop(name), native)
        for module, attribute in of:
            _wrap(module, attribute, grid)
    return model


@torch.no_grad()
def _fixed(w: torch.Tensor, plan: TensorPlan, codes: torch.Tensor, native: bool | None) -> FixedGrid:
    """The grid of weights with these codes, under the mask of those that are not zero.

    Weights that stand on the very edge of a level, and that the grid would round to the next one, move to their own.
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
            remedy = "Compress with method='rd' or 'opq' and without trellis=: their codebooks are multiples of a step."
            raise OptionError(f"tensor {tensor.name!r} has no grid to train on", got=tensor.codebook, remedy=remedy)


def _nonzero(result: Result, name: str) -> torch.Tensor:
    return result.codes[name] != 0


def detach(model: nn.Module, *, bake: bool = False) -> nn.Module:
    """Remove the compression module in place; returns the model.

    Classes, parameter identities and their order are as before `attach`. The values are the plain weights,
    or with `bake=True` the pruned and quantized ones that the forward pass saw.

    Raises:
        AttachError: nothing is attached, or another parametrization was stacked on top.

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
        _unwrap(module, attribute)
    return model


@torch.no_grad()
def _bake(w: torch.Tensor, grid: FixedGrid) -> None:
    if is_sharded(w):
        raise AttachError("cannot bake a sharded model in place", remedy="Use opq.collect on every rank, then save.")
    w.copy_(dequantize(_codes(grid(w), grid.plan), grid.plan, w.dtype))


def attached(model: nn.Module) -> Iterator[tuple[nn.Module, str, FixedGrid]]:
    """Every module and attribute under the compression module, tied tensors once for each module."""
    for module in list(model.modules()):
        for attribute, grid in grids(module).items():
            yield module, attribute, grid


# --- one module ----------------------------------------------------------------------------


def _wrap(module: nn.Module, attribute: str, grid: FixedGrid) -> None:
    fresh = not parametrize.is_parametrized(module)
    module.__dict__.setdefault("_opq_order", tuple(module._parameters))
    parametrize.register_parametrization(module, attribute, grid, unsafe=True)
    _shorten(type(module), attribute)
    if fresh:
        _make_copyable(type(module))


def _unwrap(module: nn.Module, attribute: str) -> None:
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    if grids(module):
        return
    own = module._parameters
    module._parameters = {k: own[k] for k in order(module) if k in own} | own
    del module.__dict__["_opq_order"]


def _shorten(cls: type, attribute: str) -> None:
    """A shorter way from `module.attribute` to the grid's forward, where nothing lies between.

    Through torch's two modules and their calls, it is a twentieth of a small network's step.
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
    """Copies and pickles that stand alone.

    torch's copies of a parametrized module share its injected class, so that detaching one breaks the other,
    and its pickles are refused.
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
        _wrap(module, attribute, grid)
    return module


# --- what was trained, read back -----------------------------------------------------------


def proved_codes(model: nn.Module, plan: Plan | Result) -> dict[str, torch.Tensor]:
    """The codes of a trained model, int16 on the CPU by tensor name, **proved** to be the plan's.

    The model is attached, or was detached with `bake=True`. Under `fully_shard` every rank must call it.

    Raises:
        OffCodebookError: a weight is off the grid, a pruned one is not zero, or the step or mask is not the one
            that was attached; the tensor is named.
        MismatchError: the plan is another model's.
    """
    result = None if isinstance(plan, Plan) else plan
    plan = plan if isinstance(plan, Plan) else plan.plan
    found: dict[str, torch.Tensor] = {}
    for name, ((module, attribute), *_) in find(model, plan).items():
        grid = grids(module).get(attribute)
        w = whole(plain(module, attribute)).detach()
        codes = _codes(w if grid is None else _trained(w, grid, plan[name]), plan[name])
        _check_mask(name, codes, None if grid is None else grid.kept, "that was attached")
        _check_mask(name, codes, None if result is None else _nonzero(result, name), "of the compression result")
        found[name] = codes
    return found


def _trained(w: torch.Tensor, grid: FixedGrid, plan: TensorPlan) -> torch.Tensor:
    """What the forward pass sees of `w`, once the grid is known to be the plan's."""
    got, wanted = ((p.step, p.rounding) for p in (grid.plan, plan))
    if got != wanted:
        raise OffCodebookError(f"tensor {plan.name!r}: step and rounding are not the plan's", got=got, wanted=wanted)
    if digest(grid.mask) != grid.digest:
        raise OffCodebookError(f"tensor {plan.name!r}: the mask changed after it was attached")
    out: torch.Tensor = grid(w)
    return out


def _codes(w: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """The codes of weights that must lie on the grid already, to the last bit of their type."""
    w = w.cpu()
    codes = (w.to(torch.float64) / plan.step).round_()
    error = (dequantize(codes, plan, w.dtype) - w).abs()
    off = (codes.abs() > LARGEST_CODE) | ~(error <= torch.finfo(w.dtype).eps * w.abs())
    if bool(off.any()):
        fact = f"tensor {plan.name!r}: {int(off.sum())} of {w.numel()} weights are off the codebook"
        raise OffCodebookError(fact, got=float(w[off][0]), wanted=f"multiples of {plan.step:.9g}")
    return codes.to(torch.int16)


def _check_mask(name: str, codes: torch.Tensor, mask: torch.Tensor | None, which: str) -> None:
    wrong = 0 if mask is None else int(((codes != 0) & ~mask.cpu().reshape(codes.shape)).sum())
    if wrong:
        raise OffCodebookError(f"tensor {name!r}: {wrong} pruned weights are not zero by the mask {which}")


def dense_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of an attached model under its usual names, with the quantized weights in it.

    Detached copies on the CPU where grids are attached; tied tensors stay tied. Works on a plain model too.
    Under `fully_shard` every rank must call it.
    """
    state: dict[str, torch.Tensor] = {}
    done: dict[int, torch.Tensor] = {}
    for name, (module, attribute) in tensors(model).items():
        tensor = plain(module, attribute)
        if id(tensor) not in done:
            grid, full = grids(module).get(attribute), whole(tensor).detach()
            done[id(tensor)] = (full if grid is None else grid(full)).cpu()
        state[name] = done[id(tensor)]
    return state
