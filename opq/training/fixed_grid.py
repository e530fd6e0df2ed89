"""One tensor's fixed mask and grid: the weights of its forward pass, and their gradient.

Letters: `w` the plain weight that the optimizer updates, `m` its mask (True: kept), `step` = Delta.
The forward pass uses

    w^ = m sign(w) step floor(|w|/step + 1 - rounding),

the plan's quantizer under the mask. A kept weight may become zero and nonzero again, so that it can change its sign,
and since zeros are cheap to code. A pruned weight stays zero. The backward pass is straight-through for kept weights
and zero for pruned ones: the gradient and the moments of a pruned weight stay zero, and weight decay of its plain value
has no effect.
"""

from __future__ import annotations

import zlib

import torch
from torch import nn
from torch.nn import functional

from opq.models.attachment import Attachment
from opq.plan import LARGEST_CODE, TensorPlan
from opq.training import kernel


def _to_grid(w: torch.Tensor, plan: TensorPlan, scales: tuple[torch.Tensor, torch.Tensor], clamp: bool) -> None:
    """Replaces float32 weights by `sign(w) step floor(|w|/step + 1 - rounding)`; from the threshold on at least a step.

    It is computed as `round(shrink(w/step))` with `shrink(x) = sign(x) max(0, |x| - (rounding - 1/2))`: each of these
    is one pass through memory, which dominates the training step of a small network. A weight on the edge between two
    levels may go to either.

    Args:
        scales: 1 / step and step as tensors: torch would make a tensor of a number in every call, which takes as long
            as the product with a small layer.
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
    """Whether kept weights that would round to zero become one step: the threshold is below the rounding's."""
    return plan.threshold / plan.step < plan.rounding * (1 - 1e-5)


def _number(x: float) -> torch.Tensor:
    """A tensor without dimensions on the CPU, by which tensors on every device can be multiplied as by a number."""
    return torch.tensor(x, dtype=torch.float32, device="cpu")


def has_kernel(w: torch.Tensor, plan: TensorPlan, largest: int) -> bool:
    """Whether the kernel is compiled and can be used for these weights; `largest` as in `FixedGrid`."""
    fits = is_plain(w) and not _starts_below(plan) and not _watched(largest)
    return fits and kernel.operator() is not None


def _watched(largest: int) -> bool:
    """Whether codes up to this one may grow beyond int16 in training, so that they must be clamped."""
    return 2 * largest > LARGEST_CODE


def mask_like(w: torch.Tensor, kept: torch.Tensor, *, byte: bool) -> torch.Tensor:
    """A mask with the memory layout of the weight, in bytes or in the weight's own type.

    On a CPU, torch's product takes twice as long if the mask has another type; on a GPU and in the kernel it does not.
    """
    dtype = torch.uint8 if byte else w.dtype
    return torch.empty_like(w, dtype=dtype, requires_grad=False).copy_(kept)


_PLAIN = (torch.Tensor, nn.Parameter)


class FixedGrid(Attachment):
    """The parametrization of one tensor: a fixed mask and a fixed step.

    Codes are computed in the forward pass and never stored. Tied tensors share the instance.
    """

    mask: torch.Tensor
    """A buffer: 1 where a weight is kept, 0 where it is pruned (`mask_like`)."""

    def __init__(self, plan: TensorPlan, mask: torch.Tensor, largest: int = LARGEST_CODE, *, compiled: bool = False):
        """Makes the grid of one tensor.

        Args:
            largest: the largest code at first; if it would have to double to exceed int16, codes are not clamped.
            compiled: whether the compiled kernel is used, which needs a mask of bytes (`has_kernel`).
        """
        super().__init__()
        self.plan, self.clamp, self.compiled = plan, _watched(largest), compiled
        self.numbers = 1.0 / plan.step, plan.step, plan.rounding - 0.5
        self.scales = _number(self.numbers[0]), _number(self.numbers[1])
        self.digest = digest(mask)
        """CRC-32 of the mask at attach; `opq.training.proving.proved_codes` proves that it still holds."""
        self.register_buffer("mask", mask)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        """`w^`: autograd records `w m`, whose values are then rounded to the grid; or the kernel does the same."""
        if self.compiled and is_plain(w):
            operator = kernel.operator()
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
        """Assigning to the tensor assigns to its plain weight."""
        return w

    @property
    def kept(self) -> torch.Tensor:
        """The mask as truth values."""
        return self.mask != 0

    def extra_repr(self) -> str:
        kept = int(self.kept.sum())
        compiled = ", compiled" if self.compiled else ""
        return f"{self.plan.name!r}, step={self.plan.step:.6g}, kept={kept} of {self.mask.numel()}{compiled}"


def is_plain(w: torch.Tensor) -> bool:
    """Whether the kernel can take this tensor now: float32 on a CPU, not of a subclass, and not being traced."""
    own = type(w) in _PLAIN and w.is_cpu and w.dtype == torch.float32
    return own and not torch.compiler.is_compiling() and not torch.jit.is_tracing()  # type: ignore[no-untyped-call]


def digest(mask: torch.Tensor) -> int:
    """CRC-32 of a mask, whatever its type."""
    return zlib.crc32((mask.detach().cpu() != 0).contiguous().view(torch.uint8).numpy().data)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether the tensor is a DTensor, found out without importing DTensor, which takes half a second."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor behind a sharded one (a collective call), any other tensor as it is."""
    full: torch.Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full
