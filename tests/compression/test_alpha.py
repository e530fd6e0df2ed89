"""The exponent of the sensitivities: the plan that is taken moves the outputs least."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opq.base.progress import silent
from opq.compression.alpha import WORDS, weighed
from opq.compression.coders import DataFreeCoder
from opq.compression.fit import Fit
from opq.compression.least_rates import LeastRates
from opq.compression.options import ALPHAS, Options
from opq.compression.problem import Problem, gather
from opq.compression.roles import assign
from opq.compression.trellised import may_follow
from opq.plan import as_stored
from opq.probing.sensitivity import probe
from opq.quantizing import trellis as trellis_of
from opq.sources import open_source
from opq.sources.base import Source


class Words(nn.Module):
    """A causal language model of two layers whose scales are far apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner, self.head = nn.Embedding(60, 16), nn.Linear(16, 16), nn.Linear(16, 60)
        with torch.no_grad():
            self.inner.weight.mul_(6)
            self.head.weight.mul_(4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + self.inner(x).relu())


def _chosen(source: Source, told: Any, bits: float, alphas: tuple[float, ...]) -> None:
    """Checks that `weighed` takes the exponent of least error."""
    roles = assign(source.specs)
    stats = gather(source, roles)
    problem = Problem.of(Options(bits=bits), roles, stats=stats, sensitivities={})
    candidates = [problem.replace(sensitivities=told.sensitivities(stats, alpha=alpha)) for alpha in alphas]
    errors = []
    for candidate in candidates:
        coder = DataFreeCoder(source, told)
        plan = as_stored(Fit(source, candidate, coder, silent).decide())
        codes = dict(coder.codes(plan.compressed))
        errors.append(told.output_error(coder.state(plan, codes)))
    assert len(set(errors)) == len(alphas), "one plan for all exponents says nothing"

    chosen, _ = weighed(DataFreeCoder(source, told), problem, {})
    assert chosen.sensitivities == candidates[errors.index(min(errors))].sensitivities


@pytest.mark.parametrize("bits", [1.2, 2.0])
def test_of_all_exponents_the_one_whose_plan_moves_the_outputs_least_is_taken(bits: float) -> None:
    source = open_source("demo:digits")
    _chosen(source, probe(source.build(), hint=source.input_hint), bits, ALPHAS)


def test_of_a_language_model_the_exponent_is_taken_whose_plan_diverges_least_on_its_own_texts() -> None:
    source = open_source(Words())
    told = probe(source.build(), samples=16)
    assert told.words
    _chosen(source, told, 3.0, WORDS)
    assert not probe(source.build(), samples=16, quick=True).words


def test_the_error_of_a_language_model_is_the_divergence_of_what_it_expects() -> None:
    model = Words()
    told = probe(model, samples=16)
    other = {"head.weight": model.head.weight.detach() * 1.1}
    (ids,) = next(told.batch.parts(told.micro_batch)).args
    with torch.no_grad():
        before = torch.distributions.Categorical(logits=model(ids))
        model.head.weight.copy_(other["head.weight"])
        after = torch.distributions.Categorical(logits=model(ids))
        wanted = float(torch.distributions.kl_divergence(before, after).mean())
    model = Words()
    assert probe(model, samples=16).output_error(other) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("trellis", [True, False])
def test_codes_of_the_choice_are_kept_where_they_are_those_of_the_first_round(trellis: bool) -> None:
    """Exponents are compared on plain grids: on a trellis these codes would only take memory."""
    source = open_source("demo:digits")
    roles = assign(source.specs)
    stats = gather(source, roles)
    names = may_follow(roles, lambda _: False) if trellis else ()
    problem = dataclasses.replace(
        Problem.of(Options(bits=3.0), roles, stats=stats, sensitivities={}),
        trellised=LeastRates.of(dict.fromkeys(names, trellis_of.LEAST)),
    )
    told = probe(source.build(), hint=source.input_hint)
    chosen, coder = weighed(DataFreeCoder(source, told), problem, {})
    assert bool(coder.known) is not trellis
    plan = as_stored(Fit(source, chosen, coder, silent).decide())
    assert {t.codebook for t in plan.compressed} >= ({"trellis"} if trellis else {"grid"})
    if not trellis:
        assert {name: known[0] for name, known in coder.known.items()} == {t.name: t for t in plan.compressed}


def test_a_budget_that_no_plan_meets_is_left_to_the_fit() -> None:
    source = open_source("demo:digits")
    roles = assign(source.specs)
    problem = Problem.of(Options(bits=0.01), roles, stats=gather(source, roles), sensitivities={})
    told = probe(source.build(), hint=source.input_hint)
    chosen, coder = weighed(DataFreeCoder(source, told), problem, {})
    assert not coder.known
    assert chosen.sensitivities == told.sensitivities(problem.stats, alpha=ALPHAS[0])
