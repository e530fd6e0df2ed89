"""Weights <-> integer codes on one tensor's grid, the two directions side by side.

Letters: `w` weights, `q` codes, `step` = Delta.
"""

from __future__ import annotations

import torch

from opq.errors import OptionError
from opq.plan import TensorPlan

LARGEST_CODE = 2**15 - 1
"""Codes fit int16; the solver never chooses a step below max|w| / LARGEST_CODE."""

_CACHED = 1 << 16
"""Weights that a processor's cache holds through all steps."""


def quantize(w: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """The plan's codes of `w`: int16, same shape, on the same device.

    `q = sign(w) max(1, floor(|w|/step + 1 - rounding))` where `|w| >= threshold`, else 0
    (Sullivan 1996, uniform threshold quantizer with dead zone).

    Raises:
        OptionError: a weight lies beyond code 32767, or the plan has no grid.
    """
    if plan.action != "compress" or plan.codebook != "grid":
        raise OptionError(f"tensor {plan.name!r} is not planned on a grid", got=f"{plan.action}, {plan.codebook}")
    codes = torch.empty(w.shape, dtype=torch.int16, device=w.device)
    piece = _CACHED if w.device.type == "cpu" else max(w.numel(), 1)
    flat = torch.split(w.detach().reshape(-1), piece), torch.split(codes.reshape(-1), piece)
    for some, out in zip(*flat, strict=True):
        _quantize(some.to(torch.float32), plan, out)
    return codes


def _quantize(w: torch.Tensor, plan: TensorPlan, out: torch.Tensor) -> None:
    scaled = w.abs().mul_(1.0 / plan.step)
    levels = (scaled + (1.0 - plan.rounding)).floor_().clamp_(min=1.0)
    levels *= scaled >= plan.threshold / plan.step
    if levels.numel() and float(levels.max()) > LARGEST_CODE:
        raise OptionError(
            f"tensor {plan.name!r}: step too small",
            got=plan.step,
            wanted=f"at least max|w| / {LARGEST_CODE}",
        )
    out.copy_(levels.copysign_(w))


def dequantize(q: torch.Tensor, plan: TensorPlan, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weights that the codes stand for: `step * q`, rounded once to `dtype`."""
    return rounded(q.to(torch.float64) * plan.step, dtype)


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values in an element type; beyond the largest number of a float8, which may be NaN there, that number."""
    if dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        values = values.clamp(-largest, largest)
    return values.to(dtype)
