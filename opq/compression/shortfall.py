"""Why a file is smaller than its budget by more than the window: a field for programs, and a sentence for people."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from opq.compression.budget import WINDOW
from opq.compression.problem import Problem
from opq.plan import LARGEST_CODE, Plan, TensorPlan

Cause = Literal["codes", "bounds", "values"]


@dataclasses.dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a file does not use its whole budget."""

    cause: Cause
    """`codes`: the steps are as fine as integers of 16 bits allow. A Gaussian tensor reaches this at about 14.8 bits
    per weight, a tensor with far outliers (a Cauchy distribution) at one or two. `bounds`: every tensor has the most
    bits that `overrides=` or its own values allow. `values`: the tensors have so few distinct values that from one step
    to the next the size jumps over the budget."""
    share: float
    """Bytes of the file / bytes of the budget."""
    tensors: tuple[str, ...]
    """The tensors that are limited, the largest first."""

    def __str__(self) -> str:
        named = ", ".join(map(repr, self.tensors[:3])) + (
            f" and {len(self.tensors) - 3} more" if len(self.tensors) > 3 else ""
        )
        why = {
            "codes": f"codes have 16 bits, and the steps are as fine as that allows in {named}",
            "bounds": f"no tensor can take more bits: {named}",
            "values": f"few distinct values make the size jump from step to step in {named}",
        }[self.cause]
        return f"The file takes {self.share:.1%} of its budget, because {why}."


def shortfall(problem: Problem[Any], plan: Plan, share: float, *, most: bool) -> Shortfall | None:
    """Why a file is below the window; None if it is not.

    Args:
        share: bytes of the file / bytes of the budget.
        most: whether no plan gives its codes more bits.
    """
    if share >= WINDOW:
        return None
    tensors = sorted(plan.compressed, key=lambda t: -t.size)
    if not most:
        return Shortfall("values", share, tuple(t.name for t in tensors))
    finest = tuple(t.name for t in tensors if _is_finest(t, problem.stats))
    return Shortfall("codes", share, finest) if finest else Shortfall("bounds", share, tuple(t.name for t in tensors))


def _is_finest(tensor: TensorPlan, stats: Mapping[str, Any]) -> bool:
    """Whether the step is the smallest whose codes fit 16 bits."""
    return math.isclose(tensor.step * LARGEST_CODE, stats[tensor.name].max_abs, rel_tol=1e-3)
