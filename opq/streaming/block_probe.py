"""The synthetic batch, propagated through a model block by block: the inputs of every block, and the sensitivities.

    draw      random tokens -> texts (`opq.streaming.block_texts`)
    forward   texts -> front -> block 0 -> ... -> block N-1: the input of every block is written to disk
    reverse   v ~ N(0, I) on the outputs -> output matrix -> tail -> block N-1 -> ... -> block 0 -> front
              (`opq.streaming.block_gradients`)

One block is in memory at a time. The reverse sweep gives exactly the sensitivities of `opq.probe`: `a_i` = mean over
the tensor's weights of `E[(d v'f / d w)^2]`. The texts are divided into parts, and the numbers of a part do not depend
on which process works on the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from opq.base.arrays import Floats
from opq.base.pool import Pool, give_back
from opq.errors import ProbeError
from opq.probing import usage
from opq.probing.layers import layers
from opq.quantizing.moment import Layout
from opq.sources.base import Source
from opq.streaming import block_texts
from opq.streaming.block_gradients import Felt, reverse
from opq.streaming.block_inputs import Inputs, Seen, linear
from opq.streaming.clock import Clock
from opq.streaming.model_blocks import PART, Blocks
from opq.streaming.team import Team
from opq.streaming.work_folder import Work, check_space

PROBED = 2
"""How many parts the reverse sweep uses. A choice that trades time for noise: an average over so many weights needs few
texts."""

Progress = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What the probe in blocks tells of a model's tensors, by the source's names of those that hold the values."""

    sensitivity: Mapping[str, float]
    """`a_i` of every matrix that the outputs depend on."""
    rows: Mapping[str, Floats]
    """The sensitivity of each output, (outputs,)."""
    usage: Mapping[str, Floats]
    """How much each row of the table of tokens, and of the output matrix, counts: (rows,)."""
    layouts: Mapping[str, Layout]
    costs: Callable[[], Mapping[str, Floats]]
    """Measures what errors in each column cost, of all matrices in which they are fed back."""

    def columns(self, names: Collection[str]) -> Mapping[str, Floats]:
        """What errors in each column of some tensors cost, of those in which they are fed back."""
        return {name: found for name, found in self.costs().items() if name in names} if names else {}

    def layout(self, name: str) -> Layout | None:
        """How feedback takes a tensor; None if errors are not fed back in it."""
        return self.layouts.get(name)


@dataclasses.dataclass(frozen=True)
class Carried:
    """The synthetic batch at every block of a model; its files in the work folder survive an interruption."""

    blocks: Blocks
    key: str
    """Identifies source and seed."""
    seed: int
    work: Work
    team: Team
    pool: Pool
    clock: Clock
    progress: Progress
    rows: int = 4096
    """Rows of the output matrix in memory at one time."""

    def found(self, source: Source) -> Found:
        """What the probe tells of the tensors of a source; those of tied names are added.

        Raises:
            ProbeError: as `sensitivities`.
        """
        felt: Felt = {}
        for name, square in self.sensitivities().items():
            holder = source.by_name[name].like or name
            felt[holder] = felt[holder] + square if holder in felt else square
        rows = {name: square.numpy() for name, square in felt.items() if len(square) > 1}
        sensitivity = {name: float(square.mean()) for name, square in felt.items()}
        used = {source.by_name[name].like or name: counts for name, counts in self._usage().items()}
        head = self.blocks.fed_head
        layouts = self.layouts | ({} if head is None else {source.by_name[head].like or head: Layout()})

        def of_holders() -> dict[str, Floats]:
            return {source.by_name[name].like or name: found for name, found in self.costs().items()}

        return Found(sensitivity, rows, used, layouts, of_holders)

    def sensitivities(self) -> Felt:
        """Those of every matrix that the outputs depend on, by the source's names.

        Raises:
            ProbeError: one is NaN or infinite; the text names that nearest to the outputs.
        """
        parts = range(min(PROBED, self.blocks.parts))
        self.team.first(self._check_space)
        block_texts.write(self)
        self.team.each(lambda: self._forward(self.mine(range(self.blocks.parts))))
        self.team.each(lambda: reverse(self, self.mine(parts)))
        total: Felt = {}
        for stage in range(-1, len(self.blocks) + 1):
            for part in parts:
                for name, square in self.get("squares", stage, part)[1].items():
                    square = square / (PART * len(parts))
                    total[name] = total[name] + square if name in total else square
        if wrong := [name for name, square in total.items() if not bool(torch.isfinite(square).all())]:
            raise ProbeError(
                f"the gradient of {wrong[-1]} is NaN or infinite on synthetic texts", remedy="Use --no-probe."
            )
        return total

    def inputs(self, k: int) -> dict[str, Inputs]:
        """The inputs of the matrices of block k, by the source's names; call `sensitivities` first.

        Behind the last block are those of the output matrix.
        """
        if k == len(self.blocks):
            return self._at_outputs()
        names, found = self.blocks.named(k), {}
        with self.filled(k) as block:
            known = {name: layer.layout for name, layer in layers(block).items() if name in linear(block)}
            with Seen(linear(block)) as seen:

                def one(part: int) -> dict[str, torch.Tensor]:
                    with self.clock("probe"), torch.no_grad():
                        _, given = seen.during(lambda: self.blocks.run(k, self.input(k, part)))
                    return {name: x.detach().flatten(0, -2) for name, (x, _) in given.items()}

                parts = list(self.pool.ordered(one, range(self.blocks.parts)))
        shared: dict[tuple[Any, ...], Inputs] = {}
        for name, layout in known.items():
            pieces = [part[name] for part in parts if name in part]
            if pieces:
                same = (layout, *((p.data_ptr(), p.shape) for p in pieces))
                found[names[name]] = shared.setdefault(same, Inputs(pieces, layout))
        return found

    def costs(self) -> dict[str, Floats]:
        """What errors in each input of the matrices cost, by the source's names; call `sensitivities` first."""
        stages = range(len(self.blocks) + 1)
        self.team.each(lambda: self._measure_costs(self.mine(stages)))
        found = (self.get("costs", k, 0)[1] for k in stages)
        return {name: cost.numpy() for of_block in found for name, cost in of_block.items()}

    def _measure_costs(self, mine: Iterable[int]) -> bytes:
        for k in (k for k in mine if self.left("costs", k, [0])):
            inputs = self.inputs(k)
            shared = list(dict.fromkeys(inputs.values()))
            of = dict(zip(shared, self.pool.ordered(lambda one: one.costs(self.clock), shared), strict=True))
            self.put("costs", k, 0, torch.zeros(0), {name: torch.tensor(of[one]) for name, one in inputs.items()})
        return b""

    def _at_outputs(self) -> dict[str, Inputs]:
        """The inputs of the output matrix, if errors are fed back in it."""
        blocks = self.blocks
        if blocks.fed_head is None:
            return {}

        @torch.no_grad()
        def one(part: int) -> torch.Tensor:
            return blocks.tail(self.input(len(blocks), part)).flatten(0, -2)

        return {blocks.fed_head: Inputs([self.alone(one, part) for part in range(blocks.parts)], Layout())}

    @property
    def layouts(self) -> dict[str, Layout]:
        """How feedback would take the tensors of layers in blocks, by the source's names."""
        return {
            self.blocks.named(k)[name]: layer.layout
            for k, block in enumerate(self.blocks.blocks)
            for name, layer in layers(block).items()
        }

    def _usage(self) -> dict[str, Floats]:
        """How much each row of the table of tokens, and of the output matrix, counts; none where nothing tells it."""
        table, head = self.blocks.table, self.blocks.head
        rows = self.blocks.spec(table).shape[0]
        if head is not None and self.blocks.writes and self.blocks.spec(head).shape[0] == rows:
            found = usage.weight(np.frombuffer(self.team.first(self._predicted)), rows)
            return {} if found is None else {table: found, head: found}
        found = usage.weight(None, rows)
        return {} if found is None else {table: found}

    def _predicted(self) -> bytes:
        """How often the model expects each token on the texts of the reverse sweep, some rows of its output matrix at
        a time: the normalisers of all places, then the sum of the distributions.
        """
        blocks = self.blocks

        @torch.no_grad()
        def summed(part: int) -> Floats:
            hidden = blocks.tail(self.input(len(blocks), part)).flatten(0, -2)

            def scores() -> Iterator[torch.Tensor]:
                return ((blocks.scale * (hidden @ weight.T)).double() for _, weight in self.head_pieces())

            norms = torch.full((len(hidden), 1), -torch.inf, dtype=torch.float64)
            for some in scores():
                norms = torch.logaddexp(norms, some.logsumexp(1, keepdim=True))
            found: Floats = torch.cat([(some - norms).exp().sum(0) for some in scores()]).numpy()
            return found

        parts = range(min(PROBED, blocks.parts))
        return bytes(sum(self.alone(summed, part) for part in parts).tobytes())  # type: ignore[union-attr]

    def head_pieces(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The output matrix in float32, some rows at a time, each with the number of the first."""
        rows = self.blocks.spec(str(self.blocks.head)).shape[0]
        for start in range(0, rows, self.rows):
            yield start, self.blocks.head_rows(start, min(start + self.rows, rows))

    # --- sweeps ------------------------------------------------------------------------------

    def mine(self, parts: Iterable[int]) -> list[int]:
        return [part for part in parts if part % self.team.size == self.team.rank]

    def _forward(self, mine: list[int]) -> bytes:
        last = len(self.blocks)
        for part in self.left("input", 0, mine):
            self.put("input", 0, part, self.alone(lambda p: self.blocks.front(p), part))
        for k in range(last):
            if left := self.left("input", k + 1, mine):
                with self.filled(k):
                    self.each(left, functools.partial(self._onwards, k))
            self.progress("probe", k + 1, 2 * last)
        return b""

    def _onwards(self, k: int, part: int) -> None:
        with self.clock("probe"), torch.no_grad():
            out = self.blocks.run(k, self.input(k, part))
        if not bool(torch.isfinite(out).all()):
            raise ProbeError(
                f"block {k} of the model gives NaN or infinity on synthetic texts", remedy="Use --no-probe."
            )
        self.put("input", k + 1, part, out)

    # --- threads and files -------------------------------------------------------------------

    def _check_space(self) -> bytes:
        wanted = 4 * self.blocks.ids.numel() * self.blocks.width * (len(self.blocks) + 1)
        there = sum(path.stat().st_size for path in self.work.inner.glob(f"probe-{self.key}-*"))
        check_space(self.work.folder, wanted - there)
        return b""

    def alone(self, work: Callable[[int], T], part: int) -> T:
        """Runs the work in one thread of the pool, so that no sum depends on the number of threads."""

        def timed(part: int) -> T:
            with self.clock("probe"):
                return work(part)

        return self.pool.submit(timed, part).result()

    @contextlib.contextmanager
    def filled(self, k: int) -> Iterator[nn.Module]:
        with contextlib.ExitStack() as stack:
            with self.clock("read"):
                block = stack.enter_context(self.blocks.filled(k))
            yield block
        give_back()

    def each(self, parts: list[int], work: Callable[[int], None]) -> None:
        for _ in self.pool.ordered(work, parts):
            pass

    def left(self, kind: str, stage: int, mine: list[int]) -> list[int]:
        return [part for part in mine if not (self.work.inner / self._name(kind, stage, part)).is_file()]

    def _name(self, kind: str, stage: int, part: int) -> str:
        return f"probe-{self.key}-{kind}-{stage + 1:05}-{part:02}"

    def put(self, kind: str, stage: int, part: int, values: torch.Tensor, felt: Felt | None = None) -> None:
        squares = {f"{_OF}{name}": square.contiguous() for name, square in (felt or {}).items()}
        self.work.put(self._name(kind, stage, part), save({_VALUES: values.detach().contiguous(), **squares}))

    def get(self, kind: str, stage: int, part: int) -> tuple[torch.Tensor, Felt]:
        name = self._name(kind, stage, part)
        data = self.work.get(name)
        if data is None:
            raise ProbeError("a file of the probe is gone", got=f"no {name}", remedy="Run the command again.")
        held = load(data)
        return held[_VALUES], {name.removeprefix(_OF): t for name, t in held.items() if name.startswith(_OF)}

    def input(self, k: int, part: int) -> torch.Tensor:
        return self.get("input", k, part)[0]


_VALUES, _OF = "values", "of "
