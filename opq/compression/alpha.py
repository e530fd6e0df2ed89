"""The exponent of the sensitivities: given, or chosen by the predicted error of the outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from opq.allocation.stats import TensorStats
from opq.base.arrays import Narrow, narrow
from opq.base.pool import give_back
from opq.base.progress import silent
from opq.base.stages import stage
from opq.compression.coders import DataFreeCoder
from opq.compression.fit import Fit
from opq.compression.least_rates import NEVER
from opq.compression.options import ALPHAS, Options
from opq.compression.problem import Problem
from opq.errors import InfeasibleError
from opq.plan import Plan, as_stored

WORDS = (0.5, 1.0)
"""Exponents that are tried for a language model. A choice: each costs a sweep and a forward pass."""

C = TypeVar("C", bound=DataFreeCoder)


def weighed(coder: C, problem: Problem[TensorStats], given: Mapping[str, float]) -> tuple[Problem[TensorStats], C]:
    """The problem with the probe's sensitivities `a_i^alpha` and those that the user gave, and a coder for it.

    If the user gives no `alpha`, it is the one in `ALPHAS` whose plan changes the outputs least, for a network with
    BatchNorm; one in `WORDS` for a language model that wrote the probe's texts; and 1 for others (docs/datafree.md has
    figures for these rules). The coder then has the codes of that plan already, where all of it is on plain grids.
    """
    named = len(given) == len(problem.stats)
    alphas = (1.0,) if named else _alphas(coder, problem.options)
    candidates = [
        problem.replace(sensitivities=coder.sensitivities(problem.stats, alpha=alpha) | dict(given)) for alpha in alphas
    ]
    return (candidates[0], coder) if len(candidates) == 1 else _best(coder, candidates)


def _alphas(coder: DataFreeCoder, options: Options) -> tuple[float, ...]:
    if options.alpha is not None:
        return (options.alpha,)
    if options.budget is None:
        return (1.0,)
    return ALPHAS if coder.source.batchnorms else WORDS if coder.probe.words else (1.0,)


def _best(coder: C, candidates: Sequence[Problem[TensorStats]]) -> tuple[Problem[TensorStats], C]:
    """The problem whose plan changes the outputs on synthetic inputs least, and a coder that has the plan's codes."""
    plain = [dataclasses.replace(candidate, trellised=NEVER) for candidate in candidates]  # enough to choose by
    plans = [plan for plan in (_decided(coder, candidate) for candidate in plain) if plan is not None]
    if len(plans) < len(plain):  # for the smallest file all plans are alike, and `Fit.run` will measure it
        return candidates[0], coder
    codes: list[dict[str, Narrow]] = [{} for _ in plans]
    with stage("quantize"):
        for name, found in coder.alternatives(list(zip(*(plan.compressed for plan in plans), strict=True))):
            for of_plan, q in zip(codes, found, strict=True):
                of_plan[name] = narrow(q)
        give_back()
    with stage("compare"):
        errors = []
        for plan, of_plan in zip(plans, codes, strict=True):
            errors.append(coder.probe.output_error(coder.state(plan, of_plan)))
            give_back()
    if any(map(math.isnan, errors)):  # the data decide the outputs' sizes: as for networks without BatchNorm
        return candidates[-1], coder
    best = errors.index(min(errors))
    chosen = _decided(coder, candidates[best])
    if chosen is None or chosen.compressed != plans[best].compressed:  # with tensors on a trellis, whose codes differ
        return candidates[best], coder
    known = {t.name: (t, codes[best][t.name].astype(np.int16, copy=False)) for t in plans[best].compressed}
    return candidates[best], dataclasses.replace(coder, known=known)


def _decided(coder: DataFreeCoder, problem: Problem[TensorStats]) -> Plan | None:
    """The plan that meets the budget by predicted size; None where none does."""
    try:
        with stage("solve"):
            return as_stored(Fit(coder.source, problem, coder, silent).decide())
    except InfeasibleError:
        return None
