"""The size of a file is held while its weights are trained: what is nearest to a lower level falls to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
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


def test_weights_that_lie_in_the_middles_of_their_levels_do_not_fall_all_at_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64))
    plan = plan_of(model, step=0.05)
    attach(model, plan)
    with torch.no_grad():
        for module, attribute, grid in attached(model):
            w = plain(module, attribute)
            w.copy_(grid(w))
    start = collect(model, plan)
    before = start.codes["0.weight"]
    holding = Holding(model, start.bytes - 10, lambda: collect(model, plan).bytes)
    changed = int((collect(model, plan).codes["0.weight"] != before).sum())
    assert 0 < changed < before.numel() / 10
    assert holding.bytes > start.bytes - 40


def test_codes_that_spread_are_lowered_between_epochs_too() -> None:
    model, holding = held(10**6)
    holding.budget = holding.bytes
    with torch.no_grad():
        for module, attribute, _ in attached(model):
            plain(module, attribute).mul_(1.3)
    assert holding.estimate() > holding.budget
    for _ in range(8):
        holding.after_step()
    assert holding.estimate() <= holding.budget


def test_an_interrupted_training_goes_on_as_it_was() -> None:
    model, holding = held(10**6)
    for _ in range(11):
        holding.after_step()
    other = Holding(copy.deepcopy(model), 10**6, lambda: size_of(model))
    other.restore(holding.state())
    assert other.state() == holding.state()
