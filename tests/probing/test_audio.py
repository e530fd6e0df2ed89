"""Sound that resembles speech, and the spectrograms made of it."""

from __future__ import annotations

import torch

from opq.probing import audio


def made(samples: int = 12, seconds: float = 3.0, *, ends: bool = False) -> torch.Tensor:
    return audio.speech(samples, int(seconds * audio.RATE), torch.Generator().manual_seed(0), ends=ends)


def test_it_is_as_loud_as_recordings_and_the_same_for_the_same_seed() -> None:
    wave = made()
    assert wave.shape == (12, 48_000)
    assert torch.equal(wave, made())
    decibels = 20 * wave.square().mean(1).sqrt().log10()
    assert -40 < float(decibels.min()) < float(decibels.mean()) < -20
    assert float(wave.abs().max()) < 2


def test_its_long_term_spectrum_falls_as_that_of_speech() -> None:
    power = torch.fft.rfft(made(seconds=2)).abs().square().mean(0)
    hertz = torch.fft.rfftfreq(32_000, 1 / audio.RATE)

    def level(low: int, high: int) -> float:
        return 10 * float(power[(hertz >= low) & (hertz < high)].mean().log10())

    bands = [level(200, 800), level(800, 2000), level(2000, 4000), level(5000, 8000)]
    assert bands == sorted(bands, reverse=True)
    assert 15 < bands[0] - bands[3] < 50


def test_its_loudness_moves_at_the_pace_of_syllables() -> None:
    """The envelope of speech has deviations of 10 dB and more from one tenth of a second to others; noise has none."""
    tenths = made().view(12, -1, 1600).square().mean(2).log10().mul(10)
    assert 5 < float(tenths.std(1).mean()) < 30
    assert float(torch.randn(12, 48_000).view(12, -1, 1600).square().mean(2).log10().mul(10).std(1).mean()) < 1


def test_recordings_of_a_fixed_length_end_in_silence() -> None:
    wave = made(ends=True)
    last = [int(row.nonzero().max()) for row in wave]
    assert min(last) < 0.8 * 48_000
    assert all(last_one >= 0.25 * 48_000 for last_one in last)


def test_short_recordings_are_possible() -> None:
    assert audio.speech(3, 100, torch.Generator(), ends=False).shape == (3, 100)
    assert bool(audio.speech(3, 100, torch.Generator(), ends=False).isfinite().all())


def test_a_tone_appears_in_the_band_of_its_pitch() -> None:
    time = torch.arange(16_000) / audio.RATE
    power = audio.mel_power(torch.sin(2 * torch.pi * 1000 * time)[None], 40)
    assert power.shape == (1, 40, 100)
    mel = 2595 * torch.log10(1 + torch.tensor(1000.0) / 700)
    highest = 2595 * torch.log10(1 + torch.tensor(8000.0) / 700)
    assert abs(int(power.mean(2).argmax()) - int(mel / highest * 41 - 0.5)) <= 1


def test_whisper_s_scale() -> None:
    features = audio.whisper_mel(made(4, ends=True), 80)
    assert features.shape == (4, 80, 300)
    spans = features.amax((1, 2)) - features.amin((1, 2))
    assert float(spans.max()) <= 2 + 1e-5
    assert -2 < float(features.min()) < float(features.max()) < 3


def test_standard_recordings_have_mean_0_and_deviation_1() -> None:
    wave = audio.standard(made(4))
    torch.testing.assert_close(wave.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(wave.std(1), torch.ones(4), atol=1e-4, rtol=0)
