"""The exponent of the sensitivities: given, or chosen by the predicted error of the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from opq.base.progress import silent
from opq.base.stages import stage
from opq.compression.coders import CodesByName, DataFreeCoder
from opq.compression.fit import Fit
from opq.compression.options import ALPHAS, Options
from opq.compression.problem import Problem
from opq.errors import InfeasibleError
from opq.plan import as_stored
from opq.sources.base import Source


def weighed(coder: DataFreeCoder, problem: Problem, given: Mapping[str, float]) -> Problem:
    """The problem with the probe's sensitivities `a_i^alpha`, and those that the user gave.

    Where the user names no `alpha`: the one in `ALPHAS` whose plan moves the outputs least, for a network with
    BatchNorm; 1 for others (docs/datafree.md has the figures of both rules). The coder remembers that plan's codes.
    """
    named = len(given) == len(problem.stats)
    alphas = (1.0,) if named else _alphas(coder.source, problem.options)
    candidates = [
        problem.replace(sensitivities=coder.probe.sensitivities(problem.stats, alpha=alpha) | dict(given))
        for alpha in alphas
    ]
    return candidates[0] if len(candidates) == 1 else _best(coder, candidates)


def _alphas(source: Source, options: Options) -> tuple[float, ...]:
    if options.alpha is not None:
        return (options.alpha,)
    return ALPHAS if source.batchnorms and options.budget is not None else (1.0,)


def _best(coder: DataFreeCoder, candidates: Sequence[Problem]) -> Problem:
    """The problem whose plan at its budget moves the outputs least on synthetic inputs."""
    plain = [dataclasses.replace(candidate, trellised=frozenset()) for candidate in candidates]  # as good to choose by
    try:
        with stage("solve"):
            plans = [as_stored(Fit(coder.source, candidate, coder, silent).decide()) for candidate in plain]
    except InfeasibleError:  # by prediction; at the smallest file all are alike, and `Fit.run` measures it
        return candidates[0]
    together = list(zip(*(plan.compressed for plan in plans), strict=True))
    codes: list[CodesByName] = [{} for _ in plans]
    with stage("quantize"):
        for tensors, found in zip(together, coder.alternatives(together), strict=True):
            for of_plan, q in zip(codes, found, strict=True):
                of_plan[tensors[0].name] = q
    with stage("compare"):
        errors = [coder.probe.output_error(coder.state(plan, q)) for plan, q in zip(plans, codes, strict=True)]
    best = errors.index(min(errors))
    coder.made.update({t.name: (t, codes[best][t.name]) for t in plans[best].compressed})
    return candidates[best]
