"""Synthetic images: noise with some of the statistics of photographs.

Plain 1/f noise has one spectrum, one contrast and no edges, so that after global pooling all such images look the same
to a network, while its last layers work with what differs between images. So half of the images are noise of random
spectrum, contrast, brightness and colour. The other half are discs and boxes that occlude one another ("dead leaves",
Lee, Mumford and Huang 2001), which have edges at all scales. docs/datafree.md has the figures.

Shapes: images are (samples, channels, height, width); `shape` is that of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from opq.base.arrays import Floats, Floats32

SHAPES = 40
"""Discs and boxes in one image. A choice: they cover nearly all of it, and more would only take time."""
SMALLEST = 0.04
"""Radius of the smallest shape, as a fraction of the image's side; radii follow a power law. A choice: a few pixels in
images of 32 pixels and more."""


def images(samples: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Synthetic images (samples, channels, height, width), of mean about 0 and standard deviation 1 over all.

    Noise and leaves alternate, so that every micro-batch holds both.
    """
    made = torch.empty((samples, *shape))
    made[::2] = coloured((samples + 1) // 2, shape, generator)
    if samples > 1:
        made[1::2] = dead_leaves(samples // 2, shape, generator)
    return made


def coloured(samples: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """1/f^b noise, b from 0.5 to 2, mixed over the channels, with random contrast and brightness."""
    channels = shape[0]
    noise = fractal(samples, shape, generator, 0.5 + 1.5 * torch.rand(samples, generator=generator))
    mixing = 0.5 * torch.randn((samples, channels, channels), generator=generator) + channels**-0.5  # for each image
    image = _unit(torch.einsum("ncd,nd...->nc...", mixing, noise))
    image = image * torch.exp(0.5 * _per_image(samples, generator)) + 0.7 * _per_image(samples, generator)
    return _normal(image + 0.3 * torch.randn((samples, channels, 1, 1), generator=generator))


def dead_leaves(samples: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Discs and boxes of random size, place, angle and colour, each occluding those before, under a faint texture."""
    channels, height, width = shape
    image = torch.randn((samples, channels, 1, 1), generator=generator).repeat(1, 1, height, width)  # the backgrounds
    at = torch.rand((samples, SHAPES, 6), generator=generator)  # centre y and x, angle, aspect, kind, size
    colours = 0.5 * torch.randn((samples, SHAPES, channels), generator=generator)
    colours += 0.8 * torch.randn((samples, SHAPES, 1), generator=generator)
    for picture, leaves, colour in zip(image.numpy(), at.tolist(), colours.numpy(), strict=True):
        for leaf, own in zip(leaves, colour, strict=True):
            _lay(picture, leaf, own)
    texture = fractal(samples, shape, generator, 0.5 + torch.rand(samples, generator=generator))
    return _normal(image + 0.3 * texture * torch.exp(0.7 * _per_image(samples, generator)))


def _lay(picture: Floats32, leaf: Sequence[float], colour: Floats32) -> None:
    """Lays one disc or box on a picture (channels, height, width); only the pixels around it are looked at."""
    y, x, angle, aspect, kind, size = leaf
    radius, narrow = SMALLEST * (1 - 0.98 * size) ** -0.5, 0.4 + 0.6 * aspect
    cos, sin = math.cos(math.pi * angle), math.sin(math.pi * angle)
    far = radius * math.hypot(1, narrow)  # from its centre to the corner of a box
    rows, down = _around(y, far, picture.shape[1])
    columns, right = _around(x, far, picture.shape[2])
    along = down[:, None] * cos + right * sin
    across = (right * cos - down[:, None] * sin) / narrow
    if kind < 0.4:
        inside = np.maximum(np.abs(along), np.abs(across)) < radius
    else:
        inside = along * along + across * across < radius * radius
    np.copyto(picture[:, rows, columns], colour[:, None, None], where=inside)


def _around(centre: float, far: float, pixels: int) -> tuple[slice, Floats]:
    """The pixels of one axis, which runs from 0 to 1, that are not further from a centre; and how far they are."""
    scale = max(1, pixels - 1)
    these = slice(max(0, math.floor((centre - far) * scale)), min(pixels, math.ceil((centre + far) * scale) + 1))
    return these, np.arange(these.start, these.stop) / scale - centre


def fractal(samples: int, shape: tuple[int, ...], generator: torch.Generator, exponent: torch.Tensor) -> torch.Tensor:
    """Noise (samples, channels, *sizes) whose amplitude falls as frequency^-exponent.

    Each image has mean 0 and standard deviation 1.

    Args:
        exponent: of each image, (samples,).
    """
    white = torch.randn((samples, *shape), generator=generator)
    dims, sizes = tuple(range(2, white.dim())), white.shape[2:]
    axes = torch.meshgrid(*map(torch.fft.fftfreq, sizes[:-1]), torch.fft.rfftfreq(sizes[-1]), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    radius.view(-1)[0] = 1.0 / max(sizes)
    fall = radius.pow(-exponent.view(-1, *[1] * (white.dim() - 1)))
    image = torch.fft.irfftn(torch.fft.rfftn(white, dim=dims) * fall, s=sizes, dim=dims)
    return _unit(image - image.mean(dims, keepdim=True))


def _per_image(samples: int, generator: torch.Generator) -> torch.Tensor:
    """A normal number for each image, (samples, 1, 1, 1)."""
    return torch.randn((samples, 1, 1, 1), generator=generator)


def _unit(image: torch.Tensor) -> torch.Tensor:
    """The images scaled so that each has mean square 1."""
    return image / image.square().mean(tuple(range(1, image.dim())), keepdim=True).sqrt().clamp(min=1e-12)


def _normal(image: torch.Tensor) -> torch.Tensor:
    """The images shifted and scaled so that the whole batch has mean 0 and mean square 1."""
    image = image - image.mean()
    return image / image.square().mean().sqrt().clamp(min=1e-12)
