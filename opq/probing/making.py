"""Noise of the kinds and shapes that networks take: images, signals, token ids, likenesses of an example."""

from __future__ import annotations

import dataclasses

import torch

from opq.probing import images as image_noise

TEXTS = 2
"""Texts a sample: short texts tell more a token."""


@dataclasses.dataclass(frozen=True, slots=True)
class Maker:
    """Draws from one generator."""

    generator: torch.Generator
    samples: int

    def signal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Noise of mean 0 and deviation 1: like images or 1/f where a sample has spatial dimensions, else white."""
        if len(shape) == 3 and shape[0] <= 4 and min(shape[1:]) >= 8:
            return image_noise.images(self.samples, shape, self.generator)
        if len(shape) >= 3 and min(shape[1:]) > 1:
            return image_noise.fractal(self.samples, shape, self.generator, torch.ones(self.samples))
        return torch.randn((self.samples, *shape), generator=self.generator)

    def tokens(self, vocabulary: int, length: int) -> torch.Tensor:
        """Token ids, (TEXTS samples, length) int64, uniform over the vocabulary."""
        return torch.randint(vocabulary, (TEXTS * self.samples, length), generator=self.generator)

    def like(self, example: torch.Tensor, *, alone: bool) -> torch.Tensor:
        """Noise in the kind, scale and shape of an example: floats keep its mean and deviation, integers its values.

        Args:
            alone: whether the forward takes nothing else; then floats that are all the same, such as
                `torch.zeros(1, 3, 224, 224)`, are no mask but show a shape only.
        """
        shape = tuple(example.shape[1:]) if example.dim() else ()
        if example.is_floating_point():
            mean, deviation = float(example.float().mean()), float(example.float().std(correction=0))
            mean, deviation = (0.0, 1.0) if alone and deviation == 0 else (mean, deviation)
            return (mean + deviation * self.signal(shape)).to(example.dtype)
        seen = example.flatten()
        picks = torch.randint(seen.numel(), (self.samples, *shape), generator=self.generator)
        return seen.cpu()[picks]
