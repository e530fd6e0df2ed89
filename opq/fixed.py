"""One tensor's fixed mask and grid, and where a live model keeps its tensors under it.

Letters: `w` the plain weight that the optimizer sees, `m` its mask (True: kept), `step` = Delta.
The forward pass sees

    w^ = m sign(w) step floor(|w|/step + 1 - rounding),

the plan's quantizer under the mask: a kept weight may fall to zero and come back, so that it can change its sign and
the entropy coder gains, and a pruned one is zero for good. The backward pass is straight through on kept weights and
zero on pruned ones: a pruned weight's gradient and moments stay zero, and whatever weight decay does to its plain
value has no effect.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from opq import native
from opq.errors import MismatchError
from opq.plan import Plan, TensorPlan
from opq.quantize import LARGEST_CODE

Site = tuple[nn.Module, str]
"""A module and the name of one of its own tensors."""


def _to_grid(w: torch.Tensor, plan: TensorPlan, scales: tuple[torch.Tensor, torch.Tensor], clamp: bool) -> None:
    """`sign(w) step floor(|w|/step + 1 - rounding)` in place of float32 weights; a step at least from the threshold on.

    As `round(shrink(w/step))`, with `shrink(x) = sign(x) max(0, |x| - (rounding - 1/2))`: each of these is one pass
    through memory, which is what a small network's step costs. Weights on the very edge of a level may go either way.

    Args:
        scales: 1 / step and step, as tensors: torch makes one of a number in every call, which takes as long as
            the product with a small layer.
    """
    w.mul_(scales[0])
    kept = w.sign() * (w.abs() >= plan.threshold / plan.step) if _starts_below(plan) else None
    if plan.rounding > 0.5:
        functional.softshrink(w, plan.rounding - 0.5, out=w)  # type: ignore[call-arg]
    elif plan.rounding < 0.5:
        w.add_(w.sign(), alpha=0.5 - plan.rounding)
    w.round_()
    if clamp:
        w.clamp_(-float(LARGEST_CODE), float(LARGEST_CODE))
    if kept is not None:
        w.copy_(torch.where(w == 0, kept, w))
    w.mul_(scales[1])


def _starts_below(plan: TensorPlan) -> bool:
    """Whether weights that would round to zero are kept, at one step: the threshold lies below the rounding's."""
    return plan.threshold / plan.step < plan.rounding * (1 - 1e-5)


def _number(x: float) -> torch.Tensor:
    """A tensor without dimensions, in the processor's memory, which every device multiplies by as by a number."""
    return torch.tensor(x, dtype=torch.float32, device="cpu")


def has_kernel(w: torch.Tensor, plan: TensorPlan, largest: int) -> bool:
    """Whether the compiled kernel is there and does for these weights; `largest` as for `FixedGrid`."""
    fits = _is_plain(w) and not _starts_below(plan) and not _watched(largest)
    return fits and native.operator() is not None


def _watched(largest: int) -> bool:
    """Whether codes up to this one may grow beyond int16, and have to be clamped."""
    return 2 * largest > LARGEST_CODE


def mask_like(w: torch.Tensor, kept: torch.Tensor, *, byte: bool) -> torch.Tensor:
    """A mask in the order of the weight's own elements in memory, a byte each or of the weight's own type.

    torch's product on a CPU takes twice as long by ones and zeros of another type; a GPU's and the kernel's do not.
    """
    dtype = torch.uint8 if byte else w.dtype
    return torch.empty_like(w, dtype=dtype, requires_grad=False).copy_(kept)


_PLAIN = (torch.Tensor, nn.Parameter)


class FixedGrid(nn.Module):
    """The parametrization of one tensor: a fixed mask and a fixed step.

    Codes are computed in the forward pass and never stored. Tied tensors share the instance.
    """

    mask: torch.Tensor
    """One buffer: 1 where a weight is kept, 0 where it is pruned (`mask_like`)."""

    def __init__(self, plan: TensorPlan, mask: torch.Tensor, largest: int = LARGEST_CODE, *, compiled: bool = False):
        """`largest`: the largest code there is; one that would have to double to fill int16 is not watched.

        compiled: whether the kernel of `opq.native` is used, which wants a byte each in the mask (`has_kernel`).
        """
        super().__init__()
        self.plan, self.clamp, self.compiled = plan, _watched(largest), compiled
        self.numbers = 1.0 / plan.step, plan.step, plan.rounding - 0.5
        self.scales = _number(self.numbers[0]), _number(self.numbers[1])
        self.digest = digest(mask)
        """CRC-32 of the mask at attach; `opq.module.proved_codes` proves that it still holds."""
        self.register_buffer("mask", mask)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """`w^`: autograd sees `w m`, whose values then move to the grid; or the kernel, which is the same function."""
        if self.compiled and _is_plain(w):
            operator = native.operator()
            if operator is not None:
                levels: torch.Tensor = operator(w, self._buffers["mask"], *self.numbers)
                return levels
        mask = self.mask
        seen = w * (mask.to(w.dtype) if mask.dtype != w.dtype and mask.is_floating_point() else mask)
        values = seen.detach()
        single = values if values.dtype == torch.float32 else values.to(torch.float32)
        _to_grid(single, self.plan, self.scales, self.clamp)
        if single is not values:
            values.copy_(single)
        return seen

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        """Assigning the tensor assigns its plain weight."""
        return w

    @property
    def kept(self) -> torch.Tensor:
        """The mask as truth values."""
        return self.mask != 0

    def extra_repr(self) -> str:
        kept = int(self.kept.sum())
        compiled = ", compiled" if self.compiled else ""
        return f"{self.plan.name!r}, step={self.plan.step:.6g}, kept={kept} of {self.mask.numel()}{compiled}"


def _is_plain(w: torch.Tensor) -> bool:
    """Whether the kernel takes this tensor now: float32 on a CPU, of no class of its own, and not being traced."""
    own = type(w) in _PLAIN and w.is_cpu and w.dtype == torch.float32
    return own and not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


def digest(mask: torch.Tensor) -> int:
    """CRC-32 of a mask, whatever its type."""
    return zlib.crc32((mask.detach().cpu() != 0).contiguous().view(torch.uint8).numpy().data)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a DTensor (asked so because importing DTensor takes half a second)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor behind a sharded one (a collective call), any other tensor as it is."""
    full: torch.Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def grids(module: nn.Module) -> dict[str, FixedGrid]:
    """The grids on a module's own tensors, by attribute."""
    if not parametrize.is_parametrized(module):
        return {}
    stacks: Any = module.parametrizations
    return {attribute: stack[0] for attribute, stack in stacks.items() if isinstance(stack[0], FixedGrid)}


def plain(module: nn.Module, attribute: str) -> torch.Tensor:
    """A module's own tensor; where a grid is attached, the plain weight behind it."""
    stacks: Any = module.parametrizations if attribute in grids(module) else {}
    own: Any = module._parameters if attribute in module._parameters else module._buffers
    tensor: torch.Tensor = stacks[attribute].original if stacks else own[attribute]
    return tensor


def tensors(model: nn.Module) -> dict[str, Site]:
    """Where each tensor of the state dict lives, by its name (and in its order) without any grid attached."""
    sites: dict[str, Site] = {}
    ours: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        if path.startswith(ours or "\0"):
            continue
        prefix = f"{path}." if path else ""
        ours += tuple(f"{prefix}parametrizations.{attribute}" for attribute in grids(module))
        buffers = [k for k in module._buffers if k not in module._non_persistent_buffers_set]
        for attribute in dict.fromkeys([*order(module), *module._parameters, *buffers, *grids(module)]):
            if attribute in grids(module) or plain(module, attribute) is not None:
                sites[f"{prefix}{attribute}"] = module, attribute
    return sites


def order(module: nn.Module) -> tuple[str, ...]:
    """The order of a module's own parameters before grids were attached."""
    names: tuple[str, ...] = module.__dict__.get("_opq_order", tuple(module._parameters))
    return names


def find(model: nn.Module, plan: Plan) -> dict[str, list[Site]]:
    """For every compressed tensor of the plan, every module that holds it, tied ones included.

    Raises:
        MismatchError: names, shapes or ties of plan and model differ; they are listed.
    """
    where = tensors(model)
    wrong = _wrong_names({name: tuple(plain(*site).shape) for name, site in where.items()}, plan)
    if not wrong:
        holders: dict[int, list[str]] = {}
        for name, site in where.items():
            holders.setdefault(id(plain(*site)), []).append(name)
        wrong = _wrong_ties(list(holders.values()), plan)
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise MismatchError("the plan is for another model", got="; ".join(wrong[:8]) + more)
    compressed = {t.name for t in plan.compressed}
    return {n: [where[k] for k in names] for names in holders.values() for n in names if n in compressed}


def _wrong_names(found: dict[str, tuple[int, ...]], plan: Plan) -> list[str]:
    wanted = {t.name: t.shape for t in plan}
    wrong = [f"{n} is {list(found[n])}, planned {list(s)}" for n, s in wanted.items() if found.get(n, s) != s]
    wrong += [f"{n} {list(s)} is not in the model" for n, s in wanted.items() if n not in found]
    return wrong + [f"{n} {list(s)} is not in the plan" for n, s in found.items() if n not in wanted]


def _wrong_ties(groups: list[list[str]], plan: Plan) -> list[str]:
    """Tensors that are one in the model and two in the plan, or the other way round."""
    planned = {t.name: t for t in plan}
    group_of = {name: names for names in groups for name in names}
    wrong = []
    for t in plan.compressed:
        own = [n for n in group_of[t.name] if n != t.name and planned[n].action != "share"]
        wrong += [f"{t.name} and {n} are one tensor in the model, two in the plan" for n in own]
        tied = [p.name for p in plan if p.like == t.name and p.name not in group_of[t.name]]
        wrong += [f"{t.name} and {n} are two tensors in the model, one in the plan" for n in tied]
    return wrong
