"""The size of a file is held while its weights are trained: by a pull, and by lowering what is nearest to lower."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from training_helpers import learnable_batches, mlp, plan_of

from opq.errors import BudgetError
from opq.training.attaching import attach, attached
from opq.training.collecting import collect
from opq.training.finetuning import finetune
from opq.training.holding import Holding
from opq.training.sites import plain

BATCHES = learnable_batches()


def held(budget: float, seed: int = 0) -> tuple[torch.nn.Module, Holding]:
    plan = plan_of(mlp(seed))
    model = attach(mlp(seed), plan)
    return model, Holding(model, budget, lambda: collect(model, plan).bytes)


def size_of(model: torch.nn.Module) -> int:
    return collect(model, plan_of(mlp())).bytes


def test_a_file_that_fits_is_left_as_it_is() -> None:
    model, holding = held(10**6)
    assert torch.equal(model[0].weight, attach(mlp(), plan_of(mlp()))[0].weight)
    assert holding.bytes == size_of(model)
    assert holding.estimate() == pytest.approx(holding.bytes)


def test_a_file_that_is_too_large_is_made_to_fit_by_single_levels() -> None:
    before, _ = held(10**6)
    most = size_of(before) - 20
    after, holding = held(most)
    assert size_of(after) == holding.bytes <= most
    for (module, attribute, grid), (other, _, _) in zip(attached(before), attached(after), strict=True):
        w, v = plain(module, attribute), plain(other, attribute)
        changed = w != v
        fallen = (grid(w) - grid(v))[changed] * w[changed].sign()
        assert torch.allclose(fallen, torch.full_like(fallen, grid.plan.step), atol=1e-6)
    assert size_of(after) > most - 60  # no more of them than it takes, but for what a level's table costs


def test_a_budget_that_no_codes_meet_is_an_error() -> None:
    with pytest.raises(BudgetError, match="cannot be held below its budget in training"):
        held(100)


def test_training_that_spreads_the_codes_stays_below_the_budget() -> None:
    batches = [(3 * x, y) for x, y in BATCHES]
    plan = plan_of(mlp())
    most = size_of(attach(mlp(), plan))
    options: dict[str, Any] = {"epochs": 8, "lr": 0.02}
    spread = finetune(mlp(), plan, batches, **options)
    kept = finetune(mlp(), plan, batches, **options, hold_size=True)
    assert spread.result.bytes > most >= kept.result.bytes
    assert all(epoch.bytes is not None and epoch.bytes <= most for epoch in kept.history)
    assert all(epoch.bytes is None for epoch in spread.history)


def test_the_pull_rises_while_the_size_grows_and_rests_while_it_falls() -> None:
    model, holding = held(10**6)
    holding.budget = holding.bytes
    weights = [plain(module, attribute) for module, attribute, _ in attached(model)]
    with torch.no_grad():
        for w in weights:
            w.mul_(1.3)
    for _ in range(8):
        holding.after_step()
    grown = holding.pull
    assert grown > 0
    with torch.no_grad():
        for w in weights:
            w.mul_(0.5)
    for _ in range(8):
        holding.after_step()
    assert holding.pull < grown


def test_an_interrupted_pull_goes_on() -> None:
    model, holding = held(10**6)
    for _ in range(11):
        holding.after_step()
    other = Holding(copy.deepcopy(model), 10**6, lambda: size_of(model))
    other.restore(holding.state())
    assert other.state() == holding.state()
