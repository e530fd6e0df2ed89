"""Reads a trained model back: codes that are proved to be the plan's, and the dense weights of the forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from opq.errors import OffCodebookError
from opq.plan import LARGEST_CODE, Plan, TensorPlan
from opq.quantizing.grid import dequantize
from opq.training.fixed_grid import FixedGrid, digest, whole
from opq.training.sites import find, grids, plain, tensors

if TYPE_CHECKING:
    from opq.compression.result import Result


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
        codes = exact_codes(w if grid is None else _trained(w, grid, plan[name]), plan[name])
        _check_mask(name, codes, None if grid is None else grid.kept, "that was attached")
        _check_mask(name, codes, None if result is None else result.codes[name] != 0, "of the compression result")
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


def exact_codes(w: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
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
