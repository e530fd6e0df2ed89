"""OLMP's bookkeeping: steps are counted by layer, and the search narrows in the last third."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import opq
from opq.methods import ncs
from opq.methods.surgery import Layer, Surgery


def test_a_layer_counts_one_step_for_each_forward_pass_however_many_tensors_it_has() -> None:
    weight, bias = torch.randn(4, 3), torch.randn(4)
    layer = Layer([weight, bias], gamma=0.5)
    surgeries = [Surgery(weight, layer, leads=True).train(), Surgery(bias, layer, leads=False).train()]
    for step in range(1, 8):
        for surgery, tensor in zip(surgeries, (weight, bias), strict=True):
            surgery(tensor)
        assert int(layer.step) == step


def test_masks_follow_the_threshold_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """With probability 1 / (1 + gamma step): at step 3 and gamma 1 a draw below a quarter is due, one above is not."""
    weight = torch.tensor([0.1, 10.0])
    for draw, due in ((0.2, True), (0.3, False)):
        layer = Layer([weight], gamma=1.0)
        layer.step.fill_(3)
        layer.c.fill_(0.0)
        surgery = Surgery(weight, layer, leads=True).train()
        monkeypatch.setattr(torch, "rand", lambda *_, draw=draw: torch.tensor(draw))
        surgery(weight)
        assert surgery.mask.tolist() == [not due, True]


def test_mean_and_deviation_are_those_of_the_weights_that_are_not_zero() -> None:
    """As in the released code: so the thresholds of a network that was pruned before start where its weights are."""
    weight, bias = torch.tensor([[0.0, 3.0], [-5.0, 0.0]]), torch.tensor([0.0, 1.0])
    layer = Layer([weight, bias], gamma=0.5)
    assert float(layer.mu) == 3.0
    assert float(layer.sigma) == pytest.approx((8 / 3) ** 0.5)
    assert layer.threshold(0.0) == 3.0


def test_a_layer_of_zeros_has_a_threshold_of_zero() -> None:
    layer = Layer([torch.zeros(4, 3), torch.zeros(4)], gamma=0.5)
    assert layer.threshold(2.0) == 0.0
    assert layer.threshold() == -torch.inf, "nothing is pruned before the first search"


def test_the_search_is_ten_times_narrower_from_two_thirds_of_the_pruning_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(16, 6), torch.randint(0, 3, (16,)))]
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    real, sigmas = ncs.search, list[float]()

    def seen(f: Any, start: Any, *, sigma: float, **options: Any) -> ncs.Found:
        sigmas.append(sigma)
        return real(f, start, sigma=sigma, **options)

    monkeypatch.setattr(ncs, "search", seen)
    how = {"epochs": 7, "prune_epochs": 6, "evaluations": 10, "delta": 1.0, "sigma": 20.0}
    opq.compress(model, method="olmp", data=batches, method_options=how)
    assert sigmas == pytest.approx([2.0] * 4 + [0.2] * 2)
