"""The sparsity at which a method's file meets the budget, for the methods whose size falls as sparsity rises."""

from __future__ import annotations

import math
from collections.abc import Callable

from opq.compression.result import Result
from opq.errors import InfeasibleError, OptionError
from opq.methods.job import Job
from opq.methods.options import Pruning

WINDOW = 0.995
ROUNDS = 20


def at_budget(job: Job, make: Callable[[float], Result], *, least: float = 0.0) -> tuple[float, Result]:
    """The sparsity that the user gave, or the lowest found whose file is not above the budget, and its result.

    Bisection on the kept fraction in octaves; stops within 0.5 % below the budget.

    Args:
        make: the result at a sparsity.
        least: sparsities below this one are not tried.

    Raises:
        OptionError: neither a budget nor a sparsity, or both.
        InfeasibleError: with one weight kept the file is still above the budget.
    """
    settings, budget = job.settings, job.options.budget
    assert isinstance(settings, Pruning)
    if (settings.sparsity is None) == (budget is None):
        got = "neither" if budget is None else f"{budget.kind}={budget.value} and sparsity={settings.sparsity}"
        wanted = "one of bits=, ratio=, size=, or a sparsity in method_options="
        raise OptionError("the size is not one option", got=got, wanted=wanted)
    if budget is None:
        assert settings.sparsity is not None
        return settings.sparsity, make(settings.sparsity)
    target = budget.bytes(elements=job.source.elements, source_bytes=job.source.bytes)
    low, high = -math.log2(1 - least), math.log2(sum(w.numel() for w in job.weights.values()))
    best = least, make(least)
    if best[1].bytes <= target:
        return best
    best = _at(high, make)
    if best[1].bytes > target:
        raise InfeasibleError(
            f"no file of {job.source.label} by {job.options.method} is that small",
            got=f"a budget of {target:.0f} bytes", wanted=f"at least {best[1].bytes} bytes",
        )  # fmt: skip
    for done in range(ROUNDS):
        if best[1].bytes >= WINDOW * target:
            break
        middle = (low + high) / 2
        tried = _at(middle, make)
        if tried[1].bytes <= target:
            best, high = tried, middle
        else:
            low = middle
        job.options.progress("budget", done + 1, ROUNDS)
    return best


def _at(octaves: float, make: Callable[[float], Result]) -> tuple[float, Result]:
    sparsity = 1 - 2.0**-octaves
    return sparsity, make(sparsity)
