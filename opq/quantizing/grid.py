"""Weights <-> integer codes on one tensor's grid.

Letters: `w` weights, `q` codes, `step` = Delta.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from opq.base.rounding import fits
from opq.errors import OptionError
from opq.plan import LARGEST_CODE, TensorPlan
from opq.quantizing import trellis

_FAR = torch.finfo(torch.float32).max / 2**15
"""Below this step, no code times the step overflows float32."""

_CACHED = 1 << 16
"""Weights of one piece of work. A choice of speed: with its temporaries a piece fits into a processor's cache."""


def quantize(w: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """The plan's codes of `w`: int16, same shape, on the same device.

    `q = sign(w) max(1, floor(|w|/step + 1 - rounding))` where `|w| >= threshold`, else 0
    (Sullivan 1996, uniform threshold quantizer with dead zone); on a trellis the best path (`opq.quantizing.trellis`).

    Raises:
        OptionError: a weight needs a code larger than 32767, or the plan has no grid.
    """
    if plan.action == "compress" and plan.codebook == "trellis":
        return _on_paths(w, plan)
    if plan.action != "compress" or plan.codebook != "grid":
        raise OptionError(f"tensor {plan.name!r} is not planned on a grid", got=f"{plan.action}, {plan.codebook}")
    codes = torch.empty(w.shape, dtype=torch.int16, device=w.device)
    flat = torch.split(w.detach().reshape(-1), _piece(w)), torch.split(codes.reshape(-1), _piece(w))
    for some, out in zip(*flat, strict=True):
        _quantize(some.to(torch.float32), plan, out)
    return codes


def _on_paths(w: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """Codes along the trellis' paths, which run down the first axis."""
    scaled = w.detach().to("cpu", torch.float32).reshape(w.shape[0], -1).numpy() / np.float32(plan.step)
    codes = trellis.nearest(scaled, trellis.costs(scaled), price=trellis.price(plan.rate))
    return torch.from_numpy(codes).reshape(w.shape).to(w.device)


def _quantize(w: torch.Tensor, plan: TensorPlan, out: torch.Tensor) -> None:
    """The codes of flat float32 weights, into `out` of the same shape."""
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
    """The decoded weights, `step * q`, rounded once to `dtype`; no weight becomes infinite."""
    return scaled(q, plan.step, dtype)


def scaled(q: torch.Tensor, step: float, dtype: torch.dtype) -> torch.Tensor:
    """`step * q` as `dtype`, computed piece by piece, so that it takes little memory beside the weights."""
    if dtype == torch.float32 and fits(step, 32) and abs(step) < _FAR:  # rounded once, just as float64 would be
        return densely(q, q.shape, dtype, lambda some: some.to(dtype) * step)
    return densely(q, q.shape, dtype, lambda some: saturated(some.to(torch.float64) * step, dtype))


def densely(
    q: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, weights: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The tensor of decoded weights, computed piece by piece.

    Args:
        q: codes of any shape.
        shape: of the tensor.
        weights: decodes a flat piece of codes. Each code may stand for several weights, always the same number; if the
            codes give more weights than the tensor has, those at the end are dropped.
    """
    dense = torch.empty(tuple(shape), dtype=dtype, device=q.device)
    out, codes, done = dense.view(-1), q.reshape(-1), 0
    for some in torch.split(codes, _piece(q)) if out.numel() else ():
        found = weights(some).reshape(-1)[: out.numel() - done]
        out[done : done + found.numel()] = found
        done += found.numel()
    return dense


def saturated(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 values as another element type, clipped to its largest finite number."""
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)


def _piece(tensor: torch.Tensor) -> int:
    """The number of elements worked on at once: some on a processor, all on a GPU."""
    return _CACHED if tensor.device.type == "cpu" else max(tensor.numel(), 1)
