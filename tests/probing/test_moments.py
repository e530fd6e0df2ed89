"""Moments: what completes that of a head, and that they are released."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from opq.models.batch import Batch
from opq.probing.layers import layers
from opq.probing.moments import Moments


def test_the_weights_of_a_head_count_for_half_of_what_its_inputs_do() -> None:
    """docs/datafree.md: the trace of `W'W` is half that of `S`."""
    torch.manual_seed(0)
    head, x = nn.Linear(40, 10), torch.randn(12, 40)
    found = Moments(nn.Sequential(head), Batch((x,)))["0.weight"].blocks[0][0]
    s, own = x.t() @ x / 12, (head.weight.t() @ head.weight).detach()
    added = found - s
    assert float(added.trace()) == pytest.approx(0.5 * float(s.trace()), rel=1e-4)
    torch.testing.assert_close(added, own * (added.trace() / own.trace()), atol=1e-5, rtol=1e-4)


def test_a_moment_is_released_for_its_factors_and_measured_again_when_asked_for() -> None:
    torch.manual_seed(0)
    moments = Moments(nn.Sequential(nn.Linear(4, 3)), Batch((torch.randn(30, 4),)))
    before = moments["0.weight"]
    torch.testing.assert_close(moments["0.weight"].blocks, before.blocks)
    kept = moments.of(["0.weight"])["0.weight"]
    assert kept is not None
    found = list(kept.factors)
    assert kept.moment is None
    torch.testing.assert_close(found, list(before.factors))
    torch.testing.assert_close(list(kept.factors), found)
    torch.testing.assert_close(moments["0.weight"].blocks, before.blocks)


def test_what_is_released_is_measured_again_to_the_same_and_the_dense_network_s_statistics_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    moments = Moments(model, Batch((torch.randn(30, 4),)))
    dense, before = moments.dense, moments.of(moments)
    held = [weakref.ref(factors) for factors in before.values() if factors is not None]
    factors = {name: list(found.factors) for name, found in before.items() if found is not None}
    del before
    assert all(ref() is not None for ref in held)
    moments.release()
    assert all(ref() is None for ref in held)
    assert moments.dense is dense
    again = {name: list(found.factors) for name, found in moments.of(moments).items() if found is not None}
    torch.testing.assert_close(again, factors)


def test_moments_are_kept_together_where_just_they_fit() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    every = sum(layer.bytes for layer in layers(model).values())
    groups = {
        every: [("0.weight", "2.weight")],
        every - 1: [("0.weight",), ("2.weight",)],
    }
    for memory, wanted in groups.items():
        moments = Moments(model, Batch((torch.randn(30, 4),)), memory=memory)
        assert moments.groups(moments) == wanted
        assert moments.fit == (len(wanted) == 1)


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_what_errors_cost_is_told_whatever_was_asked_before_and_of_layers_that_run(memory: int) -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.never = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.two(self.one(x).relu())
            return found

    torch.manual_seed(1)
    moments = Moments(Three(), Batch((torch.randn(30, 6),)), memory=memory)
    names = ["two.weight", "never.weight", "one.weight"]
    found = moments.costs(names)
    assert {name: cost.shape for name, cost in found.items()} == {"one.weight": (6,), "two.weight": (5,)}
    for factors in moments.of(["one.weight"]).values():
        assert factors is not None
        list(factors.factors)  # after which the moment is gone
    for name, cost in moments.costs(names).items():
        np.testing.assert_allclose(cost, found[name], rtol=1e-6)
