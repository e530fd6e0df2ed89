"""Errors of outputs count by how far each of these varies."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import opq
from opq.probing import units
from opq.probing.units import CHANNELS, Units, error_of


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(st.floats(-8, 8), st.integers(1, 40), st.integers(0, 99))
def test_the_error_does_not_depend_on_the_units_of_outputs(decades: float, width: int, seed: int) -> None:
    a, b = drawn(16, 7, seed=seed), drawn(16, width, seed=seed + 100)
    a_hat, b_hat = a + 0.1 * drawn(16, 7, seed=seed + 200), b + 0.3 * drawn(16, width, seed=seed + 300)
    each = [error_of([x], [y]) for x, y in ((a, a_hat), (b, b_hat))]
    unit = 10.0**decades
    assert error_of([a, unit * b], [a_hat, unit * b_hat]) == pytest.approx(sum(each) / 2, rel=2e-3)


@pytest.mark.parametrize("at_once", [1, 100, 2000])
def test_large_outputs_are_compared_a_few_samples_at_a_time(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [drawn(16, 7), 1e4 * drawn(16, 5, 3), drawn(16), torch.tensor(2.0)]
    moved = [o + 0.1 * drawn(*o.shape, seed=1).to(o) for o in outputs]
    whole = [error_of(outputs, moved), error_of(outputs[:1], moved[:1]), error_of([outputs[3]], [moved[3]])]
    monkeypatch.setattr(units, "AT_ONCE", at_once)
    again = [error_of(outputs, moved), error_of(outputs[:1], moved[:1]), error_of([outputs[3]], [moved[3]])]
    assert again == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("shape", [(16, 84, 50), (16, 50, 84), (16, 84), (16, 84, 5, 5), (16, 5, 5, 84)])
def test_boxes_beside_scores_are_two_units(shape: tuple[int, ...]) -> None:
    dim = shape.index(84)
    size = torch.cat([torch.full((4,), 200.0), torch.ones(80)]).view([84 if d == dim else 1 for d in range(len(shape))])
    output, noise = drawn(*shape), drawn(*shape, seed=1)
    assert error_of([size * output], [size * (output + 0.1 * noise)]) == pytest.approx(0.01, rel=0.1)
    worse = torch.where(size > 1, 0.0, 0.5) * noise  # the scores alone, which a sum would not see
    assert error_of([size * output], [size * (output + worse)]) == pytest.approx(0.125, rel=0.2)


@pytest.mark.parametrize(
    "output",
    [
        drawn(16, 1000) * torch.logspace(-1, 1, 1000),  # classes, none of which stands apart
        drawn(16, 24, 384) * torch.cat([torch.full((3,), 1e3), torch.ones(381)]),  # outliers of features
        drawn(16, 24, 384) * torch.cat([torch.full((100,), 1e-9), torch.ones(284)]),  # dead ones
        torch.softmax(40 * drawn(16, 100), -1),
        drawn(16, CHANNELS + 1, 1),
        drawn(16),
        torch.zeros(16, 4),
    ],
    ids=["classes", "outliers", "dead", "probabilities", "positions", "one number", "constant"],
)
def test_an_output_of_one_unit_is_summed_as_it_is(output: Tensor) -> None:
    assert Units.of([output]).plain
    v = drawn(*output.shape, seed=3)
    assert Units.of([output]).scaled(v, 0) is v


def test_large_numbers_are_whole_without_being_labels() -> None:
    a, b = drawn(16, 7), drawn(16, 1)
    output = [a.float(), (1e8 * b).float()]
    assert torch.equal(output[1], output[1].round())
    assert all(float(share.max()) > 0 for share in Units.of(output).shares)


def test_labels_constants_and_rounding_count_nothing() -> None:
    a, labels = drawn(16, 7), torch.randint(0, 90, (16, 5)).double()
    constant = torch.full((16, 3), 0.7) * (1 + 1e-7 * torch.rand(16, 3))
    units = Units.of([a, labels, constant, torch.tensor(3.5)])
    assert [float(share.max()) > 0 for share in units.shares] == [True, False, False, False]
    assert units.error([a, labels, constant, a], [a, labels + 9, constant, a]) == 0


def test_sizes_that_the_data_decide_are_left_out() -> None:
    a, b = drawn(4, 7), drawn(3, 2)
    assert math.isnan(error_of([a], [drawn(5, 7)]))
    assert error_of([a, b], [a, drawn(9, 2)]) == 0
    units = Units.of([a, 1e4 * torch.cat([b, b * 1e-4], 1)])
    assert units.scaled(drawn(9, 5), 1).shape == (9, 5)
    assert units.scaled(drawn(9, 7), 2).shape == (9, 7)


def test_what_is_not_finite_in_both_networks_is_no_error_and_in_one_is_infinite() -> None:
    a = drawn(6, 4)
    a[2, 1] = -torch.inf
    moved = torch.where(torch.isfinite(a), a + 0.1, a)
    assert 0 < error_of([a], [moved]) < 1
    assert error_of([drawn(6, 4)], [torch.full((6, 4), torch.nan)]) == math.inf


class Heads(nn.Module):
    def __init__(self, unit: float, *, joined: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.unit, self.joined = nn.Linear(32, 64), nn.Linear(32, 64), unit, joined

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        both = self.a(x), self.unit * self.b(x)
        return torch.cat(both, 1) if self.joined else both


@pytest.mark.parametrize("joined", [True, False])
def test_two_heads_get_the_bits_that_they_would_get_in_one_unit(joined: bool) -> None:
    rates = {}
    for unit in (1.0, 1000.0, 1e-4):
        model = Heads(unit, joined=joined)
        before = copy.deepcopy(model.state_dict())
        plan = opq.compress(model, bits=4.5).plan
        rates[unit] = [plan[name].rate for name in ("a.weight", "b.weight")]
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    for unit in (1000.0, 1e-4):
        assert rates[unit] == pytest.approx(rates[1.0], abs=0.1)


def test_outputs_that_are_shown_twice_weigh_as_one() -> None:
    class Shown(nn.Module):
        def __init__(self, *, inside: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last, self.inside = nn.Linear(8, 16), nn.Linear(16, 4), inside

        def forward(self, x: Tensor) -> dict[str, object]:
            h = 100 * torch.tanh(self.first(x))
            y = self.last(h)
            return {"logits": y, "hidden_states": (x, h, y), "again": y} if self.inside else {"logits": y}

    plain, shown = (opq.probe(Shown(inside=inside), input_size=(8,)).sensitivity for inside in (False, True))
    assert plain == shown
