"""Synthetic sound that resembles speech, and the spectrograms that speech networks take.

Pulses (voiced sounds), noise (unvoiced sounds) and pauses follow one another, filtered by a spectrum with formants that
changes every few milliseconds. Each speaker has a random pitch. The long-term spectrum is that of speech: flat up to
500 Hz, then falling by about 9 dB per octave (Byrne and others 1994). Recordings are about as loud as usual, 26 dB
below full scale.
"""

from __future__ import annotations

import math

import torch

RATE = 16_000
"""Samples per second."""
HOP, WINDOW = 160, 400
"""Step and length of a spectrogram's windows in samples: 10 and 25 ms, as nearly all feature extractors have."""
_FFT, _STEP = 512, 128
"""Length and step of the windows in which the spectrum is shaped, in samples."""
_SOUND = 10
"""Duration of one sound, in steps of the shaping: 80 ms."""
_VOICED, _PAUSE = 0.65, 0.15
"""Fractions of the sounds that are voiced, and that are silent."""
_FORMANTS = ((250, 900), (900, 2500), (2300, 3500))
"""The range of each formant's frequency in Hertz."""
_AT_ONCE = 8
"""Recordings that are made at one time."""
_LOUDNESS = 0.05
"""Root mean square of a recording, relative to full scale."""


def speech(samples: int, length: int, generator: torch.Generator, *, ends: bool = False) -> torch.Tensor:
    """Recordings (samples, length) at 16 kHz.

    Args:
        ends: whether each recording falls silent after 30 to 100 per cent of its length.
    """
    parts = [_spoken(min(_AT_ONCE, samples - start), length, generator, ends) for start in range(0, samples, _AT_ONCE)]
    return torch.cat(parts)


def _spoken(samples: int, length: int, generator: torch.Generator, ends: bool) -> torch.Tensor:
    frames = max(length, _FFT) // _STEP + 1
    total = (frames - 1) * _STEP
    sounds = frames // _SOUND + 2
    kind = torch.rand((samples, 1, sounds), generator=generator)
    voiced, heard = _smooth((kind < _VOICED).float(), frames), _smooth((kind < 1 - _PAUSE).float(), frames)
    envelope = _envelope(samples, sounds, frames, voiced, generator)
    level = 10 ** (3 * heard - 3) * _smooth(torch.exp(0.7 * _normal((samples, 1, sounds), generator)), frames)
    over_time = _stretched(voiced, total)
    exciting = over_time * _pulses(samples, total, generator)
    exciting = exciting + (1 - 0.9 * over_time) * torch.randn((samples, total), generator=generator)
    window = torch.hann_window(_FFT)
    spectrum = torch.stft(exciting, _FFT, _STEP, window=window, return_complex=True)
    wave: torch.Tensor = torch.istft(spectrum * envelope * level, _FFT, _STEP, window=window)
    wave = torch.nn.functional.pad(wave, (0, max(0, length - wave.shape[1])))[:, :length]
    wave = wave / wave.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    wave = _LOUDNESS * torch.exp(0.4 * torch.randn((samples, 1), generator=generator)) * wave
    if ends:
        stop = length * (0.3 + 0.7 * torch.rand((samples, 1), generator=generator))
        wave = wave * (torch.arange(length) < stop)
    return wave


def _envelope(samples: int, sounds: int, frames: int, voiced: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gains (samples, frequencies, frames): formants on a falling spectrum, which falls less in unvoiced sounds."""
    hertz = torch.fft.rfftfreq(_FFT, 1 / RATE)[None, :, None]
    octaves = (hertz.clamp(min=500) / 500).log2()
    gain = torch.exp(-math.log(10) * (1 + 8 * voiced) / 20 * octaves)
    peaks = torch.full_like(gain, 0.1)
    for low, high in _FORMANTS:
        centre = low + (high - low) * torch.rand((samples, 1, sounds), generator=generator)
        width = 60 + 140 * torch.rand((samples, 1, 1), generator=generator)
        peaks = peaks + (1 + ((hertz - _smooth(centre, frames)) / width).square()).rsqrt()
    return gain * peaks


def _pulses(samples: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """One pulse per period of the voice, of power about 1; the pitch is 80 to 250 Hz and varies by about a tenth."""
    pitch = 80 * (250 / 80) ** torch.rand((samples, 1), generator=generator)
    bends = 1 + 0.1 * torch.randn((samples, 1, length // RATE * 4 + 2), generator=generator).clamp(-2, 2)
    phase = (pitch * _stretched(bends, length) / RATE).double().cumsum(1)
    begins = (phase % 1).diff(dim=1, prepend=torch.zeros(samples, 1, dtype=torch.double)) < 0
    return begins.float() * (RATE / pitch).sqrt()


def _smooth(values: torch.Tensor, frames: int) -> torch.Tensor:
    """Spreads one value per sound (samples, 1, sounds) over frames (samples, 1, frames), with smooth transitions."""
    held = values.repeat_interleave(_SOUND, dim=2)[:, :, : frames + 2]
    return torch.nn.functional.avg_pool1d(held, 3, stride=1)[:, :, :frames]


def _stretched(values: torch.Tensor, length: int) -> torch.Tensor:
    """Interpolates (samples, 1, few) linearly to (samples, length)."""
    return torch.nn.functional.interpolate(values, length, mode="linear", align_corners=True)[:, 0]


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


# --- features, as the extractors of speech networks compute them -----------------------------


def standard(wave: torch.Tensor) -> torch.Tensor:
    """Shifts and scales every row of (samples, length) to mean 0 and standard deviation 1."""
    wave = wave - wave.mean(1, keepdim=True)
    return wave / wave.std(1, keepdim=True).clamp(min=1e-7)


def log_mel(wave: torch.Tensor, bins: int) -> torch.Tensor:
    """Natural logarithms of the power in bands of the mel scale, (samples, bins, length / HOP)."""
    return mel_power(wave, bins).clamp(min=1e-10).log()


def whisper_mel(wave: torch.Tensor, bins: int) -> torch.Tensor:
    """Log-mel spectrograms (samples, bins, length / HOP), scaled as for Whisper (Radford and others 2022)."""
    decades = mel_power(wave, bins).clamp(min=1e-10).log10()
    return (decades.maximum(decades.amax((1, 2), keepdim=True) - 8) + 4) / 4


def mel_power(wave: torch.Tensor, bins: int) -> torch.Tensor:
    """Power in bands of the mel scale, (samples, bins, length / HOP)."""
    window, bands = torch.hann_window(WINDOW), mel_bands(bins)
    powers = []
    for part in torch.split(wave, _AT_ONCE):
        spectrum = torch.stft(part, WINDOW, HOP, window=window, return_complex=True)
        powers.append(bands @ spectrum.abs().square()[:, :, : wave.shape[1] // HOP])
    return torch.cat(powers)


def mel_bands(bins: int) -> torch.Tensor:
    """Triangular filters (bins, WINDOW / 2 + 1) of equal area, evenly spaced on the mel scale 2595 log10(1 + f / 700).

    `f` is the frequency in Hertz.
    """
    highest = 2595 * math.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, bins + 2) / 2595) - 1)
    hertz = torch.fft.rfftfreq(WINDOW, 1 / RATE)
    low, centre, high = (corners[k : k + bins, None] for k in range(3))
    triangles = torch.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)).clamp(min=0)
    return triangles * 2 / (high - low)
