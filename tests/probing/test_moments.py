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


class Heads(nn.Module):
    """Three matrices of one input; what two of them are given may change from call to call, or in place."""

    def __init__(self, odd: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(6, n) for n in (5, 5, 4))
        self.odd = odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1.0
        if self.odd == "inference":
            with torch.inference_mode():
                x = x.clone()
        q = self.q(x)
        if self.odd == "in place":
            x += 1
        other = self.odd == "a copy" or (self.odd == "later" and bool(x[0, 0] > 0))
        k = self.k(x.cos() if other else x)
        if self.odd == "twice":
            q = q + self.q(x.flip(1))
        found: torch.Tensor = q + k + self.v(x).sum(1, keepdim=True)
        return found


SHARED = {"": 1, "in place": 2, "a copy": 3, "twice": 3, "later": 3, "inference": 3}
"""How many moments three matrices have, by what is odd about their inputs."""


@pytest.mark.parametrize("odd", SHARED)
def test_matrices_of_the_very_same_inputs_have_one_moment(odd: str) -> None:
    model, x = Heads(odd), torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in "qkv"}
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].clone()))
        for name, module in model.named_children()
    ]
    x[::16, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    with torch.no_grad():
        for part in x.split(16):
            model(part)
    for handle in handles:
        handle.remove()
    halves = Moments(model, Batch((x,)), micro_batch=16)._collector.moments(layers(model))
    assert len({id(half) for half in halves.values()}) == SHARED[odd]
    for name, given in seen.items():
        every = torch.cat(given)
        found = halves[f"{name}.weight"].moment.blocks[0][0]
        torch.testing.assert_close(found, every.t() @ every / len(every), atol=1e-5, rtol=1e-4)


def test_a_matrix_that_is_used_once_more_has_a_moment_of_its_own() -> None:
    model, x = Heads("twice"), torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    halves = Moments(model, Batch((x,)), micro_batch=64)._collector.moments(layers(model))
    both = torch.cat([x, x.flip(1)])
    for name, every in (("q", both), ("k", x), ("v", x)):
        found = halves[f"{name}.weight"].moment.blocks[0][0]
        torch.testing.assert_close(found, every.t() @ every / len(every), atol=1e-5, rtol=1e-4)


def test_heads_of_the_same_few_inputs_have_a_moment_each() -> None:
    model, x = Heads(""), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    moments = Moments(model, Batch((x,)))
    for name, head in model.named_children():
        own = (head.weight.t() @ head.weight).detach()
        s = x.t() @ x / 4
        wanted = s + 0.5 * own * s.trace() / own.trace()
        torch.testing.assert_close(moments[f"{name}.weight"].blocks[0][0], wanted, atol=1e-5, rtol=1e-4)
    factors = moments.of(moments)
    assert len({id(f) for f in factors.values()}) == 3


def test_shared_moments_have_shared_factors_and_costs() -> None:
    moments = Moments(Heads(""), Batch((torch.randn(64, 6),)))
    costs = moments.costs(moments)
    assert costs["q.weight"] is costs["v.weight"]
    assert len({id(f) for f in moments.of(moments).values()}) == 1
