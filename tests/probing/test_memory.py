"""What the probe and the sweeps hold beside the network: no second copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from growth import REFS, alone, least
from torch import nn

from opq.models import observe
from opq.models.observe import untouched
from opq.models.record import Record
from opq.probing import gradients

measured = pytest.mark.skipif(not REFS.exists(), reason="no peak of memory to ask for")

SLACK = 6 << 20
"""What the interpreter, its threads and the allocator may take meanwhile; each copy that is looked for is larger."""
WIDTH, LAYERS = 2048, 4
WHOLE = 4 * WIDTH**2
"""Bytes of one matrix of the coordinates of a layer."""


@pytest.fixture(scope="module")
def moments() -> list[int]:
    """Growth in the pass that measures moments, and beyond its end in factoring all of them: peak and end of each."""
    return least(f"""
        from torch import nn
        from opq.models.batch import Batch
        from opq.probing.moments import Moments

        model = nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({LAYERS}))).eval()
        small = nn.Sequential(nn.Linear(8, 8))
        for factors in Moments(small, Batch((torch.randn(16, 8),))).of(["0.weight"]).values():
            list(factors.factors)
        found = Moments(model, Batch((torch.randn(32, {WIDTH}),)))
        names = list(found)
        with growth():
            held = found.of(names)
        with growth():
            for factors in held.values():
                for order, n in factors.factors:
                    del n
    """)


@measured
def test_moments_take_five_eighths_of_their_matrices(moments: list[int]) -> None:
    weights = LAYERS * WHOLE  # a copy of them, so that the network can be left as it was
    assert moments[1] < LAYERS * WHOLE * 5 / 8 + SLACK
    assert moments[0] < weights + LAYERS * WHOLE * 5 / 8 + 3 * WHOLE + SLACK  # and what the few inputs of a head need


@measured
def test_factors_take_the_place_of_moments(moments: list[int]) -> None:
    assert moments[3] < SLACK


@measured
def test_patches_are_held_once() -> None:
    peak, _ = alone("""
        from torch import nn
        from opq.probing.layers import _patches
        from opq.quantizing.moment import Layout

        layer = nn.Conv2d(64, 8, 3, padding=1)
        x = torch.randn(16, 64, 28, 28).contiguous(memory_format=torch.channels_last)
        _patches(layer, x, Layout(), 160, 0)
        with growth():
            found = _patches(layer, x, Layout(), 8 * 16 * 100, 0)
    """)
    whole = 4 * 16 * 28 * 28 * 64 * 9  # all positions
    assert peak < whole + whole // 4 + SLACK


def test_what_a_network_frees_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    times = list[int]()
    monkeypatch.setattr(observe, "give_back", lambda: times.append(1))
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8)))
    with observe.tidied(model):
        model(torch.randn(4, 256))
    assert not times  # a small one runs as it did before
    monkeypatch.setattr(observe, "TAKEN", 2 * 4 * 4 * 256)  # the inputs of two layers
    with observe.tidied(model):
        model(torch.randn(4, 256))
    assert len(times) == 4
    model(torch.randn(4, 256))
    assert len(times) == 4


def test_parameters_that_are_replaced_are_not_copied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def copied(**given: Any) -> list[int]:
        return sorted(
            one.tensor.numel() for one in Record(model, weights=True, **given)._tensors if one.values is not None
        )

    assert copied() == [1, 4, 4, 4, 4, 4, 16]
    assert copied(replaced={"0.weight": 0, "1.bias": 0}) == [1, 4, 4, 4, 4]
    before = model[0].bias.clone()
    with untouched(model, replaced=["0.weight"]), torch.no_grad():
        model[0].bias.add_(1)
    assert torch.equal(model[0].bias, before)


def test_gradients_are_squared_some_rows_at_a_time() -> None:
    gradient = torch.randn(700, 20, 100)
    pieces = list(gradients._pieces(gradient))
    assert max(piece.numel() for piece in pieces) <= gradients.AT_ONCE
    assert torch.equal(torch.cat(pieces), gradient.flatten(1))
    assert gradients._mean_square(gradient) == pytest.approx(
        float(gradient.square().mean(dtype=torch.float64)), rel=1e-12
    )
    for shape in ((), (5,), (3, 4)):
        some = torch.full(shape, 2.0)
        assert gradients._mean_square(some) == 4.0
