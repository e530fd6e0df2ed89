"""What is trained where a plan is on a trellis or has steps by row: the plain grids of the same rates.

A path of a trellis depends on all weights of its column, so no weight could move by itself. Rates decide the size of
the file, so each tensor takes the plain grid of its rate, which has an error that is larger by about a decibel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from opq.allocation.curve import Curve
from opq.allocation.stats import TensorStats
from opq.base.calls import warn
from opq.compression.problem import on_grid
from opq.errors import GridWarning
from opq.plan import Plan, TensorPlan


def on_grids(plan: Plan, weights: Callable[[str], torch.Tensor]) -> Plan:
    """The plan with plain grids in place of trellises and of steps by row; a `GridWarning` says that there were some.

    Args:
        weights: the weights of a compressed tensor, by name.

    Raises:
        NonFiniteError: NaN or infinity among the weights.
    """
    others = [tensor for tensor in plan.compressed if is_other(tensor)]
    if not others:
        return plan
    if any(tensor.on_trellis for tensor in others):
        warn(
            "the plan is on a trellis, which cannot be trained: the plain grids of the same rates are, from the "
            "model's present weights. Compress with trellis=False (--no-trellis) to start from the codes of a result.",
            GridWarning,
        )
    else:
        warn(
            f"tensor {others[0].name!r} has a step for each row, which cannot be trained: the plain grids of the same "
            "rates are, from the model's present weights. Start from opq.solve(...), which has plain grids alone.",
            GridWarning,
        )
    return plan.replace(tensors=tuple(_on_grid(tensor, weights) for tensor in plan))


def _on_grid(tensor: TensorPlan, weights: Callable[[str], torch.Tensor]) -> TensorPlan:
    if not is_other(tensor):
        return tensor
    stats = TensorStats.of(weights(tensor.name), name=tensor.name)
    fields: dict[str, Any] = on_grid(Curve.of(stats).at_rate(tensor.rate), stats.max_abs)
    return dataclasses.replace(tensor, codebook="grid", **fields)


def is_other(tensor: TensorPlan) -> bool:
    """Whether the tensor has steps, but not a plain grid."""
    return tensor.stepped and tensor.codebook != "grid"
