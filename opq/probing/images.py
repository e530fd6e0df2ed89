"""Synthetic images: noise with some of the statistics of photographs.

Plain 1/f noise has one spectrum, one contrast and no edges, so that after global pooling all such images look the same
to a network, while its last layers work with what differs between images. So half of the images are noise of random
spectrum, contrast, brightness and colour. The other half are discs and boxes that occlude one another ("dead leaves",
Lee, Mumford and Huang 2001), which have edges at all scales. docs/datafree.md has the figures.

Shapes: images are (samples, channels, height, width); `shape` is that of one image.
"""

from __future__ import annotations

import math

import torch

SHAPES = 40
"""Discs and boxes in one image. A choice: they cover nearly all of it, and more would only take time."""
SMALLEST = 0.04
"""Radius of the smallest shape, as a fraction of the image's side; radii follow a power law. A choice: a few pixels in
images of 32 pixels and more."""


def images(samples: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Synthetic images (samples, channels, height, width), of mean about 0 and standard deviation 1 over all."""
    noise = coloured(samples, shape, generator)
    leaves = dead_leaves(samples, shape, generator)
    even = (torch.arange(samples) % 2 == 0).view(-1, 1, 1, 1)
    return torch.where(even, noise, leaves)


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
    down, right = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)  # (height, 1), (width,)
    image = torch.randn((samples, channels, 1, 1), generator=generator).expand(samples, *shape)  # the backgrounds
    for _ in range(SHAPES):  # one more shape in every image
        at = torch.rand((6, samples, 1, 1), generator=generator)  # centre y and x, angle, aspect, kind, size
        dy, dx, slant = down - at[0], right - at[1], at[2] * math.pi  # (samples, 1, height or 1, width or 1)
        along, across = dy * slant.cos() + dx * slant.sin(), dx * slant.cos() - dy * slant.sin()
        across = across / (0.4 + 0.6 * at[3])
        reach = torch.where(at[4] < 0.4, torch.maximum(along.abs(), across.abs()), torch.hypot(along, across))
        colour = 0.5 * torch.randn((samples, channels, 1, 1), generator=generator)
        inside = reach < SMALLEST * (1 - 0.98 * at[5]).rsqrt()  # (samples, height, width) after dropping an axis below
        image = torch.where(inside[:, None], colour + 0.8 * _per_image(samples, generator), image)
    texture = fractal(samples, shape, generator, 0.5 + torch.rand(samples, generator=generator))
    return _normal(image + 0.3 * texture * torch.exp(0.7 * _per_image(samples, generator)))


def fractal(samples: int, shape: tuple[int, ...], generator: torch.Generator, exponent: torch.Tensor) -> torch.Tensor:
    """Noise (samples, channels, *sizes) whose amplitude falls as frequency^-exponent.

    Each image has mean 0 and standard deviation 1.

    Args:
        exponent: of each image, (samples,).
    """
    white = torch.randn((samples, *shape), generator=generator)
    dims, sizes = tuple(range(2, white.dim())), white.shape[2:]
    axes = torch.meshgrid(*[torch.fft.fftfreq(n) for n in sizes], indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    radius.view(-1)[0] = 1.0 / max(sizes)
    fall = radius.pow(-exponent.view(-1, *[1] * (white.dim() - 1)))
    image = torch.fft.ifftn(torch.fft.fftn(white, dim=dims) * fall, dim=dims).real
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
