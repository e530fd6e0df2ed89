"""One pass of the dense network: second moments of the inputs of some layers, `S = E[x x']`.

Letters: `S` second moment, `x` one input of a layer's weight matrix (for a convolution: one patch), `d` its length.
The quadratic form of `S` is what error feedback minimises. The statistics that re-normalisation needs of the dense
network are collected in the same pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from opq.base.calls import warn
from opq.base.pool import Pool, give_back, torch_threads
from opq.base.stages import stage
from opq.errors import ProbeWarning
from opq.models.batch import Batch
from opq.models.observe import batch_statistics, tidied, untouched, watching
from opq.models.outputs import counted, weighing
from opq.models.record import Record
from opq.probing import inside, recurrent
from opq.probing.attention import projecting
from opq.probing.layers import CONVOLUTIONS, Layer, inputs_of
from opq.probing.renorm import Statistics, Tally
from opq.probing.sharing import ApartError, Shared
from opq.quantizing.moment import DAMPING_REAL, Half
from opq.quantizing.triangle import Square, Triangle

PRIOR = 0.5
"""How much `W'W` adds to the moment S of a head, which after pooling has only one input for each sample: the trace of
what is added, as a fraction of the trace of S. docs/research.md, "What was tried"."""
ROWS, FEWEST, PLENTY = 4, 16384, 64
"""How many inputs of a layer are used: `ROWS` for each coordinate, but at least `FEWEST`; of a convolution, so many
positions, but at most `PLENTY` for each coordinate. With half or twice as many, results differed by no more than chance
(docs/research.md)."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """Statistics and outputs of the dense network."""

    statistics: Statistics
    """Mean and variance at every BatchNorm's input."""
    outputs: list[torch.Tensor]
    """The outputs of the first micro-batch, as errors are measured on them: 0 at padding tokens."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Collector:
    """A model, and the inputs for which its layers are observed; the model must not change while this is in use."""

    model: nn.Module
    batch: Batch
    micro_batch: int
    damping: float

    def moments(self, wanted: Mapping[str, Layer]) -> dict[str, Half]:
        """The moments of some layers by weight name, in one pass; layers that the model never runs are left out."""
        return self._run(wanted, dense=False)[0]

    def both(self, wanted: Mapping[str, Layer]) -> tuple[dict[str, Half], Dense]:
        """The moments of some layers, and the statistics and outputs of the pass."""
        return self._run(wanted, dense=True)

    def _run(self, wanted: Mapping[str, Layer], *, dense: bool) -> tuple[dict[str, Half], Dense]:
        with stage("moments"):
            try:
                return self._passed(wanted, dense, sharing=True)
            except ApartError:
                return self._passed(wanted, dense, sharing=False)
            finally:
                give_back()

    @torch.no_grad()
    def _passed(self, wanted: Mapping[str, Layer], dense: bool, *, sharing: bool) -> tuple[dict[str, Half], Dense]:
        with torch_threads() as threads:
            sums, tally = _Sums(wanted, threads, sharing=sharing), Tally()
            outputs: list[torch.Tensor] = []
            with contextlib.ExitStack() as stack:
                stack.enter_context(untouched(self.model))
                norms = stack.enter_context(batch_statistics(self.model))
                stack.enter_context(tidied(self.model))
                stack.enter_context(watching(sums.modules, sums.see))
                stack.enter_context(projecting(self.model, sums.modules, sums.see))
                if dense:
                    stack.enter_context(watching(dict(norms), tally.see))
                record = Record(self.model)
                for part in self.batch.to(self.model).parts(self.micro_batch):
                    sums.expect(part, self.batch.samples)
                    output = part(self.model)
                    if dense:
                        outputs = outputs or [counted(o.clone(), part.mask) for o in weighing(output)]
                    record.restore()
                found = sums.moments(self.damping)
        return found, Dense(tally.statistics, outputs)


class _Sums:
    """Sums of `x x'` of some layers, by weight name, over one pass."""

    def __init__(self, wanted: Mapping[str, Layer], threads: Pool, *, sharing: bool):
        self._wanted, self._threads = wanted, threads
        self._shared = Shared(sharing=sharing)
        self.modules = {layer.module_name: layer.module for layer in wanted.values()}
        self._names: dict[str, list[str]] = {}
        for name, layer in wanted.items():
            self._names.setdefault(layer.module_name, []).append(name)
        self._sums: dict[str, list[Triangle]] = {}
        self._counts = dict.fromkeys(wanted, 0)
        self._mask: torch.Tensor | None = None
        self._share, self._samples = 1.0, 0

    def expect(self, part: Batch, samples: int) -> None:
        """Announces the next micro-batch `part`; the whole batch has `samples` samples."""
        self._mask, self._share, self._samples = part.mask, part.samples / samples, samples
        self._shared.forget()

    def see(self, module_name: str, module: nn.Module, given: Sequence[torch.Tensor]) -> None:
        """Adds the inputs of one call of one module."""
        within = inside.seen(module, given) if inside.layouts(module) else {}
        for name in self._names[module_name]:
            if not within or self._wanted[name].weight_name in within:
                self._add(name, given, within)

    def _add(self, name: str, given: Sequence[torch.Tensor], within: Mapping[str, torch.Tensor]) -> None:
        """Adds the inputs of one layer."""
        layer = self._wanted[name]
        if self._shared.takes(name, layer.module, given[0]):
            return
        rows = max(FEWEST, ROWS * layer.width)
        rows = min(rows, PLENTY * layer.width) if isinstance(layer.module, CONVOLUTIONS) else rows
        given, within = [self._real(x) for x in given], {n: x.float() for n, x in within.items()}
        x = inputs_of(layer, given, math.ceil(rows * self._share), self._counts[name], within)
        if name not in self._sums:
            self._sums[name] = [Triangle.zeros(len(x), w, like=x) for w in layer.widths]
        for piece, total in zip(torch.split(x, list(layer.widths), dim=-1), self._sums[name], strict=True):
            _add_products(piece, total, self._threads)
        self._counts[name] += int(x.shape[1])

    def moments(self, damping: float) -> dict[str, Half]:
        """The moment of every layer that was run; layers whose sums are not finite are left out with a warning.

        Weights that are always multiplied by the same inputs have one moment.
        """
        self._shared.check()
        like = self._shared.like
        for name, blocks in self._sums.items():
            for _, _, square in _squares(blocks):
                square.div_(self._counts[name])
        finite = {
            name: blocks
            for name, blocks in self._sums.items()
            if all(bool(torch.isfinite(square).all()) for _, _, square in _squares(blocks))
        }
        seen = [name for name in self._wanted if like.get(name, name) in self._sums]
        if lost := [name for name in seen if like.get(name, name) not in finite]:
            warn(
                f"the inputs of {', '.join(map(repr, lost[:3]))} are NaN, infinite or too large on the probe's inputs: "
                f"{len(lost)} of {len(seen)} layers are rounded without feedback",
                ProbeWarning,
            )
        halves: dict[str, Half] = {}
        for name in (name for name in seen if name not in lost):
            first = like.get(name, name)
            if self._is_head(first):
                blocks = [Triangle.of(block.upper()) for block in finite[first]] if like else finite[first]
                halves[name] = self._head(self._wanted[name], blocks, damping)
            else:
                of_first = halves.get(first) or self._plain(self._wanted[first], finite[first], damping)
                halves[first] = halves[name] = of_first
        return halves

    def _is_head(self, name: str) -> bool:
        """Whether a layer has few inputs, one for each sample, as behind a pooling."""
        return self._counts[name] <= self._samples and self._counts[name] < self._wanted[name].width

    def _plain(self, layer: Layer, blocks: Sequence[Triangle], damping: float) -> Half:
        """The moment of an ordinary layer."""
        if recurrent.matrices(layer.module):  # synthetic sequences resemble real ones less than images do
            damping = max(damping, DAMPING_REAL)
        return Half(layer.layout, tuple(blocks), damping)

    def _head(self, layer: Layer, blocks: Sequence[Triangle], damping: float) -> Half:
        """The moment of a head. It has too few inputs, so a multiple of `W'W` is added, to the blocks themselves.

        The inputs that a layer was trained on vary most in the directions that its weights `W` respond to, and `W'W`
        is large in these directions.
        """
        pieces = torch.split(layer.weight.detach().float(), list(layer.widths), dim=-1)
        for piece, total in zip(pieces, blocks, strict=True):
            own = piece.transpose(1, 2) @ piece
            trace, of_own = (m.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None] for m in (total.upper(), own))
            share = PRIOR * trace / of_own.clamp(min=torch.finfo(own.dtype).tiny)
            for i, j, square in total.squares:
                square += share * own[:, i, j]
        return Half(layer.layout, tuple(blocks), max(damping, DAMPING_REAL))

    def _real(self, x: torch.Tensor) -> torch.Tensor:
        """The inputs in float32; of inputs (samples, length, d) with a mask, only those of tokens that it counts."""
        x = x.detach().float()
        masked = self._mask is not None and x.dim() == 3 and x.shape[:2] == self._mask.shape
        return x[self._mask] if masked else x


def _squares(blocks: Sequence[Triangle]) -> Iterator[Square]:
    """All that is held of the blocks of one moment."""
    return (square for block in blocks for square in block.squares)


def _add_products(x: torch.Tensor, total: Triangle, threads: Pool) -> None:
    """Adds `x'x` of (groups, rows, d) to `total`."""

    def add(some: Square) -> None:
        i, j, square = some
        square.baddbmm_(x[:, :, i].transpose(1, 2), x[:, :, j])

    for _ in threads.ordered(torch.no_grad()(add), total.squares):
        pass
