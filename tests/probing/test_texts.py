"""Texts that models write themselves for their probe."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opq
from opq.models.batch import Batch
from opq.probing import texts
from opq.probing.inputs import synthetic
from opq.probing.page import Page

WORDS, WIDTH = 23, 16


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LENGTH", 14)


class Follower(nn.Module):
    """A causal model without a memory that writes each word's successor, whatever stands further before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS)
        with torch.no_grad():
            self.table.weight.copy_(20 * torch.eye(WORDS).roll(1, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


class Around(nn.Module):
    """Sees the whole text: the score of a word at a place is that of its neighbours' agreeing on it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS)
        with torch.no_grad():
            self.table.weight.copy_(8 * torch.eye(WORDS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.table(input_ids) * attention_mask[..., None]
        return {"logits": x.roll(1, 1) + x.roll(-1, 1)}


class Pooled(nn.Module):
    """Reads texts, scores none of their words."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).mean(1))


def _batch(*, length: int = 8, rows: int = 6) -> Tensor:
    return torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(0))


def _llama(**options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def test_a_causal_model_writes_what_it_makes_likely() -> None:
    (ids,) = texts.written(Follower(), Batch((_batch(),))).args
    assert ids.shape == (6, texts.LENGTH)
    assert float((ids[:, 1:] == (ids[:, :-1] + 1) % WORDS).float().mean()) > 0.99


def test_a_model_that_sees_whole_texts_fills_them_in() -> None:
    ids = _batch(length=12, rows=32)
    given = Batch((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    made = texts.written(Around(), given).kwargs
    assert made["attention_mask"].shape == made["input_ids"].shape == (32, texts.LENGTH)

    def agreeing(x: Tensor) -> float:
        return float((x == x.roll(2, 1)).float().mean())

    assert agreeing(made["input_ids"]) > 3 * agreeing(ids)


@pytest.mark.parametrize("model", [Pooled(), nn.Embedding(WORDS, 3)])
def test_what_scores_no_words_keeps_its_random_tokens(model: nn.Module) -> None:
    given = Batch((_batch(),))
    assert texts.written(model, given) is given


def test_random_words_are_all_that_random_texts_have_but_special_ones() -> None:
    page = Page.of(Follower(), Batch((torch.randint(WORDS, (32, 12), generator=torch.Generator().manual_seed(0)),)))
    assert page is not None
    assert int(page.ids.max()) == WORDS - 1
    page = dataclasses.replace(page, special=frozenset({3, WORDS + 9}))
    found = texts._random(page, 60, torch.Generator().manual_seed(0))
    assert found.shape == (32, 60)
    assert set(found.flatten().tolist()) == set(range(WORDS)) - {3}


def test_images_are_no_texts() -> None:
    given = Batch((torch.randn(4, 3, 8, 8),))
    assert texts.written(nn.Conv2d(3, 3, 1), given) is given


def test_the_same_seed_writes_the_same_texts_and_leaves_the_model_and_the_random_state_alone() -> None:
    model = _llama()
    before, state = {n: p.clone() for n, p in model.state_dict().items()}, torch.get_rng_state()
    batch = synthetic(model, samples=4)
    one, same, other = (texts.written(model, batch, seed=seed).kwargs["input_ids"] for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_a_memory_of_what_was_read_changes_no_text() -> None:
    model = _llama()
    batch = synthetic(model, samples=4)
    assert Page.of(model, batch).remembers
    quick = texts.written(model, batch).kwargs["input_ids"]
    slow_model = _llama()
    forward = slow_model.forward
    slow_model.forward = lambda input_ids, attention_mask: forward(input_ids=input_ids, attention_mask=attention_mask)
    slow_batch = Batch((), batch.kwargs)
    assert not Page.of(slow_model, slow_batch).remembers
    assert torch.equal(quick, texts.written(slow_model, slow_batch).kwargs["input_ids"])


def test_tokens_that_begin_end_or_pad_texts_are_not_written() -> None:
    model = _llama(bos_token_id=0, eos_token_id=[1, 2], pad_token_id=3)
    ids = texts.written(model, synthetic(model)).kwargs["input_ids"]
    assert len(ids.unique()) > 30
    assert not set(ids.unique().tolist()) & {0, 1, 2, 3}


def test_texts_are_no_longer_than_the_model_takes() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    batch = texts.written(model, synthetic(model, samples=4))
    assert batch.kwargs["input_ids"].shape == (8, 9)
    assert model(**batch.kwargs).logits.isfinite().all()


def test_an_encoder_with_a_decoder_reads_what_it_has_written() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                                   decoder_start_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    random = synthetic(model, samples=4)
    made = texts.written(model, random).kwargs
    assert set(made) == set(random.kwargs)
    assert made["decoder_input_ids"].shape == made["input_ids"].shape == (8, texts.LENGTH)
    assert bool((made["decoder_input_ids"][:, 0] == 0).all())
    assert not bool((made["decoder_input_ids"][:, 1:] == 0).any())


def _whisper(**options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 600}
    ids = {"decoder_start_token_id": 38, "bos_token_id": 37, "eos_token_id": 37, "pad_token_id": 37}
    torch.manual_seed(0)
    config = transformers.WhisperConfig(vocab_size=60, num_mel_bins=8, max_target_positions=64, **sizes, **heads, **ids)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    return model


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        ({"no_timestamps_token_id": 44}, [38, 44]),
        ({"forced_decoder_ids": [[2, 41], [1, 39]]}, [38, 39, 41]),
        ({"lang_to_id": {"<|de|>": 39, "<|en|>": 40}, "task_to_id": {"transcribe": 42}, "no_timestamps_token_id": 44},
         [38, 40, 42, 44]),
        ({"lang_to_id": {"<|de|>": 39}}, [38, 39]),
        ({"forced_bos_token_id": 5, "forced_decoder_ids": None}, [38, 5]),
        ({}, [38]),
    ],
)  # fmt: skip
def test_a_decoders_texts_begin_with_what_generate_forces(options: dict[str, Any], beginning: list[int]) -> None:
    model = _whisper(**options)
    ids = texts.written(model, synthetic(model, samples=16)).kwargs["decoder_input_ids"]
    assert ids[:, : len(beginning)].tolist() == [beginning] * len(ids)
    assert len(ids[:, len(beginning) :].unique()) > 5
    assert not bool((ids[:, len(beginning) :] >= 44).any()) or 44 not in beginning


def test_what_is_decoded_from_a_few_long_sounds_is_longer() -> None:
    model = _whisper()
    few = synthetic(model, samples=16)
    assert len(few.kwargs["input_features"]) == 4
    assert texts.written(model, few).kwargs["decoder_input_ids"].shape == (4, texts.LONGEST * texts.LENGTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "LENGTH", 30)  # thrice as many are more than it takes
        assert texts.written(model, few).kwargs["decoder_input_ids"].shape == (4, 30)


def test_a_beginning_of_several_tokens_is_remembered() -> None:
    model = _whisper(no_timestamps_token_id=44)
    lengths: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["decoder_input_ids"].shape[1]), with_kwargs=True
    )
    batch = synthetic(model, samples=16)
    lengths.clear()
    quick = texts.written(model, batch).kwargs["decoder_input_ids"]
    assert lengths.count(1) > 30
    slow = Page.of(model, batch)
    forward = model.forward
    model.forward = lambda input_features, decoder_input_ids: forward(
        input_features=input_features, decoder_input_ids=decoder_input_ids
    )
    assert slow is not None
    assert not slow.remembers
    assert torch.equal(quick, texts.written(model, batch).kwargs["decoder_input_ids"])


def test_the_probe_shows_a_model_its_own_texts_unless_it_is_to_be_quick() -> None:
    model = Follower()
    own, drawn = (opq.probe(model, quick=quick, samples=8).batch.args[0] for quick in (False, True))
    follows = [x[:, 1:] == (x[:, :-1] + 1) % WORDS for x in (own, drawn)]
    assert follows[0].float().mean() > 0.99
    assert follows[1][:, : texts.DRAWN].float().mean() > 0.99  # so many words are what the model writes
    assert follows[1][:, texts.DRAWN :].float().mean() < 0.2
    assert torch.equal(drawn, opq.probe(model, quick=True, samples=8).batch.args[0])
    with pytest.raises(opq.errors.OptionError, match=r'"quick"'):
        opq.compress(model, bits=4, probe="slow")


def test_a_tied_head_is_fed_back_under_the_tables_name() -> None:
    model = _llama(tie_word_embeddings=True)
    moments = opq.probe(model, samples=4).moments
    assert "model.embed_tokens.weight" in moments
    assert "lm_head.weight" not in moments
    assert moments["model.embed_tokens.weight"].width == 16


def test_progress_counts_the_texts() -> None:
    seen: list[tuple[int, int]] = []
    texts.written(Follower(), Batch((_batch(rows=70),)), see=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 70), (32, 70), (48, 70), (64, 70), (70, 70)]


def test_half_precision_writes_by_what_it_remembers() -> None:
    model = _llama().to(torch.bfloat16)
    page = Page.of(model, synthetic(model, samples=4))
    with torch.no_grad():
        assert page.goes_forward()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    texts.written(model, synthetic(model, samples=4))
    assert sum(length > 10 for length in calls) < 8 < sum(length == 1 for length in calls)


class Speller(nn.Module):
    """Reads letters and goes on with signs: after each sign, the one that many further on which the first letter is."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.signs = nn.Embedding(5, 1), nn.Embedding(WORDS, WORDS)
        with torch.no_grad():
            self.letters.weight.copy_(torch.arange(5.0)[:, None])
            self.signs.weight.copy_(30 * torch.eye(WORDS))

    def forward(self, word: Tensor, spoken: Tensor) -> Tensor:
        shift = self.letters(word)[:, 0, 0].long()
        scores = self.signs(spoken)
        return torch.stack([row.roll(int(by), 1) for row, by in zip(scores, shift, strict=True)])


def test_of_two_arguments_each_has_its_own_table_and_the_second_is_written_from_the_first() -> None:
    model = Speller()
    found = synthetic(model, samples=8)
    assert int(found.kwargs["word"].max()) == 4
    assert int(found.kwargs["spoken"].max()) > 4
    written = texts.written(model, found)
    letters, signs = written.kwargs["word"], written.kwargs["spoken"]
    assert torch.equal(letters, found.kwargs["word"])
    assert signs.shape == letters.shape
    assert torch.equal(signs[:, 1:], (signs[:, :-1] + letters[:, :1]) % WORDS)


def test_a_second_argument_that_looks_ahead_is_not_written() -> None:
    class Matcher(Speller):
        def forward(self, word: Tensor, spoken: Tensor) -> Tensor:
            return self.signs(spoken).flip(1) + self.letters(word)

    model = Matcher()
    batch = synthetic(model, samples=4)
    assert texts.written(model, batch) is batch


def test_points_in_time_and_what_generate_never_writes_are_not_written() -> None:
    model = _llama()
    model.generation_config.suppress_tokens = [3, 4]
    model.generation_config.no_timestamps_token_id = WORDS - 5
    written = texts.written(model, synthetic(model, samples=8)).kwargs["input_ids"]
    assert set(written.flatten().tolist()) <= set(range(WORDS - 5)) - {3, 4}
    assert len(written.unique()) > 8
