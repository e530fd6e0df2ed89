"""Texts without labels: lines from a list or a file, and texts that the model writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opq
from opq.errors import DataError, OptionError

SENTENCE = "a small file is made of large ones by one call and no data at all"
WORDS = {word: k + 5 for k, word in enumerate(SENTENCE.split())}
LINES = [" ".join(list(WORDS)[k % 7 : k % 7 + 3 + k % 5]) for k in range(40)]


def tokens(lines: list[str]) -> dict[str, torch.Tensor]:
    """Words as ids, padded."""
    rows = [torch.tensor([WORDS[word] for word in line.split()]) for line in lines]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def encoder() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=64, max_position_embeddings=32)  # fmt: skip
    return transformers.BertModel(config).eval()


def decoder() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=1,
                                     eos_token_id=2)  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def trained(model: Any, **options: Any) -> opq.Finetuned:
    result = opq.compress(model, bits=2, probe=False, trellis=False)
    return opq.finetune(model, result, **{"seed": 0, "progress": False, "batch": 8, "epochs": 4, **options})


@pytest.mark.parametrize("make", [encoder, decoder])
def test_lines_teach_an_encoder_and_a_decoder(make: Any) -> None:
    found = trained(make(), texts=LINES, tokenizer=tokens, epochs=8, batch=12, hold_size=False)
    assert found.history[-1].loss < found.history[0].loss
    assert 0 < found.history[-1].score <= 1


def test_a_file_of_lines_is_as_good_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n\n".join(LINES) + "\n", encoding="utf-8")
    one = trained(encoder(), texts=LINES, tokenizer=tokens, epochs=1)
    other = trained(encoder(), texts=tmp_path / "lines.txt", tokenizer=tokens, epochs=1)
    assert one.result.packed.parts == other.result.packed.parts


def test_a_decoder_learns_from_what_it_writes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opq.training.lines.WRITTEN", 8)
    found = trained(decoder(), texts="own", epochs=1)
    assert found.history[0].distance is not None


def test_texts_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\xd8")
    for texts, said in (
        (["only one"], "too few lines of text: got 1"),
        (["", "  "], "too few lines of text: got 0"),
        ([1, 2], r"texts=: got a int, wanted a list of strings"),
        (tmp_path / "nowhere.txt", "cannot read .*nowhere.txt"),
        (tmp_path / "bytes.txt", "cannot read .*bytes.txt"),
    ):
        with pytest.raises(DataError, match=said):
            trained(encoder(), texts=texts, tokenizer=tokens)
    with pytest.raises(DataError, match="does not say which tokenizer it has"):
        trained(encoder(), texts=LINES)
    with pytest.raises(DataError, match="tokenizer=: got a list, wanted a dict"):
        trained(encoder(), texts=LINES, tokenizer=list)


def test_a_network_of_images_writes_no_texts() -> None:
    with pytest.raises(DataError, match="does not write texts"):
        opq.finetune(opq.demo.load(), opq.solve("demo:digits", bits=3, probe=False), texts="own", progress=False)


def test_a_loss_of_labels_needs_labels() -> None:
    with pytest.raises(OptionError, match="pictures and texts have no labels"):
        trained(encoder(), texts=LINES, tokenizer=tokens, loss="mse")
