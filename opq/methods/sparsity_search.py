"""The sparsity at which a method's file meets the budget, for the methods whose size falls as sparsity rises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from opq.compression.budget import Round, Search, by_halves
from opq.compression.result import Result
from opq.errors import InfeasibleError, OptionError
from opq.methods.job import Job
from opq.methods.options import Pruning

HALVINGS = 20
"""Bisections at most: they leave a millionth of the interval. A choice."""


def at_budget(job: Job, make: Callable[[float], Result], *, least: float = 0.0) -> tuple[float, Result]:
    """The sparsity that the user gave, or the lowest one found whose file is within the budget; and its result.

    Bisection on the log of the kept fraction (`opq.compression.budget`), until the file is within 0.5 % below the
    budget.

    Args:
        make: makes the result at a sparsity.
        least: the lowest sparsity that is tried.

    Raises:
        OptionError: neither a budget nor a sparsity, or both.
        InfeasibleError: even with a single kept weight the file exceeds the budget.
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
    fewest = -math.log2(sum(w.numel() for w in job.weights.values()))

    def one(octaves: float, before: Sequence[Round]) -> tuple[Round, tuple[float, Result]]:
        sparsity = 1 - 2.0**octaves if before else least
        result = make(sparsity)
        if len(before) >= 2:
            job.options.progress("budget", len(before) - 1, HALVINGS)
        return Round(octaves, result.bytes, most=not before), (sparsity, result)

    target = budget.bytes(elements=job.source.elements, source_bytes=job.source.bytes)
    search = Search(target=target, least=fewest, rounds=HALVINGS + 2, step=by_halves)
    found = search.run(one, lambda: math.log2(1 - least))
    if found.made is None:
        raise InfeasibleError(
            f"no file of {job.source.label} by {job.options.method} is that small",
            got=f"a budget of {target:.0f} bytes", wanted=f"at least {found.rounds[-1].bytes} bytes",
        )  # fmt: skip
    return found.made
