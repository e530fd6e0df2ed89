"""Networks of speech for `language.py`, read from a folder of unzipped packages, and how each is scored.

- `speaker-encoder`: three LSTM layers of 1.4 M parameters whose last state tells speakers apart, from `pretrained.pt`
  in the package `Resemblyzer`. Its input is a spectrogram of power in 40 mel bands, 1.6 seconds of it. It is scored on
  recordings (16 kHz) in the source archive of `pocketsphinx`, in windows that overlap by half, by the mean cosine
  between the embeddings of the dense network and those of the other.
"""

from __future__ import annotations

import math
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WEIGHTS = "resemblyzer/pretrained.pt"
RECORDINGS = "test/data/librivox"
RATE, FRAMES, LOUDNESS = 16_000, 160, -30.0
"""Samples a second; frames of one window; decibels of full scale, to which the encoder's authors bring recordings."""


class SpeakerEncoder(nn.Module):
    """The network of Resemblyzer (generalized end-to-end loss, Wan and others 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Embeddings (samples, 256) of length 1; `mels` (samples, frames, 40)."""
        embeddings = self.linear(self.lstm(mels)[1][0][-1]).relu()
        return embeddings / embeddings.norm(dim=1, keepdim=True)


def speaker_encoder(weights: Path) -> nn.Module:
    """The network with its published weights."""
    state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
    model = SpeakerEncoder()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model.eval()


def windows(recordings: Path) -> Tensor:
    """Spectrograms (windows, FRAMES, 40) of all recordings under the folder above `recordings`."""
    found = [
        s[at : at + FRAMES]
        for s in map(mels, _sounds(recordings.parent))
        for at in range(0, len(s) - FRAMES + 1, FRAMES // 2)
    ]
    return torch.stack(found)


def _sounds(folder: Path) -> Iterator[Tensor]:
    """Recordings of a window and more, of one channel of 16-bit numbers, in the order of their names."""
    for path in sorted([*folder.rglob("*.wav"), *folder.rglob("*.raw")]):
        data = path.read_bytes()
        if path.suffix == ".wav":
            try:
                with wave.open(str(path)) as file:
                    if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                        continue
                    data = file.readframes(file.getnframes())
            except (wave.Error, EOFError):  # some are broken on purpose
                continue
        sound = torch.from_numpy(np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 2**15)
        if len(sound) >= 160 * FRAMES and float(sound.square().mean()) > 0:
            yield sound


def mels(sound: Tensor) -> Tensor:
    """Power in 40 bands (frames, 40), as the encoder was trained on: frames of 25 ms every 10."""
    from transformers.audio_utils import mel_filter_bank

    sound = sound * 10 ** (LOUDNESS / 20) / sound.square().mean().sqrt()
    bands = mel_filter_bank(201, 40, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    spectrum = torch.stft(sound, 400, 160, window=torch.hann_window(400), return_complex=True, pad_mode="constant")
    return (torch.from_numpy(bands).float().T @ spectrum.abs().square()).T


@torch.inference_mode()
def cosine(dense: Tensor, network: nn.Module, inputs: Tensor) -> float:
    """The mean cosine between embeddings of length 1."""
    mean = float((dense * network(inputs)).sum(1).mean())
    return mean if math.isfinite(mean) else -1.0
