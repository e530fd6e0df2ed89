"""The synthetic batch, propagated through a model block by block: the inputs of every block, and the sensitivities.

    draw      random tokens -> texts (`opq.streaming.block_texts`)
    forward   texts -> front -> block 0 -> ... -> block N-1: the input of every block is written to disk
    reverse   v ~ N(0, I) on the outputs -> output matrix -> tail -> block N-1 -> ... -> block 0 -> front

One block is in memory at a time. The reverse sweep gives exactly the sensitivities of `opq.probe`: `a_i` = mean over
the tensor's weights of `E[(d v'f / d w)^2]`. For a matrix with inputs `x_t` and gradients `g_t` at its outputs,
`sum (d v'f / d w)^2 = |sum_t g_t x_t'|^2 = sum_tu (g_t'g_u)(x_t'x_u)` over the tokens t, u of one text, so that the
gradient of the matrix is never formed; output by output these are the sensitivities of its rows. The model's outputs
are the logits before they are scaled or capped. The texts are divided into parts, and the numbers of a part do not
depend on which process works on the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
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
from opq.quantizing.moment import Layout, Moment, costs, widths
from opq.sources.base import Source
from opq.streaming import block_texts
from opq.streaming.clock import Clock
from opq.streaming.model_blocks import PART, Blocks
from opq.streaming.team import Team
from opq.streaming.work_folder import Work, check_space

PROBED = 2
"""How many parts the reverse sweep uses. A choice that trades time for noise: an average over so many weights needs few
texts."""

Progress = Callable[[str, int, int], None]
Felt = dict[str, torch.Tensor]
"""`(d v'f / d w)^2`, its mean over the inputs and its sum or mean over texts, by tensor: (outputs,), or (1,) where all
have the same or their mean is all that is known; float64."""
T = TypeVar("T")


class Inputs:
    """The inputs of one matrix, or of several that share their input; their second moment is computed on demand."""

    def __init__(self, pieces: list[torch.Tensor], layout: Layout):
        self.layout, self._pieces, self._lock = layout, pieces, threading.Lock()
        self._moment: Moment | None = None

    def costs(self, clock: Clock) -> Floats:
        """What an error in each of them costs, see `quantizing.moment.costs`: (width,)."""
        with clock("moments"):
            return costs(Moment(self.layout, tuple(self._blocks())))

    def moment(self, clock: Clock) -> Moment:
        """The moment, with its factors computed; the inputs themselves are then released."""
        with self._lock:
            if self._moment is None:
                with clock("moments"):
                    self._moment = Moment(self.layout, tuple(self._blocks()))
                    _ = self._moment.factors
                self._pieces = []
            return self._moment

    def _blocks(self) -> Iterator[torch.Tensor]:
        count, start = sum(len(p) for p in self._pieces), 0
        for width in widths(self._pieces[0].shape[-1]):
            total = torch.zeros(width, width)
            for piece in self._pieces:
                x = piece[:, start : start + width]
                total.addmm_(x.t(), x)
            yield total.div_(count)[None]
            start += width


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
        self.team.each(lambda: self._reverse(self.mine(parts)))
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
            known = {name: layer.layout for name, layer in layers(block).items() if name in _linear(block)}
            with _Seen(_linear(block)) as seen:

                def one(part: int) -> dict[str, torch.Tensor]:
                    with self.clock("probe"), torch.no_grad():
                        _, given = seen.during(lambda: self.blocks.run(k, self._input(k, part)))
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
            return blocks.tail(self._input(len(blocks), part)).flatten(0, -2)

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
            hidden = blocks.tail(self._input(len(blocks), part)).flatten(0, -2)

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
            out = self.blocks.run(k, self._input(k, part))
        if not bool(torch.isfinite(out).all()):
            raise ProbeError(
                f"block {k} of the model gives NaN or infinity on synthetic texts", remedy="Use --no-probe."
            )
        self.put("input", k + 1, part, out)

    def _back(self, k: int, seen: _Seen, part: int) -> None:
        with self.clock("probe"):
            found = self._through(k, seen, part)
        self.put("squares", k, part, *found)

    def _reverse(self, mine: list[int]) -> bytes:
        last = len(self.blocks)
        for part in self.left("squares", last, mine):
            self.put("squares", last, part, *self.alone(self._from_outputs, part))
        for k in reversed(range(last)):
            if left := self.left("squares", k, mine):
                with self.filled(k) as block, _Seen(_linear(block)) as seen:
                    self.each(left, functools.partial(self._back, k, seen))
            self.progress("probe", 2 * last - k, 2 * last)
        for part in self.left("squares", -1, mine):
            self.put("squares", -1, part, *self.alone(self._to_front, part))
        return b""

    def _from_outputs(self, part: int) -> tuple[torch.Tensor, Felt]:
        """The part after the blocks: the cotangent at the last block's output."""
        generator = torch.Generator().manual_seed(self.seed + 7919 * (part + 1))
        with torch.enable_grad():
            hidden = self._input(len(self.blocks), part).requires_grad_()
            out = self.blocks.tail(hidden)
            cotangent, felt = self._at_head(out.detach(), generator)
            return torch.autograd.grad(out, hidden, cotangent)[0], felt

    def _at_head(self, h: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, Felt]:
        """`W'v` for `v ~ N(0, I)`, some rows of `W` at a time; for `W` itself `E[(v_ti h_tj)^2] = h_tj^2`."""
        name = self.blocks.head
        if name is None:
            return torch.randn(h.shape, generator=generator), {}
        cotangent = torch.zeros_like(h)
        for _, weight in self.head_pieces():
            cotangent += torch.randn((*h.shape[:-1], len(weight)), generator=generator) @ weight
        return cotangent, {name: h.double().square().sum()[None] / h.shape[-1]}

    def _through(self, k: int, seen: _Seen, part: int) -> tuple[torch.Tensor, Felt]:
        """Back through block k: the cotangent at its input, and the sums for its matrices."""
        block, names = self.blocks.blocks[k], self.blocks.named(k)
        linear = _linear(block)
        other = {n: p.requires_grad_() for n, p in block.named_parameters() if p.dim() >= 2 and n not in linear}
        with torch.enable_grad():
            hidden = self._input(k, part).requires_grad_()
            out, given = seen.during(lambda: self.blocks.run(k, hidden))
            ends = [hidden, *(y for _, y in given.values()), *other.values()]
            back, *gradients = torch.autograd.grad(out, ends, self.get("squares", k + 1, part)[0], allow_unused=True)
        felt = {}
        for (name, (x, _)), g in zip(given.items(), gradients, strict=False):
            if g is not None:
                felt[names[name]] = _squares(x.detach(), g) / x.shape[-1]
        for name, g in zip(other, gradients[len(given) :], strict=True):
            if g is not None:
                felt[names[name]] = g.double().square().flatten(1).mean(1)
        return back, felt

    def _to_front(self, part: int) -> tuple[torch.Tensor, Felt]:
        """Back to what is before the blocks. Only some rows of the embedding are used; the others count as 0."""
        around = self.blocks.around
        with torch.enable_grad():
            for parameter in around.values():
                parameter.requires_grad_(True)
            hidden, cotangent = self.blocks.front(part), self.get("squares", 0, part)[0]
            gradients = torch.autograd.grad(hidden, list(around.values()), cotangent, allow_unused=True)
        both = zip(around, gradients, strict=True)
        felt = {n: g.double().square().sum()[None] / self.blocks.spec(n).size for n, g in both if g is not None}
        return torch.zeros(0), felt

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

    def _input(self, k: int, part: int) -> torch.Tensor:
        return self.get("input", k, part)[0]


class _Seen(contextlib.AbstractContextManager["_Seen"]):
    """Records the input and the output of some modules, by name, when the calling thread runs them."""

    def __init__(self, modules: dict[str, nn.Module]):
        self._local = threading.local()
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in modules.items()]

    def during(self, work: Callable[[], T]) -> tuple[T, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """The result of some work, and the inputs and outputs recorded during it."""
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._local.seen = seen
        return work(), seen

    def _hook(self, name: str) -> Callable[..., torch.Tensor]:
        def hook(module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            if name in self._local.seen:
                raise ProbeError("a layer runs twice in one block", got=name, remedy="Use --no-probe.")
            self._local.seen[name] = (given[0], out)
            return out.clone() if torch.is_grad_enabled() else out  # other code may change `out` in place

        return hook

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def _linear(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a block that multiply by a matrix, by the name of the matrix."""
    found = layers(block)
    own = {n: layer.module for n, layer in found.items() if layer.weight_name == "weight"}
    return {n: module for n, module in own.items() if module.weight.dim() == 2}  # type: ignore[operator]


def _squares(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """`|sum_t g_tj x_t'|^2` by output j, summed over texts; without a dimension for texts, all tokens are of one."""
    x, g = (t if t.dim() == 3 else t.flatten(0, -2)[None] for t in (x, g))
    return ((x @ x.transpose(1, 2)).double() @ g.double()).mul_(g).sum((0, 1))


_VALUES, _OF = "values", "of "
