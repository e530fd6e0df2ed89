"""How often rows of tables of tokens are used, and what that does to their steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import opq
from opq.compression.by_outputs import ByOutputs
from opq.compression.roles import assign
from opq.models.batch import Batch
from opq.probing import usage
from opq.sources import open_source


class Speaker(nn.Module):
    """Scores of words by a table that also reads them, and places; early words are likelier."""

    def __init__(self, words: int = 96, places: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places = nn.Embedding(words, 64), nn.Embedding(places, 64)
        self.mix = nn.Linear(64, 64)
        self.bias = nn.Parameter(-torch.linspace(0, 6, words))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.table(input_ids) + self.places(torch.arange(input_ids.shape[1])[None].expand_as(input_ids))
        found: Tensor = self.mix(x) @ self.table.weight.T / 64 + self.bias
        return found


class Encoder(nn.Module):
    """Embeddings of texts: nothing in its output tells how likely a word is."""

    def __init__(self, words: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(words, 64), nn.Linear(64, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.out(self.table(input_ids).mean(1))
        return found


def test_scores_of_words_tell_how_often_each_is_used() -> None:
    model, ids = Speaker(), torch.randint(96, (8, 20))
    mask = torch.ones_like(ids)
    mask[:, 15:] = 0
    found = usage.of(model, Batch((), {"input_ids": ids, "attention_mask": mask}), micro_batch=3, real=False)
    with torch.no_grad():
        wanted = model(ids)[:, :15].softmax(-1).mean((0, 1)).numpy() ** usage.POWER
    assert set(found) == {"table.weight"}  # places are looked up by other numbers than the batch holds
    assert found["table.weight"] / found["table.weight"].max() == pytest.approx(wanted / wanted.max(), rel=1e-4)


def test_a_table_of_as_many_places_as_there_are_words_is_none_of_words() -> None:
    ids = torch.randint(96, (8, 20))
    assert set(usage.of(Speaker(96, 96), Batch((ids,)), micro_batch=4, real=False)) == {"table.weight"}


@pytest.mark.parametrize(("places", "parts"), [(79, 2), (80, 2), (81, 3), (1 << 20, 4)])
def test_no_more_texts_are_looked_at_than_it_takes(places: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "PLACES", places)
    model, seen = Speaker(), list[None]()
    model.mix.register_forward_hook(lambda *_: seen.append(None))
    usage.of(model, Batch((torch.randint(96, (8, 20)),)), micro_batch=2, real=False)
    assert len(seen) == parts


def test_where_the_ids_are_not_looked_up_the_first_texts_are_the_last() -> None:
    class Shifted(Speaker):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            found: Tensor = self.mix(self.table((input_ids + 1) % 96))
            return found

    model, seen = Shifted(), list[None]()
    model.mix.register_forward_hook(lambda *_: seen.append(None))
    assert usage.of(model, Batch((torch.randint(96, (8, 20)),)), micro_batch=2, real=False) == {}
    assert len(seen) == 1


def test_scores_are_of_every_row_at_every_place() -> None:
    ids, hidden, scores = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, 8), torch.zeros(2, 5, 9)
    (found,) = usage._scores((hidden, hidden[0], scores, scores + 1), ids, 9)
    assert found is scores


def test_scores_that_are_not_finite_tell_nothing() -> None:
    assert usage.weight(np.array([1.0, np.nan]), 2) is None
    assert usage.weight(None, usage.VOCABULARY - 1) is None
    found, placed = (
        usage.weight(np.full(usage.VOCABULARY, np.inf), usage.VOCABULARY),
        usage.weight(None, usage.VOCABULARY),
    )
    assert found is not None
    np.testing.assert_array_equal(found, placed)


def test_without_scores_the_place_in_the_vocabulary_tells_it() -> None:
    ids = torch.randint(5000, (8, 20))
    (found,) = usage.of(Encoder(5000), Batch((ids,)), micro_batch=4, real=False).values()
    assert (np.diff(found) < 0).all()
    assert found[0] / found[4999] == pytest.approx((5999 / 1000) ** usage.POWER)
    assert usage.of(Encoder(500), Batch((ids % 500,)), micro_batch=4, real=False) == {}


def test_of_real_texts_their_own_tokens_count_for_half() -> None:
    ids = torch.full((4, 10), 4321)
    (found,) = usage.of(Encoder(5000), Batch((ids,)), micro_batch=4, real=True).values()
    assert found.argmax() == 4321
    share = found ** (1 / usage.POWER)
    assert share[4321] / share.sum() == pytest.approx(0.5, rel=1e-2)
    assert (found > 0).all()


def test_no_ids_no_usage() -> None:
    assert usage.of(nn.Linear(4, 3), Batch((torch.randn(8, 4),)), micro_batch=4, real=False) == {}
    assert usage.of(Encoder(50), Batch((torch.randint(50, (4,)),)), micro_batch=4, real=False) == {}


def test_rare_words_have_larger_steps() -> None:
    model = Speaker(words=400)
    source, probe = open_source(model), opq.probe(model, example_inputs=torch.randint(400, (4, 20)))
    seen = ByOutputs.of(source, assign(source.specs), probe)
    assert isinstance(seen, ByOutputs)
    assert "places.weight" not in seen.exponents
    e = seen.exponents["table.weight"]
    assert np.corrcoef(e, np.arange(400))[0, 1] > 0.95
    assert 2 < int(e.max()) <= 4  # no row is coarser than twice the median one
    assert -4 <= int(e.min()) < -2


class Apart(Speaker):
    """The same with an output matrix of its own, and a layer inside that has as many outputs as there are words."""

    def __init__(self, words: int = 96) -> None:
        super().__init__(words)
        self.wide, self.narrow = nn.Linear(64, words), nn.Linear(words, 64)
        self.head = nn.Linear(64, words)
        self.alias = self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.head(self.narrow(self.wide(self.mix(self.alias(input_ids)))))
        return found


def test_rows_of_an_output_matrix_count_as_its_words_do() -> None:
    model, ids = Apart(), torch.randint(96, (8, 20))
    found = usage.of(model, Batch((ids,)), micro_batch=4, real=False)
    assert set(found) == {"table.weight", "alias.weight", "head.weight"}
    np.testing.assert_array_equal(found["head.weight"], found["alias.weight"])
    with torch.no_grad():
        wanted = model(ids).softmax(-1).mean((0, 1)).numpy() ** usage.POWER
    assert found["head.weight"] / found["head.weight"].max() == pytest.approx(wanted / wanted.max(), rel=1e-4)


def test_a_layer_inside_is_no_output_matrix() -> None:
    """Its outputs are not the scores of words: here these are taken otherwise."""

    class Other(Apart):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            found: Tensor = self.narrow(self.wide(self.mix(self.table(input_ids)))) @ self.head.weight.T
            return found

    ids = torch.randint(96, (8, 20))
    assert set(usage.of(Other(), Batch((ids,)), micro_batch=4, real=False)) == {"table.weight", "alias.weight"}
