"""The method as stated in the paper: a sparsity and bits per kept weight, in two closed-form steps.

Hu, Peng, Zhu, Aly, Lin, "OPQ: Compressing Deep Neural Networks with One-shot Pruning-Quantization", AAAI 2021. The
paper's own equations were not available; docs/mathematics.md derives these from the problem that it describes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from opq.allocation.curve import Point
from opq.allocation.operating_points import measure
from opq.allocation.paper import steps, thresholds
from opq.allocation.solution import Allocation
from opq.allocation.stats import TensorStats
from opq.base.arrays import Floats
from opq.constraints import Constraint
from opq.plan import LARGEST_CODE
from opq.sources.base import Source


def two_steps(
    source: Source,
    stats: Mapping[str, TensorStats],
    sensitivities: Mapping[str, float],
    *,
    sparsity: float,
    bits: float,
    constraints: Sequence[Constraint] = (),
) -> Allocation:
    """Thresholds for `sparsity`, then steps for `bits` bits per kept weight: an operating point for every tensor.

    `constraints` bound densities, through cvxpy. One tensor is in memory at a time. Rates are those of the codes,
    which include the positions of the kept weights.
    """
    a = [sensitivities[name] for name in stats]
    if constraints:
        from opq.allocation import convex

        taus, sizes = [s.mean_abs for s in stats.values()], [s.size for s in stats.values()]
        beta, _ = convex.solve_opq(taus, sizes, a, sparsity, names=list(stats), constraints=constraints)
    else:
        beta = thresholds(list(stats.values()), a, sparsity)
    measured = [channels(source.tensor(name), b) for name, b in zip(stats, beta, strict=True)]
    ranges, kept = [m[0] for m in measured], [m[1] for m in measured]
    step, multiplier = steps(ranges, kept, a, bits)
    points = [_point(s, float(b), float(d)) for s, b, d in zip(stats.values(), beta, step, strict=True)]
    total = sum(s.size * p.rate for s, p in zip(stats.values(), points, strict=True))
    return Allocation(tuple(points), multiplier, 0.0, total)


def _point(stats: TensorStats, beta: float, step: float) -> Point:
    """The operating point of a threshold and a step, measured on the tensor's histogram."""
    step = max(step, stats.max_abs / LARGEST_CODE) or 1.0
    theta = np.array([beta / step])
    rate, distortion, density = measure(stats, np.array([step]), theta, rounding=np.array([0.5]))
    return Point(step, float(theta[0]), float(rate[0]), float(distortion[0]), float(density[0]))


def channels(w: torch.Tensor, beta: float) -> tuple[Floats, Floats]:
    """For each channel (row of dimension 0), the range of its kept weights `range_ij` and their number `m_ij`."""
    rows = w.detach().float().reshape(w.shape[0], -1)
    kept = rows.abs() >= beta
    count = kept.sum(1)
    top = rows.masked_fill(~kept, -math.inf).amax(1)
    bottom = rows.masked_fill(~kept, math.inf).amin(1)
    spread = torch.where(count > 0, top - bottom, torch.zeros(())).double()
    return spread.numpy(), count.double().numpy()
