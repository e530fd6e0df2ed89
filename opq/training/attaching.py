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
from torch.nn.utils import parametrize

from opq.errors import AttachError, NativeError, OffCodebookError, OptionError
from opq.models.attachment import is_attached
from opq.models.wrappers import unwrapped
from opq.plan import LARGEST_CODE, Plan, TensorPlan
from opq.quantizing.grid import dequantize, quantize
from opq.training import kernel
from opq.training.fixed_grid import FixedGrid, digest, has_kernel, is_sharded, mask_like, whole
from opq.training.grid_plan import on_grids
from opq.training.sites import find, grids, order, plain, tensors

if TYPE_CHECKING:
    from opq.compression.result import Result


def attach(model: nn.Module, plan: Plan | Result, *, native: bool | None = None) -> nn.Module:
    """Attaches the fixed compression module to a live model, in place; returns the model.

    With a `Plan`, the masks are determined by quantizing the present weights. Values do not change, except that a
    weight on the edge between two levels moves to its own level. With a compression result, its values (codes after
    error feedback, re-normalised statistics) are first copied into the model, and the masks are its nonzero codes.
    Parameters keep their identity, so that an existing optimizer continues to work. Attach before `fully_shard`;
    before or after `DistributedDataParallel` and `torch.compile`.

    A trellis cannot be trained. In its place come the plain grids of the same rates, so that the file keeps its size,
    and the model's present weights; a `GridWarning` says so.

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
            _wrap(module, attribute, grid)
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
    """The plan that is trained: the given one, with the attached plain grids in place of trellises."""
    plan = plan if isinstance(plan, Plan) else plan.plan
    found = {grid.plan.name: grid.plan for _, _, grid in attached(model)}
    tensors = (found.get(t.name, t) if t.codebook == "trellis" else t for t in plan)
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


def _nonzero(result: Result, name: str) -> torch.Tensor:
    return result.codes[name] != 0


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
        _unwrap(module, attribute)
    return model


@torch.no_grad()
def _bake(w: torch.Tensor, grid: FixedGrid) -> None:
    if is_sharded(w):
        raise AttachError("cannot bake a sharded model in place", remedy="Use opq.collect on every rank, then save.")
    w.copy_(dequantize(_codes(grid(w), grid.plan), grid.plan, w.dtype))


def attached(model: nn.Module) -> Iterator[tuple[nn.Module, str, FixedGrid]]:
    """Every module and attribute with a grid; tied tensors once for each module."""
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
        _wrap(module, attribute, grid)
    return module


# --- what was trained, read back -----------------------------------------------------------


def proved_codes(model: nn.Module, plan: Plan | Result) -> dict[str, torch.Tensor]:
    """The codes of a trained model, int16 on the CPU by tensor name, **proved** to be the plan's.

    The model is attached, or was detached with `bake=True`. Under `fully_shard` every rank must call it.

    Raises:
        OffCodebookError: a weight is off the grid, a pruned one is not zero, or the step or mask is not the one
            that was attached; the tensor is named.
        MismatchError: the plan is that of another model.
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
    """The weights as the forward pass uses them, after a check that the grid is the plan's."""
    got, wanted = ((p.step, p.rounding) for p in (grid.plan, plan))
    if got != wanted:
        raise OffCodebookError(f"tensor {plan.name!r}: step and rounding are not the plan's", got=got, wanted=wanted)
    if digest(grid.mask) != grid.digest:
        raise OffCodebookError(f"tensor {plan.name!r}: the mask changed after it was attached")
    out: torch.Tensor = grid(w)
    return out


def _codes(w: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """The codes of weights that must be on the grid exactly, to the last bit of their type."""
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
