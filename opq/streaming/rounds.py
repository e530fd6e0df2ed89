"""The budget of a folder: the size of the first round is predicted from samples; later rounds are corrected by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from opq.compression.budget import AIM, Round, Search, by_line
from opq.compression.in_file import head
from opq.compression.problem import Problem
from opq.compression.shortfall import Shortfall, shortfall
from opq.errors import CertificateError, InfeasibleError
from opq.plan import Plan, as_stored
from opq.streaming import size as prediction
from opq.streaming.block_probe import Carried
from opq.streaming.measure import Measure
from opq.streaming.resume import History
from opq.streaming.second_pass import Target, write
from opq.streaming.task import Task

NEAR = 0.005
"""Samples are taken again while the solution changes by more than this fraction. A choice: the width of the budget's
window."""
GROWN = 0.02
"""The bits that error feedback adds are measured again when bits have changed by more than this fraction. A choice."""
Samples = dict[str, prediction.Sample]


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """The files of the round that was chosen, all on disk."""

    plan: Plan
    bytes: int
    rounds: int
    """How often pass two was run."""
    shortfall: Shortfall | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Growth:
    """The factor by which error feedback raises the bits of each tensor, and the bits at which it was measured."""

    factors: dict[str, float]
    bits: float


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds:
    """Pass two, repeated with a corrected budget if the size is not in the window."""

    task: Task
    problem: Problem[Measure]
    target: Target
    history: History

    def run(self) -> Written:
        """Writes the files of the round that meets the budget, or of the largest round below it.

        With weights of few distinct values (float8), the size jumps as steps change, and may never be in the window.

        Raises:
            InfeasibleError: no files are that small.
            CertificateError: no round was within the budget.
        """
        limits, least = self.task.limits, max(self.problem.least_bits, 1.0)
        search = Search(target=self.target.size, least=least, rounds=limits.rounds, step=by_line, window=limits.window)
        found = search.run(self.make, self.first, list(self.history.done))
        if found.chosen is None:
            if (last := found.rounds[-1]).setting <= least:
                raise self.infeasible(last.bytes)
            got = [one.bytes for one in found.rounds]
            raise CertificateError("no round met the budget", got=got, wanted=f"at most {self.target.size:.0f}")
        number = found.rounds.index(found.chosen)
        plan, again = self.plan(found.chosen.setting, self.history.predicted[number]), number + 1 < len(found.rounds)
        size = write(self.task, plan, self.target) if again else int(found.chosen.bytes)
        short = shortfall(self.problem, plan, size / self.target.size, most=found.chosen.most)
        return Written(plan, size, len(found.rounds) + again, short)

    def make(self, bits: float, before: Sequence[Round]) -> tuple[Round, Plan]:
        """Writes all files with so many bits of codes."""
        if before:
            self.history.begin(bits, AIM * self.target.size)
        plan = self.plan(bits, self.history.predicted[-1])
        one = Round(bits, write(self.task, plan, self.target), most=plan.multiplier == 0)
        self.history.end(one)
        return one, plan

    def plan(self, bits: float, predicted: float) -> Plan:
        """The plan of a round."""
        with self.task.clock("solve"):
            return as_stored(self.problem.plan(bits).replace(predicted_bytes=round(predicted)))

    def infeasible(self, smallest: float) -> InfeasibleError:
        """The error that gives the smallest possible budget."""
        needed = 8 * smallest * 1.005 / self.task.source.elements
        return InfeasibleError(
            f"no folder of {self.task.source.label} is that small",
            got=f"a budget of {self.target.size:.0f} bytes",
            wanted=f"about {smallest * 1.005:.0f} bytes, that is bits={needed:.4f}, or more",
        )

    # --- the first round ---------------------------------------------------------------------

    def first(self) -> float:
        """Bits of codes for which the predicted size is the budget; those of an earlier run if it had begun a round."""
        if self.history.begun is None:
            self.history.begin(*self.foreseen())
        assert self.history.begun is not None
        return self.history.begun

    def foreseen(self) -> tuple[float, float]:
        """Bits of codes, and the bytes of all files that samples predict for them."""
        wanted, least = AIM * self.target.size, self.problem.least_bits
        with self.task.clock("solve"):
            sketch = self.problem.sketch()
            nothing = {t.name: prediction.Sample(1.0, 24.0) for t in sketch.compressed}
            bits = max(8 * (wanted - self.fixed(sketch, nothing) - 24 * len(nothing)), least, 1.0)
        growth = _Growth({}, 0.0)
        for _ in range(self.task.limits.samplings):
            before, guess = bits, self.problem.plan(bits)
            taken, growth = self.samples(guess, growth)
            with self.task.clock("solve"):
                fixed = self.fixed(guess, taken)
                bits, predicted = prediction.Predictor(taken, fixed).solve(self.problem, wanted, bits)
            if abs(bits - before) < NEAR * before:
                break
        if bits <= least and predicted > 1.01 * self.target.size:
            raise self.infeasible(predicted)
        return bits, predicted

    def fixed(self, plan: Plan, taken: Samples) -> float:
        """Bytes besides the codes."""
        task, shards = self.task, self.target.shards
        return len(self.target.index) + prediction.fixed_bytes(task.source, plan, shards, taken, note=task.basis.note)

    def samples(self, plan: Plan, growth: _Growth) -> tuple[Samples, _Growth]:
        """Samples of every compressed tensor, divided among the ranks; and the growth by error feedback, measured again
        if needed."""
        task, sizes = self.task, [t.size for t in plan.compressed]
        small = sum(sizes) <= prediction.SMALL
        mine = [plan.compressed[k] for k in task.team.mine([min(size, prediction.WHOLE) for size in sizes])]

        def work() -> bytes:
            own = prediction.samples(mine, task.tensors, task.pool, task.clock, small=small, plain=self.problem.plain)
            return prediction.text_of(own)

        taken: Samples = {}
        for part in task.team.each(work):
            taken |= prediction.from_text(part)
        bits = sum(t.rate * t.size for t in plan.compressed)
        if task.carried is not None and abs(bits - growth.bits) > GROWN * bits:
            growth = _Growth(self.grown(task.carried, plan, taken, small), bits)
        return {name: self.complete(name, sample, growth) for name, sample in taken.items()}, growth

    def complete(self, name: str, sample: prediction.Sample, growth: _Growth) -> prediction.Sample:
        """The sample of a tensor, with what error feedback adds to its codes and what stands before them."""
        before = len(head(self.task.source, name))
        return prediction.Sample(sample.ratio * growth.factors.get(name, 1.0), sample.header + before)

    def grown(self, carried: Carried, plan: Plan, plain: Samples, small: bool) -> dict[str, float]:
        """The factor by which error feedback raises the bits of each tensor, measured in some of the blocks
        and in the output matrix."""
        task, blocks = self.task, carried.blocks
        every = [*range(0, len(blocks), -(-len(blocks) // task.limits.fed_blocks)), len(blocks)]
        mine = every[task.team.rank :: task.team.size]

        def work() -> bytes:
            taken: Samples = {}
            for k in mine:
                inputs = carried.inputs(k)
                chosen = [t for t in plan.compressed if t.name in inputs]
                taken |= prediction.samples(
                    chosen,
                    task.tensors,
                    task.pool,
                    task.clock,
                    small=small,
                    plain=self.problem.plain,
                    inputs=inputs,
                )
            return prediction.text_of(taken)

        fed: Samples = {}
        for part in task.team.each(work):
            fed |= prediction.from_text(part)
        roles = {name: role for k in range(len(blocks)) for role, name in blocks.named(k).items()}
        roles |= {} if blocks.fed_head is None else {blocks.fed_head: ""}
        return prediction.growth(plain, fed, roles)
