"""Finds the plan whose file meets the budget: solve, quantize, pack, measure, and solve again.

What a file takes beyond the entropy of its codes (tables, header, kept tensors, what feedback adds to the rate) is not
known before it is made. So it is made in memory and measured, and the next round solves with the measured overhead.
Usually there are one to three rounds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from opq.allocation.stats import TensorStats
from opq.base.arrays import Narrow, narrow
from opq.base.pool import give_back
from opq.base.progress import Progress
from opq.base.stages import stage
from opq.compression import in_file
from opq.compression.budget import AIM, Round, Search, by_line
from opq.compression.coders import Coder, CodesByName
from opq.compression.differences import Differences
from opq.compression.problem import Problem
from opq.compression.result import Result
from opq.compression.shortfall import shortfall
from opq.compression.two_steps import two_steps
from opq.compression.unchanged import Unchanged
from opq.errors import InfeasibleError
from opq.file import writer
from opq.file.kept import keep
from opq.file.stored import Stored
from opq.plan import Plan, as_stored
from opq.sources.base import Source

FINISHES = 4
"""The most drafts that are finished. A choice: the kept tensors that change with the codes may make a finished file a
little larger than its draft, and then a smaller draft is made."""
ROUNDS = 12
"""The most rounds of one search. A choice: one to three are usual."""
MARGIN = 24
"""Bytes by which the indexes of two plans for the same tensors may differ: the budget and a few numbers. A choice."""
HEADER, PLACE, TABLE = 150, 6, 24
"""Rough bytes of an empty file, of a tensor in the index and of a frequency table, for the first round only. A choice:
later rounds measure the overhead."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Draft:
    """The codes of a plan and their file, before or after kept tensors are adapted to the codes."""

    plan: Plan
    codes: CodesByName
    result: Result
    changed: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """New values of kept tensors."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """Finds the plan whose file meets the budget."""

    source: Source
    problem: Problem[TensorStats]
    coder: Coder
    progress: Progress
    unchanged: Unchanged = dataclasses.field(default_factory=Unchanged)
    """What is taken over from an older file."""

    def run(self) -> Draft:
        """The codes whose file is within the window below the budget; if there is none, of the largest file below it.

        Raises:
            InfeasibleError: no file is that small; the text gives the smallest possible budget.
        """
        if self.problem.options.sparsity is not None:
            return self.finish(self.draft(self.decide()))
        if not self.problem.stats and self.unchanged.head is not None:
            return self.as_before(self.unchanged.head)
        target, later, overhead = self.target, 0, float(self.overhead(self.problem.sketch()))
        for _ in range(FINISHES):
            search = Search(target=target - later, least=self.problem.least_bits, rounds=ROUNDS, step=by_line)
            found = search.run(
                functools.partial(self.round, overhead), functools.partial(first_bits, search.target, overhead)
            )
            if found.chosen is None or found.made is None:
                break
            draft, overhead = found.made, _overhead(found.rounds[-1])
            done = self.finish(draft)
            if done.result.bytes <= target:
                return self.explained(done, most=found.chosen.most)
            later = max(done.result.bytes - draft.result.bytes, later + 1)
        done = self.smallest()
        if done.result.bytes > target:
            raise self.infeasible(target, done.result.bytes)
        return self.explained(done, most=False)

    def as_before(self, head: Plan) -> Draft:
        """The file in which every compressed tensor is as it was in the older one; raises where it is too large."""
        plan = head.replace(tensors=self.problem.sketch().tensors, budget=self.problem.options.budget)
        done = self.finish(self.draft(plan))
        if done.result.bytes > self.target:
            raise self.infeasible(self.target, done.result.bytes)
        return done

    def explained(self, done: Draft, *, most: bool) -> Draft:
        """The draft with the reason for its shortfall, if any; `most`: whether no plan gives its codes more bits."""
        why = shortfall(self.problem, done.plan, done.result.bytes / self.target, most=most)
        return dataclasses.replace(done, result=dataclasses.replace(done.result, shortfall=why))

    def round(self, overhead: float, bits: float, before: Sequence[Round]) -> tuple[Round, Draft]:
        """The round, and the draft, whose codes take `bits` bits."""
        overhead = _overhead(before[-1]) if before else overhead
        with stage("solve"):
            plan = self.problem.plan(bits).replace(predicted_bytes=round(bits / 8 + overhead))
        draft = self.draft(plan)
        return Round(bits, draft.result.bytes, most=draft.plan.multiplier == 0), draft

    def smallest(self) -> Draft:
        """The smallest possible file."""
        return self.finish(self.draft(self.problem.plan(self.problem.least_bits)))

    def draft(self, plan: Plan) -> Draft:
        """Codes of a plan and their file, before kept tensors are adapted to the codes."""
        plan = as_stored(plan)
        with stage("quantize"):
            codes = self.code(plan)
            give_back()
        with stage("encode"):
            return Draft(plan, codes, self.assembled(plan, codes, {}))

    def code(self, plan: Plan) -> CodesByName:
        """The codes of every compressed tensor."""
        codes: CodesByName = dict(self.unchanged.codes)
        for name, found in self.coder.codes(tuple(t for t in plan.compressed if t.name not in codes)):
            codes[name] = narrow(found)
            self.progress("quantize", len(codes), len(plan.compressed))
        return codes

    def finish(self, draft: Draft) -> Draft:
        """The draft with kept tensors adapted to its codes; packed again only if some have changed."""
        with stage("renormalise"):
            changed = self.coder.kept(draft.plan, draft.codes)
            give_back()
        with stage("encode"):
            if not changed:
                return draft
            result = self.assembled(draft.plan, draft.codes, changed)
            return dataclasses.replace(draft, result=result, changed=changed)

    def assembled(self, plan: Plan, codes: CodesByName, changed: Mapping[str, torch.Tensor]) -> Result:
        """The result of storing these codes; `changed` holds new values of kept tensors."""
        return assemble(self.source, plan, codes, changed, items=self.unchanged.items, note=self.coder.note)

    def decide(self) -> Plan:
        """The plan that meets the budget by predicted size alone; no weight is quantized."""
        options = self.problem.options
        if options.sparsity is not None:
            found = two_steps(
                self.source,
                self.problem.stats,
                self.problem.sensitivities,
                sparsity=options.sparsity,
                bits=options.bits or 0.0,
                constraints=options.constraints,
            )
            plan = self.problem.planned(found)
            return plan.replace(predicted_bytes=round(found.bits / 8 + self.overhead(plan)))
        target, least = self.target, self.problem.least_bits
        overhead = self.overhead(self.problem.sketch())
        if not self.problem.stats and self.unchanged.head is not None:
            tensors = self.problem.sketch().tensors
            return self.unchanged.head.replace(tensors=tensors, budget=self.problem.options.budget)
        bits = first_bits(target, overhead)
        if bits < least:
            raise self.infeasible(target, math.ceil(least / 8 + overhead))
        plan = self.problem.plan(bits)
        own = [t for t in plan.compressed if t.name in self.problem.stats]
        spent = min(bits, sum(t.rate * t.size for t in own))  # less where no tensor can take more
        return plan.replace(predicted_bytes=round(spent / 8 + overhead))

    @property
    def target(self) -> float:
        """Bytes that the file may have."""
        budget = self.problem.options.budget
        assert budget is not None, "the caller handles sparsity="
        return budget.bytes(elements=self.source.elements, source_bytes=self.source.bytes)

    def overhead(self, plan: Plan) -> float:
        """Predicted bytes beside the codes: kept tensors, header, frequency tables."""
        kept = sum(item.payload(plan[item.name]).size for item in keep(self.source, plan, {}))
        return kept + self.unchanged.bytes + HEADER + PLACE * len(plan) + TABLE * len(self.problem.stats)

    def infeasible(self, target: float, smallest: int) -> InfeasibleError:
        """The error that gives the smallest budget that can be met, in the user's unit.

        The plan in the file contains the budget itself; a few bytes are added so that the stated budget is feasible.
        """
        smallest += MARGIN
        budget = self.problem.options.budget
        kind = "size" if budget is None else budget.kind
        least = {
            "size": f"size={smallest}",
            "bits": f"bits={math.ceil(8e4 * smallest / self.source.elements) / 1e4}",
            "ratio": f"ratio={math.floor(1e4 * self.source.bytes / smallest) / 1e4}",
        }[kind]
        return InfeasibleError(
            f"no file of {self.source.label} is that small",
            got=f"a budget of {target:.0f} bytes",
            wanted=f"at least {smallest} bytes, that is {least}",
        )


def first_bits(target: float, overhead: float) -> float:
    """Bits of all codes for a file in the window, if its other bytes are `overhead`."""
    return 8 * (AIM * target - overhead)


def _overhead(one: Round) -> float:
    """Bytes of a round's file beside the codes."""
    return one.bytes - one.setting / 8


def assemble(
    source: Source,
    plan: Plan,
    codes: Mapping[str, Narrow],
    changed: Mapping[str, torch.Tensor],
    *,
    items: Mapping[str, Stored] | None = None,
    note: str = "",
) -> Result:
    """The result of storing these codes under this plan; `changed` holds new values of kept tensors.

    Args:
        items: kept tensors whose stored form is known already.
        note: what the codes rest on, as of `opq.file.writer.pack`.
    """
    wide = ((tensor, codes[tensor.name].astype(np.int16, copy=False)) for tensor in plan.compressed)
    stepped = [in_file.stored(source, tensor, q) for tensor, q in wide]
    kept = [(items or {}).get(item.name, item) for item in keep(source, plan, changed)]
    base = source.base if isinstance(source, Differences) else None
    if isinstance(source, Differences):
        kept = [source.finished(item) for item in kept]
    plan = in_file.told(source, plan)
    return Result(
        plan=plan,
        packed=writer.pack(plan, [*stepped, *kept], note=note, base=None if base is None else base.name),
        label=source.label,
        elements=source.elements,
        source_bytes=source.bytes,
        base=base,
    )
