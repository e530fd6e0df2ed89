"""Which tensors may be quantized on a trellis, and how long the loops that can be compiled would take without that.

Paths run down the outputs of a layer. Where half of the outputs are dead, the grid of a dead weight is shifted by the
path through the live ones, and classes of rows save less than on a plain grid. So both are tried on a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch

from opq.allocation.curve import Curve, Point
from opq.base.arrays import Codes
from opq.base.compiled import Loops
from opq.base.format_v1 import RUN
from opq.coding import classes, entropy
from opq.compression.problem import on_grid
from opq.compression.roles import Role
from opq.plan import TensorPlan
from opq.quantizing import feedback, trellis
from opq.quantizing.grid import quantize

Piece = tuple[slice, slice]
"""Some rows and some columns of a tensor, whose rows are its first axis."""

RUNS, SAMPLED = 4, 1 << 15
"""The most runs of rows, and about the most weights, of a sample. A choice: 20 ms of work."""
TRIED = (2.0, 1.5, trellis.LEAST)
"""Bits per weight at which grid and trellis are compared, as long as the trellis wins. A choice: above 2 it hardly ever
loses if it wins there."""


def may_follow(roles: Iterable[Role], is_transposed: Callable[[str], bool]) -> frozenset[str]:
    """Matrices, but for those that feedback takes as (inputs, outputs): paths follow the outputs of one input.

    Args:
        is_transposed: whether feedback takes the tensor of this name as (inputs, outputs).
    """
    names = (role.name for role in roles if role.action == "compress" and len(role.spec.shape) >= 2)
    return frozenset(name for name in names if not is_transposed(name))


def sample(shape: tuple[int, ...]) -> list[Piece]:
    """What `pays` should see of a tensor: whole runs, evenly spread, of the same columns in the middle."""
    rows = shape[0]
    width, runs = math.prod(shape) // rows, rows // RUN
    if runs <= RUNS:
        spans = [slice(0, rows)]
    else:
        spans = [slice(RUN * k, RUN * (k + 1)) for k in (j * (runs - 1) // (RUNS - 1) for j in range(RUNS))]
    some = min(width, max(1, SAMPLED // sum(span.stop - span.start for span in spans)))
    first = (width - some) // 2
    return [(span, slice(first, first + some)) for span in spans]


def pays(weights: torch.Tensor, curve: Curve, largest: float, rate: float) -> bool:
    """Whether a trellis takes fewer bits than a plain grid of the same error.

    Args:
        weights: the sample (rows, columns).
        curve: of the whole tensor.
        largest: the largest magnitude in the whole tensor.
        rate: on the plain grid, in bits per weight.
    """
    return _saved(weights.float(), curve.at_rate(rate), largest) > 0


def _saved(weights: torch.Tensor, point: Point, largest: float) -> float:
    """Bits per weight that a trellis takes less than a plain grid of the same error."""
    fine = trellis.step(point.rate, point.distortion, largest)
    if fine is None:  # it will never be on one
        return 0.0
    plain: dict[str, Any] = {"name": "", "shape": tuple(weights.shape), "dtype": "F32", "action": "compress"}
    plain |= {"reason": "", **on_grid(point, largest)}
    grid = TensorPlan(**plain)
    path = TensorPlan(**plain | {"codebook": "trellis", "step": fine, "rate": point.rate - trellis.SAVED})
    on_plain, on_paths = quantize(weights, grid).numpy(), quantize(weights, path).numpy()
    before, after = _error(weights, on_plain, grid), _error(weights, on_paths, path)
    if not (before and after):
        return 0.0
    fewer = 8 * (entropy.coded_size(on_plain) - entropy.coded_size(trellis.paths(on_paths)))
    return fewer / weights.numel() + math.log2(before / after) / 2  # half a bit halves the error, about


def _error(weights: torch.Tensor, codes: Codes, plan: TensorPlan) -> float:
    return float(((weights.numpy() - np.float64(plan.step) * codes) ** 2).mean())


def in_numpy(roles: Iterable[Role], trellised: Collection[str], *, fed: bool) -> list[tuple[Loops, float]]:
    """The loops that can be compiled, and about how many seconds their work would take in numpy.

    Args:
        trellised: the tensors that may be on a trellis.
        fed: whether errors are fed back.
    """
    shapes = {role.name: role.spec.shape for role in roles if role.action == "compress"}
    seconds = 0.0
    for name, shape in shapes.items():
        on_paths = name in trellised
        if fed and len(shape) > 1:
            seconds += feedback.numpy_seconds(math.prod(shape[1:]), on_paths=on_paths)
        elif on_paths:
            seconds += trellis.numpy_seconds(math.prod(shape))
    return [(trellis.LOOPS, seconds), (classes.LOOPS, classes.numpy_seconds(map(math.prod, shapes.values())))]
