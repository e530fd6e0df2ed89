"""The exponent of the sensitivities: the plan that is taken moves the outputs least."""

from __future__ import annotations

import pytest

from opq.base.progress import silent
from opq.compression.alpha import weighed
from opq.compression.coders import DataFreeCoder
from opq.compression.fit import Fit
from opq.compression.options import ALPHAS, Options
from opq.compression.problem import Problem, gather
from opq.compression.roles import assign
from opq.plan import as_stored
from opq.probing.sensitivity import probe
from opq.sources import open_source


@pytest.mark.parametrize("bits", [1.2, 2.0])
def test_of_all_exponents_the_one_whose_plan_moves_the_outputs_least_is_taken(bits: float) -> None:
    source = open_source("demo:digits")
    roles = assign(source.specs)
    told = probe(source.build(), hint=source.input_hint)
    stats = gather(source, roles)
    problem = Problem.of(Options(bits=bits), roles, stats=stats, sensitivities={})

    candidates = [problem.replace(sensitivities=told.sensitivities(stats, alpha=alpha)) for alpha in ALPHAS]
    errors = []
    for candidate in candidates:
        coder = DataFreeCoder(source, told)
        plan = as_stored(Fit(source, candidate, coder, silent).decide())
        codes = dict(coder.codes(plan.compressed))
        errors.append(told.output_error(coder.state(plan, codes)))
    assert len(set(errors)) == len(ALPHAS), "one plan for all exponents says nothing"

    chosen, _ = weighed(DataFreeCoder(source, told), problem, {})
    assert chosen.sensitivities == candidates[errors.index(min(errors))].sensitivities
