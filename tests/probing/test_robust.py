"""Sensitivities that no single token decides."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import opq
from opq.probing import robust

WORDS, WIDTH = 400, 8


class Trapped(nn.Module):
    """A language model whose token 0 has next to no embedding in front of a normalisation."""

    def __init__(self, least: float):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        with torch.no_grad():
            self.table.weight[0] *= least

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x * x.square().mean(-1, keepdim=True).rsqrt())


def _texts(*, trap: bool) -> Tensor:
    ids = torch.randint(1, WORDS, (64, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 0 if trap else ids[:, 0]
    return ids


def test_a_token_of_tiny_embedding_in_every_text_does_not_decide_the_tables_sensitivity() -> None:
    trapped, plain = Trapped(1e-5), Trapped(1.0)
    told = opq.probe(trapped, calibration=[_texts(trap=True)]).sensitivity
    usual = opq.probe(plain, calibration=[_texts(trap=False)]).sensitivity
    assert told["table.weight"] < 3 * usual["table.weight"]
    assert told["head.weight"] == pytest.approx(usual["head.weight"], rel=0.3)


def test_without_the_limit_it_would() -> None:
    model = Trapped(1e-5)
    loss = model(_texts(trap=True)).mul(torch.randn(64, 12, WORDS)).sum()
    (gradient,) = torch.autograd.grad(loss, [model.table.weight])
    assert float(gradient[0].square().sum()) > 1e6 * float(gradient[1:].square().sum())
    assert robust.kept(gradient) < 1e-6


def test_a_table_without_such_a_token_is_felt_as_it_is() -> None:
    gradient = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert robust.kept(gradient) == 1.0
    gradient[3] *= 1000
    few = torch.zeros(200, 4)
    few[:40] = gradient[:40]
    assert robust.kept(few) == 1.0


@given(st.lists(st.floats(1e-3, 1e3), min_size=robust.FEWEST, max_size=90), st.integers(0, 14))
def test_what_is_left_has_no_row_above_its_share_and_no_other_row_is_touched(powers: list[float], traps: int) -> None:
    rows = torch.tensor(powers, dtype=torch.float64)
    rows[:traps] *= 1e9
    kept = robust.kept(rows.sqrt()[:, None]) * float(rows.sum())
    limit = robust.SHARE * kept
    assert float(rows.clamp(max=limit * (1 + 1e-9)).sum()) == pytest.approx(kept, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_nothing_is_limited_in_gradients_that_say_nothing(value: float) -> None:
    assert robust.kept(torch.full((100, 3), value)) == 1.0
