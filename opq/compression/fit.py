"""Meets the budget in bytes of the file: solve, quantize, pack, measure, and solve again.

What a file costs beyond the entropy of its codes (tables, header, kept tensors, what feedback adds to the rate) is
known only once it is made. So it is made in memory and measured; the next round solves with what was learned.
One to three rounds are usual.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch

from opq.base.progress import Progress
from opq.base.stages import stage
from opq.compression.coders import Coder, CodesByName
from opq.compression.problem import Problem
from opq.compression.result import Result
from opq.compression.two_steps import two_steps
from opq.errors import InfeasibleError
from opq.file import stored, writer
from opq.file.kept import keep
from opq.file.stored import Grid, Trellis
from opq.plan import Plan, as_stored
from opq.sources.base import Source

WINDOW = 0.995
"""The file is between this fraction of the budget and the budget."""
AIM = 0.998
"""Where in the window the solver aims."""
FINISHES = 4
"""Drafts that are finished at most: what else changes with the codes may make a file larger than its draft was."""
ROUNDS = 12
EDGE = 0.1
"""Part of the bits between two rounds that the next one keeps from both."""
MARGIN = 24
"""Bytes by which the text of two plans for the same tensors may differ."""
HEADER, PLACE, TABLE = 150, 6, 24
"""Bytes of an empty file, of a tensor's line in the index and of a frequency table, before they are known."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Round:
    """One round."""

    plan: Plan
    codes: CodesByName
    result: Result
    """Before what else changes with the codes."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.result.bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """Finds the plan whose file meets the budget."""

    source: Source
    problem: Problem
    coder: Coder
    progress: Progress

    def run(self) -> Result:
        """The result whose file is within the window below the budget, or the largest below it where none is.

        Raises:
            InfeasibleError: no file is that small; says the smallest that can be had.
        """
        if self.problem.options.sparsity is not None:
            return self.finish(self.draft(self.decide()))
        target, later, overhead = self.target, 0, float(self.overhead(self.problem.sketch()))
        for _ in range(FINISHES):
            draft, overhead = self.closest(target - later, overhead)
            if draft is None:
                break
            result = self.finish(draft)
            if result.bytes <= target:
                return result
            later = max(result.bytes - draft.size, later + 1)
        result = self.smallest()
        if result.bytes > target:
            raise self.infeasible(target, result.bytes)
        return result

    def closest(self, target: float, overhead: float) -> tuple[Round | None, float]:
        """The draft whose file is within the window below `target`, or the largest below it; None where none is.

        With it the bytes of a file that are no codes, `overhead` being what is known of them before.
        """
        least = self.problem.least_bits
        bits = max(8 * (AIM * target - overhead), least)
        best: Round | None = None
        below: tuple[float, float] | None = None
        above: tuple[float, float] | None = None
        for _ in range(ROUNDS):
            with stage("solve"):
                plan = self.problem.plan(bits).replace(predicted_bytes=round(bits / 8 + overhead))
            draft = self.draft(plan)
            size, before = draft.size, bits
            overhead = size - bits / 8
            if WINDOW * target <= size <= target or (draft.plan.multiplier == 0 and size <= target):
                return draft, overhead
            if bits <= least and size > target:
                break
            if size <= target and (best is None or size > best.size):
                best = draft
            below, above = ((bits, size), above) if size <= target else (below, (bits, size))
            bits = between(below, above, AIM * target) if below and above else 8 * (AIM * target - overhead)
            bits = max(bits, least)
            if bits == before:
                break
        return best, overhead

    def smallest(self) -> Result:
        """The smallest file that can be had."""
        return self.finish(self.draft(self.problem.plan(self.problem.least_bits)))

    def draft(self, plan: Plan) -> Round:
        """Codes of a plan and their file, before what else changes with them."""
        plan = as_stored(plan)
        with stage("quantize"):
            codes = self.code(plan)
        with stage("encode"):
            return Round(plan, codes, assemble(self.source, plan, codes, {}))

    def code(self, plan: Plan) -> CodesByName:
        """The codes of every compressed tensor."""
        codes: CodesByName = {}
        for tensor, found in zip(plan.compressed, self.coder.codes(plan.compressed), strict=True):
            codes[tensor.name] = found
            self.progress("quantize", len(codes), len(plan.compressed))
        return codes

    def finish(self, draft: Round) -> Result:
        """The result of a round, with what else of the model changes with its codes; packed again only for that."""
        with stage("renormalise"):
            changed = self.coder.kept(draft.plan, draft.codes)
        with stage("encode"):
            return assemble(self.source, draft.plan, draft.codes, changed) if changed else draft.result

    def decide(self) -> Plan:
        """The plan at the budget by predicted size alone: no weight is quantized."""
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
        bits = 8 * (AIM * target - overhead)
        if bits < least:
            raise self.infeasible(target, math.ceil(least / 8 + overhead))
        return self.problem.plan(bits).replace(predicted_bytes=round(bits / 8 + overhead))

    @property
    def target(self) -> float:
        """Bytes that the file may have."""
        budget = self.problem.options.budget
        assert budget is not None, "the caller handles sparsity="
        return budget.bytes(elements=self.source.elements, source_bytes=self.source.bytes)

    def overhead(self, plan: Plan) -> float:
        """Bytes that are no codes, as far as they can be foreseen: kept tensors, header, frequency tables."""
        kept = sum(stored.draft(item, plan[item.name]).size for item in keep(self.source, plan, {}))
        return kept + HEADER + PLACE * len(plan) + TABLE * len(plan.compressed)

    def infeasible(self, target: float, smallest: int) -> InfeasibleError:
        """The error that says the smallest budget that can be met, in the user's unit.

        The plan in the file holds the budget itself, in digits: a few bytes are added so that what is said can be had.
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


def between(below: tuple[float, float], above: tuple[float, float], aim: float) -> float:
    """The bits of the next round after two on either side of the budget: by the line through both, well inside.

    By the last one's overhead alone sizes may swing from round to round, where it depends much on the bits.

    Args:
        below: bits and bytes of a file within the budget.
        above: those of one beyond it.
        aim: bytes wanted.
    """
    (low, least), (high, most) = below, above
    share = (aim - least) / (most - least)
    return low + min(max(share, EDGE), 1 - EDGE) * (high - low)


def assemble(source: Source, plan: Plan, codes: CodesByName, changed: Mapping[str, torch.Tensor]) -> Result:
    """The result of storing these codes under this plan; `changed` holds new values of kept tensors."""
    stepped = [(Trellis if t.codebook == "trellis" else Grid)(t.name, codes[t.name]) for t in plan.compressed]
    return Result(
        plan=plan,
        packed=writer.pack(plan, [*stepped, *keep(source, plan, changed)]),
        label=source.label,
        elements=source.elements,
        source_bytes=source.bytes,
    )
