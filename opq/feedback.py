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

DAMPING = 0.05
"""Added to the diagonal of S, as a fraction of its mean."""
BLOCK = 128
"""Coordinates swept before the rest of the matrix is updated by one product."""


@torch.no_grad()
def feedback(w: torch.Tensor, plan: TensorPlan, moment: Moment, *, damping: float = DAMPING) -> torch.Tensor:
    """The codes of `w` on the plan's grid with error feedback: int16, same shape.

    Args:
        w: the weight, in the shape that `moment.layout` understands.
        moment: the second moment of the layer's inputs.
        damping: fraction of the mean of diag S added to it.
    """
    matrix = moment.layout.matrix(w.detach().float())
    start, codes = 0, []
    for block in moment.blocks:
        stop = start + block.shape[-1]
        codes.append(_swept(matrix[..., start:stop], plan, block.to(matrix.device), damping))
        start = stop
    return moment.layout.tensor(torch.cat(codes, dim=-1), tuple(w.shape))


def _swept(w: torch.Tensor, plan: TensorPlan, s: torch.Tensor, damping: float) -> torch.Tensor:
    """One block: `w` (groups, rows, d), `s` (groups, d, d)."""
    order = s.diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True, stable=True)
    u = factor(s[:, order][:, :, order], damping)
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


def factor(s: torch.Tensor, damping: float) -> torch.Tensor:
    """`U` upper triangular with `(S + damping mean(diag S) I)^-1 = U' U`, for a stack of S (groups, d, d)."""
    mean = s.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    damped = s / mean[:, None, None] + damping * eye
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper / mean.sqrt()[:, None, None]


def _levels(x: torch.Tensor, plan: TensorPlan) -> torch.Tensor:
    """The plan's codes of `x`, as `quantize` gives them but in floating point and held within int16."""
    scaled = x.abs() / plan.step
    levels = (scaled + (1 - plan.rounding)).floor_().clamp_(min=1, max=LARGEST_CODE)
    return torch.copysign(levels * (scaled >= plan.threshold / plan.step), x)
