"""Synthetic images: their scale, what differs between them, and leaves against a slow drawing of every pixel."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opq.probing import images
from opq.probing.images import SHAPES, SMALLEST


@given(samples=st.integers(1, 5), channels=st.integers(1, 4), height=st.integers(8, 20), width=st.integers(8, 20))
def test_noise_and_leaves_alternate_and_the_seed_says_all(samples: int, channels: int, height: int, width: int) -> None:
    one, same, other = (
        images.images(samples, (channels, height, width), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert one.shape == (samples, channels, height, width)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    for kind in (one[::2], one[1::2]):
        if len(kind):
            assert abs(float(kind.mean())) < 1e-4
            assert float(kind.square().mean()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_amplitude_of_noise_falls_with_a_power_of_the_frequency(exponent: float) -> None:
    noise = images.fractal(64, (1, 64, 64), torch.Generator().manual_seed(0), torch.full((64,), exponent))
    power = torch.fft.fft2(noise[:, 0]).abs().square().mean(0)
    frequency = torch.fft.fftfreq(64)
    radius = (frequency[:, None].square() + frequency.square()).sqrt()
    near, far = ((radius - at).abs() < 0.01 for at in (0.1, 0.4))
    measured = float((power[near].mean() / power[far].mean()).log() / math.log(4)) / 2
    assert measured == pytest.approx(exponent, abs=0.05)


def test_leaves_are_what_a_look_at_every_pixel_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "fractal", lambda samples, shape, *_: torch.zeros(samples, *shape))
    samples, shape = 3, (2, 30, 41)
    found = images.dead_leaves(samples, shape, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    slow = torch.randn((samples, 2, 1, 1), generator=generator).repeat(1, 1, 30, 41)
    at = torch.rand((samples, SHAPES, 6), generator=generator).double()
    colours = 0.5 * torch.randn((samples, SHAPES, 2), generator=generator)
    colours += 0.8 * torch.randn((samples, SHAPES, 1), generator=generator)
    down, right = torch.linspace(0, 1, 30).double()[:, None], torch.linspace(0, 1, 41).double()
    for sample in range(samples):
        for leaf in range(SHAPES):
            y, x, angle, aspect, kind, size = at[sample, leaf]
            cos, sin = (angle * math.pi).cos(), (angle * math.pi).sin()
            along = (down - y) * cos + (right - x) * sin
            across = ((right - x) * cos - (down - y) * sin) / (0.4 + 0.6 * aspect)
            reach = torch.maximum(along.abs(), across.abs()) if kind < 0.4 else torch.hypot(along, across)
            inside = reach < SMALLEST * (1 - 0.98 * size).rsqrt()
            slow[sample] = torch.where(inside, colours[sample, leaf][:, None, None], slow[sample])
    slow = slow - slow.mean()
    differ = ((found - slow / slow.square().mean().sqrt()).abs() > 1e-4).float().mean()
    assert float(differ) < 0.002  # pixels on an edge, by rounding
