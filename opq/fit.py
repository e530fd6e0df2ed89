"""Meets the budget in bytes of the file: solve, quantize, pack, measure, and solve again.

What a file costs beyond the entropy of its codes (tables, header, kept tensors, what feedback adds to the rate) is known
only once it is made. So it is made in memory and measured; the next round solves with what was learned.
One to three rounds are usual.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from opq import container, index, stored
from opq.decide import Problem
from opq.errors import InfeasibleError
from opq.keep import keep
from opq.options import Progress
from opq.paper import two_steps
from opq.plan import Plan, TensorPlan
from opq.quantize import quantize
from opq.result import Result
from opq.sources import Source

Codes = dict[str, npt.NDArray[np.int16]]

WINDOW = 0.995
"""The file is between this fraction of the budget and the budget."""
AIM = 0.998
"""Where in the window the solver aims."""
ROUNDS = 12
MARGIN = 24
"""Bytes by which the text of two plans for the same tensors may differ."""
HEADER, PLACE, TABLE = 150, 6, 24
"""Bytes of an empty file, of a tensor's line in the index and of a frequency table, before they are known."""


class Coder(Protocol):
    """How planned tensors become codes, and what else of the model changes with them."""

    def codes(self, plan: TensorPlan) -> npt.NDArray[np.int16]:
        """The integer codes of one compressed tensor."""

    def kept(self, plan: Plan, codes: Codes) -> Mapping[str, torch.Tensor]:
        """New values of kept tensors, by name: re-normalised statistics, corrected biases."""


@dataclasses.dataclass(frozen=True, eq=False)
class PlainCoder:
    """Every weight to its own cell; nothing else changes."""

    source: Source

    def codes(self, plan: TensorPlan) -> npt.NDArray[np.int16]:
        return quantize(self.source.tensor(plan.name), plan).numpy()

    def kept(self, plan: Plan, codes: Codes) -> Mapping[str, torch.Tensor]:
        return {}


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
            return self.apply(self.decide())
        target, least = self.target, self.problem.least_bits
        overhead = self.overhead(self.problem.sketch())
        tried: list[Result] = []
        bits = max(8 * (AIM * target - overhead), least)
        while len(tried) < ROUNDS:
            result = self.attempt(bits, overhead)
            if bits <= least and result.bytes > target:
                raise self.infeasible(target, result.bytes)
            tried.append(result)
            if WINDOW * target <= result.bytes <= target or self._all_spent(result, target):
                return result
            before, overhead = bits, result.bytes - bits / 8
            bits = max(8 * (AIM * target - overhead), least)
            if bits == before:
                break
        below = [result for result in tried if result.bytes <= target]
        return max(below, key=lambda r: r.bytes) if below else self._smallest(target)

    def attempt(self, bits: float, overhead: float) -> Result:
        """The result of giving the codes `bits` bits, whatever the size of the file turns out to be."""
        return self.apply(self.problem.plan(bits).replace(predicted_bytes=round(bits / 8 + overhead)))

    def apply(self, plan: Plan) -> Result:
        """The result of a plan: codes of every tensor, and the file in memory."""
        plan = index.rounded(plan)
        codes: Codes = {}
        for done, tensor in enumerate(plan.compressed):
            codes[tensor.name] = self.coder.codes(tensor)
            self.progress("quantize", done + 1, len(plan.compressed))
        return assemble(self.source, plan, codes, self.coder.kept(plan, codes))

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

    def _all_spent(self, result: Result, target: float) -> bool:
        """Whether every tensor is at its finest step already, and the budget still larger."""
        return result.plan.multiplier == 0 and result.bytes <= target

    def _smallest(self, target: float) -> Result:
        result = self.attempt(self.problem.least_bits, 0)
        if result.bytes > target:
            raise self.infeasible(target, result.bytes)
        return result


def assemble(source: Source, plan: Plan, codes: Codes, changed: Mapping[str, torch.Tensor]) -> Result:
    """The result of storing these codes under this plan; `changed` holds new values of kept tensors."""
    grids = [container.Grid(name, q) for name, q in codes.items()]
    return Result(
        plan=plan,
        packed=container.pack(plan, [*grids, *keep(source, plan, changed)]),
        label=source.label,
        elements=source.elements,
        source_bytes=source.bytes,
    )
