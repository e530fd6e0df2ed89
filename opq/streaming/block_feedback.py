"""Codes with error feedback for the matrices of one block, in slabs of rows, which are independent of each other.

On a trellis slabs are whole runs of rows, and codes are `k`, as the file holds them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from opq.base.arrays import Narrow, Reals, narrow
from opq.base.pool import Pool, give_back
from opq.plan import TensorPlan
from opq.quantizing import trellis
from opq.quantizing.feedback import feedback
from opq.streaming.block_inputs import Inputs
from opq.streaming.chunks import Tensors
from opq.streaming.clock import Clock
from opq.streaming.encode import joined
from opq.streaming.limits import LIMITS
from opq.streaming.paths import prices, slabs


def fed_codes(
    plans: Sequence[TensorPlan],
    inputs: Mapping[str, Inputs],
    tensors: Tensors,
    pool: Pool,
    clock: Clock,
    *,
    slab: int = LIMITS.slab,
) -> dict[str, Narrow]:
    """The codes of each tensor, flat.

    Args:
        plans: the plans of some matrices of one block.
        inputs: the inputs of each matrix.
        slab: how many weights are swept at once.
    """

    def priced(plan: TensorPlan) -> Reals:
        return prices(plan, lambda start, stop: tensors.read(plan.name, start, stop), clock)

    on_paths = [plan for plan in plans if plan.codebook == "trellis"]
    bits = dict(zip((plan.name for plan in on_paths), pool.ordered(priced, on_paths), strict=True))

    def one(job: tuple[TensorPlan, int, int]) -> Narrow:
        plan, start, stop = job
        return fed_rows(plan, [(start, stop)], inputs[plan.name], tensors, clock, bits=bits.get(plan.name))

    slabs = [[(plan, *rows) for rows in _slabs(plan, inputs[plan.name], slab)] for plan in plans]
    jobs = [job for some in itertools.zip_longest(*slabs) for job in some if job is not None]
    pieces: dict[str, list[Narrow]] = {plan.name: [] for plan in plans}
    for job, codes in zip(jobs, pool.ordered(one, jobs), strict=True):
        pieces[job[0].name].append(codes)
    give_back()
    return {name: joined(some) for name, some in pieces.items()}


def fed_rows(
    plan: TensorPlan,
    spans: Sequence[tuple[int, int]],
    inputs: Inputs,
    tensors: Tensors,
    clock: Clock,
    *,
    bits: Reals | None = None,
) -> Narrow:
    """The codes of some rows of the tensor, flat. For a matrix that is stored transposed, all rows must be swept.

    Args:
        bits: on a trellis, what each `k` costs; by default as if these rows were the whole tensor.
    """
    width, moment = plan.size // plan.shape[0], inputs.moment(clock)
    with clock("read"):
        every = [(0, plan.shape[0])] if inputs.layout.transposed else spans
        weights = torch.cat([tensors.read(plan.name, a * width, b * width) for a, b in every]).view(-1, width)
    with clock("feedback"):
        codes = feedback(weights, plan, moment, bits=bits, f=tensors.columns(plan.name)).numpy()
        if plan.codebook == "trellis":
            codes = trellis.paths(codes)
        return narrow(np.concatenate([codes[a:b] for a, b in spans]) if inputs.layout.transposed else codes).reshape(-1)


def _slabs(plan: TensorPlan, inputs: Inputs, slab: int) -> list[tuple[int, int]]:
    rows = plan.shape[0]
    each = rows if inputs.layout.transposed else max(1, slab * rows // plan.size)
    if plan.codebook == "trellis":
        return slabs(rows, each)
    return [(start, min(start + each, rows)) for start in range(0, rows, each)]
