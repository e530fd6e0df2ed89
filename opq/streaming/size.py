"""How many bytes a plan will take, before anything is encoded.

The rate of a tensor's curve is the entropy of its codes. How far the entropy coder departs from it (classes of rows and
columns save a few percent, tables cost a little) is measured on a sample of each tensor's rows, with the plan's steps;
small checkpoints are sampled completely. For header, index and kept tensors, the actual bytes are made.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from opq.base.arrays import Codes
from opq.base.counts import entropy as entropy_of
from opq.base.pool import Pool
from opq.coding import classes as classes_of_weights
from opq.coding import entropy
from opq.coding.symbols import SYMBOL
from opq.compression.in_file import told
from opq.compression.problem import Problem
from opq.file import writer
from opq.file.index import Place
from opq.plan import Plan, TensorPlan, as_stored
from opq.quantizing import trellis
from opq.sources.base import Source
from opq.streaming.block_feedback import fed_rows
from opq.streaming.block_inputs import Inputs
from opq.streaming.chunks import Tensors
from opq.streaming.clock import Clock
from opq.streaming.encode import Quantizer
from opq.streaming.paths import on_paths
from opq.streaming.shards import base_name, kept_items, part_of

WHOLE = 1 << 21
"""In checkpoints of at most `SMALL` weights, tensors up to this size are sampled completely. A choice of speed."""
SMALL = 1 << 27
_SHARE = 8
"""One weight in so many is sampled, docs/scaling.md. A choice that trades time for the accuracy of the prediction."""
_LEAST, _MOST = 1 << 19, 1 << 21
"""The least and the most weights of a sample. A choice: the least is that of a tensor coded in chunks."""
_BLOCKS = 8
"""The number of places, evenly spread, from which the rows of a sample are taken. A choice."""
_ROUNDS = 4
"""Steps of `Predictor.solve`, at most. A choice: the prediction is good to a few parts in a thousand anyway."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """How the coded size of one tensor differs from the entropy of its codes."""

    ratio: float
    """Bits of the symbols / (`rate * size`)."""
    header: float
    """Bytes of tables and classes."""


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Predicts the bytes of all files of a plan; `samples` were taken at a plan near it."""

    samples: Mapping[str, Sample]
    fixed: float
    """Bytes that are not codes."""

    def bytes(self, plan: Plan) -> float:
        return self.fixed + sum(self.tensor(t) for t in plan.compressed)

    def tensor(self, tensor: TensorPlan) -> float:
        """Bytes of one payload."""
        return predicted(tensor, self.samples)

    def solve(self, problem: Problem[Any], target: float, bits: float) -> tuple[float, float]:
        """Bits of codes for which all files take `target` bytes, starting from a guess; and the bytes predicted."""
        least = problem.least_bits
        for _ in range(_ROUNDS):
            found = self.bytes(problem.plan(bits))
            if abs(found - target) < 2e-4 * target or (bits <= least and found > target):
                break
            bits = max(bits + 8 * (target - found), least, 1.0)
        return bits, self.bytes(problem.plan(bits))


def predicted(tensor: TensorPlan, samples: Mapping[str, Sample]) -> float:
    sample = samples[tensor.name]
    return tensor.rate * tensor.size / 8 * sample.ratio + sample.header


def take(
    plan: TensorPlan,
    tensors: Tensors,
    clock: Clock,
    *,
    whole: bool,
    inputs: Inputs | None = None,
    plain: TensorPlan | None = None,
) -> Sample:
    """The sample of one tensor; with error feedback if the inputs of its matrix are given.

    Args:
        plain: for a tensor on a trellis, the plain grid of the same error.
    """
    rows, columns, rest = classes_of_weights.view(plan.shape)
    width = columns * rest
    spans = [(0, rows)] if whole else _spans(plan, rows, width)
    fed = None if inputs is None else fed_rows(plan, spans, inputs, tensors, clock)
    with clock("sample"):
        weights = torch.cat([tensors.read(plan.name, a * width, b * width) for a, b in spans])
        found = (
            fed if fed is not None else on_paths(weights.view(-1, width), plan) if plan.codebook == "trellis" else None
        )
        rounded = Quantizer(plain or plan)(weights)
        codes = (rounded if found is None else found).reshape(-1).astype(np.int16)
        if whole:
            draft = entropy.draft(codes.reshape(plan.shape))
            header = len(draft.header.finish())
            exact = plan.rate * plan.size
            if exact < 64:
                return Sample(1.0, draft.size - exact / 8)
            return Sample(8 * (draft.size - header) / exact, header)
        saved = trellis.SAVED * codes.size if plan.codebook == "trellis" else 0.0
        return _estimated(codes.reshape(-1, columns, rest), plan.shape, _entropy(rounded) - saved)


def _spans(plan: TensorPlan, rows: int, width: int) -> list[tuple[int, int]]:
    """The rows of the sample."""
    wanted = min(max(plan.size // _SHARE, _LEAST), _MOST, plan.size)
    each = max(1, min(rows, math.ceil(wanted / width)) // _BLOCKS)
    starts = sorted({k * (rows - each) // max(_BLOCKS - 1, 1) for k in range(_BLOCKS)})
    return [(start, start + each) for start in starts]


def _entropy(codes: npt.NDArray[np.int8] | npt.NDArray[np.int16]) -> float:
    """Bits of all codes together."""
    return entropy_of(np.unique(codes, return_counts=True)[1])


def _estimated(codes: Codes, shape: tuple[int, ...], ideal: float) -> Sample:
    """What `entropy.draft` would give for a tensor of this shape, from some of its rows; `ideal` is the plan's bits."""
    if codes.min() == codes.max() or not ideal:
        return Sample(1.0, 8.0)
    symbols = SYMBOL.take(codes.astype(np.int32) + 2**15)
    low, high = int(symbols.min()), int(symbols.max())
    symbols = (symbols - np.int16(low)).astype(np.int16, copy=False)
    plain = np.bincount(symbols.reshape(-1), minlength=high - low + 1)
    drafts = [entropy.with_tables(codes.shape, low, None, plain[None])]
    chosen = classes_of_weights.of_sums(classes_of_weights.sums(codes), plain)
    if chosen is not None:
        by_class = entropy.counted_by_class(symbols.reshape(-1), chosen, len(plain))
        drafts.append(entropy.with_tables(codes.shape, low, chosen, by_class))
    best = min(drafts, key=lambda d: d.bits)
    share = codes.size / math.prod(shape)
    whole = entropy.cheapest([entropy.Draft(best.coding, shape, round(best.bits / share))])
    header = len(whole.header.finish())
    if best.coding.contexts is not None:
        rows = classes_of_weights.view(shape)[0]
        header += round((rows - codes.shape[0]) * _side_bits(best.coding.contexts.axes[0]) / 8)
    return Sample(whole.bits * share / ideal, header)


def _side_bits(classes: npt.NDArray[np.uint8]) -> float:
    """Bits for the class of one row."""
    return entropy_of(np.unique(classes, return_counts=True)[1]) / classes.size


def samples(
    chosen: Sequence[TensorPlan],
    tensors: Tensors,
    pool: Pool,
    clock: Clock,
    *,
    small: bool,
    plain: Callable[[TensorPlan], TensorPlan],
    inputs: Mapping[str, Inputs] | None = None,
) -> dict[str, Sample]:
    """The samples of some tensors.

    Args:
        small: whether tensors of up to `WHOLE` weights are sampled completely.
        plain: the plain grid of the same error as a tensor's plan.
        inputs: those of matrices whose errors are fed back.
    """
    given = inputs or {}

    def one(tensor: TensorPlan) -> Sample:
        whole = small and tensor.size <= WHOLE
        return take(tensor, tensors, clock, whole=whole, inputs=given.get(tensor.name), plain=plain(tensor))

    return dict(zip((t.name for t in chosen), pool.weighed(one, chosen, lambda t: min(t.size, _MOST)), strict=True))


def growth(plain: Mapping[str, Sample], fed: Mapping[str, Sample], roles: Mapping[str, str]) -> dict[str, float]:
    """The factor by which feedback raises the bits of each tensor in a block.

    It is measured for the tensors of some blocks; for others it is the mean over tensors with the same name within
    their block.

    Args:
        roles: for each tensor in a block, its name within the block.
    """
    found: dict[str, list[float]] = {}
    own = {name: sample.ratio / plain[name].ratio for name, sample in fed.items()}
    for name, factor in own.items():
        found.setdefault(roles[name], []).append(factor)
    mean = {role: math.fsum(factors) / len(factors) for role, factors in found.items()}
    return {name: own.get(name, mean[role]) for name, role in roles.items() if role in mean and name in plain}


def fixed_bytes(
    source: Source, plan: Plan, shards: Sequence[Sequence[str]], taken: Mapping[str, Sample], *, note: str = ""
) -> float:
    """Bytes of headers, indexes and kept tensors of all files, which have this note on what their codes rest on."""
    plan = as_stored(plan)
    total = 0.0
    for names in shards:
        part = told(source, part_of(plan, names))
        items, large = kept_items(source, part, plan)
        places = {item.name: writer.foreseen(item, part[item.name]) for item in items}
        places |= {name: Place("raw", source.by_name[name].nbytes) for name in large}
        kept = sum(place.length for place in places.values())
        places |= {t.name: Place(t.codebook, max(1, round(predicted(t, taken)))) for t in part.compressed}
        own = writer.own_entries(part, places)
        described = [places.get(t.name, Place("share", 0)) for t in part]
        marked = [
            dataclasses.replace(p, checksum=0x5A5A5A5A) if t.name in own else p
            for t, p in zip(part, described, strict=True)
        ]
        header, common = writer.frame(part, marked, own, b"", note=note, base=base_name(source))
        total += len(header) + len(common) + kept
    return total


def text_of(taken: Mapping[str, Sample]) -> bytes:
    """Samples for other processes."""
    return json.dumps({name: [s.ratio, s.header] for name, s in taken.items()}).encode()


def from_text(data: bytes) -> dict[str, Sample]:
    """The inverse of `text_of`."""
    return {name: Sample(*numbers) for name, numbers in json.loads(data).items()}
