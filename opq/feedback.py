"""Error feedback: quantize a weight matrix so that its outputs, not its weights, move least.

With `S = E[x x']` the output error of a matrix `W` is `tr((W - W^) S (W - W^)')`. Coordinates are quantized one
after the other on the layer's grid; those not yet quantized take up each error by the closed-form conditional
minimiser (optimal brain surgeon, Hassibi and Stork 1993). With `U` the upper Cholesky factor of `S^-1`
(`S^-1 = U' U`) that is one triangular sweep for all rows at once (GPTQ, Frantar et al. 2022).
"""

from __future__ import annotations

import torch

from opq.moments import Moment
from opq.plan import TensorPlan
from opq.quantize import LARGEST_CODE

BLOCK = 128
"""Coordinates swept before the rest of the matrix is updated by one product."""


@torch.no_grad()
def feedback(w: torch.Tensor, plan: TensorPlan, moment: Moment) -> torch.Tensor:
    """The codes of `w` on the plan's grid with error feedback: int16, same shape.

    Args:
        w: the weight, in the shape that `moment.layout` understands.
        moment: the second moment of the layer's inputs.
    """
    matrix = moment.layout.matrix(w.detach().float())
    start, codes = 0, []
    for order, u in moment.factors:
        stop = start + len(order)
        codes.append(_swept(matrix[..., start:stop], plan, order.to(matrix.device), u.to(matrix.device)))
        start = stop
    return moment.layout.tensor(torch.cat(codes, dim=-1), tuple(w.shape))


def _swept(w: torch.Tensor, plan: TensorPlan, order: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One block: `w` (groups, rows, d), the order of its coordinates (d,), and `U` in that order (groups, d, d)."""
    left = w[..., order].transpose(1, 2).contiguous()  # (groups, d, rows): one coordinate is contiguous
    codes = torch.empty_like(left, dtype=torch.int16)
    for start in range(0, left.shape[1], BLOCK):
        stop = min(start + BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for j in range(start, stop):
            codes[:, j] = level = _levels(left[:, j], plan)
            errors[:, j - start] = error = (left[:, j] - level * plan.step) / u[:, j, j, None]
            left[:, j + 1 : stop] -= u[:, j, j + 1 : stop, None] * error[:, None]
        left[:, stop:] -= u[:, start:stop, stop:].transpose(1, 2) @ errors
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return codes[:, back].transpose(1, 2)


def _levels(x: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """The plan's codes of `x`, as `quantize` gives them but in floating point and held within int16."""
    scaled = x.abs() / plan.step
    levels = (scaled + (1 - plan.rounding)).floor_().clamp_(min=1, max=LARGEST_CODE)
    return torch.copysign(levels * (scaled >= plan.threshold / plan.step), x)
