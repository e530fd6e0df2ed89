"""Draws synthetic values of the kinds that networks take: images, signals, token ids, speech, graphs."""

from __future__ import annotations

import dataclasses
import math

import torch

from opq.probing import audio
from opq.probing import images as image_noise

TEXTS = 2
"""Texts that are made for each sample asked for: several short texts tell more than one of their total length."""
DEGREE = 4
"""Edges of a synthetic graph divided by its nodes; one edge of each node leads from the node to itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Maker:
    """Draws values from one generator; `rows` is the batch size, the first dimension of most results."""

    generator: torch.Generator
    rows: int

    def signal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Noise (rows, *shape) of mean 0 and standard deviation 1, by the number of dimensions of a sample.

        It resembles photographs or videos where the shape is theirs, is 1/f noise for other shapes with at least two
        spatial dimensions, and white noise otherwise.
        """
        if len(shape) == 3 and shape[0] <= 4 and min(shape[1:]) >= 8:
            return image_noise.images(self.rows, shape, self.generator)
        if len(shape) == 4 and shape[1] <= 4 and min(shape[2:]) >= 8:  # frames of one video resemble one another
            first = image_noise.images(self.rows, shape[1:], self.generator)[:, None]
            return 0.9 * first + 0.44 * torch.randn((self.rows, *shape), generator=self.generator)
        if len(shape) >= 3 and min(shape[1:]) > 1:
            return image_noise.fractal(self.rows, shape, self.generator, torch.ones(self.rows))
        return torch.randn((self.rows, *shape), generator=self.generator)

    def series(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Sequences (rows, length, width) of mean about 0 and deviation 1 that change slowly, each at its own pace.

        Two thirds of the power change in time as 1/f^b noise, with b between 0 and 1 for each sequence. The other third
        is constant in time and tells one sequence from another.
        """
        length, width = shape
        exponent = torch.rand(self.rows, generator=self.generator)
        moving = image_noise.fractal(self.rows, (width, length), self.generator, exponent).transpose(1, 2)
        staying = torch.randn((self.rows, 1, width), generator=self.generator)
        return math.sqrt(2 / 3) * moving + math.sqrt(1 / 3) * staying

    def tokens(self, vocabulary: int, *shape: int) -> torch.Tensor:
        """Token ids (rows, *shape), int64, uniform from 0 to `vocabulary` - 1."""
        return torch.randint(vocabulary, (self.rows, *shape), generator=self.generator)

    def speech(self, shape: tuple[int, ...], *, standard: bool) -> torch.Tensor:
        """Recordings like speech, (rows, *shape), 16 kHz with time last; `standard` ones have mean 0, deviation 1."""
        flat = audio.speech(self.rows, shape[-1], self.generator)
        flat = audio.standard(flat) if standard else flat
        return flat.view(self.rows, *[1] * (len(shape) - 1), shape[-1]).expand(self.rows, *shape).contiguous()

    def mel(self, bins: int, frames: int) -> torch.Tensor:
        """Log-mel spectrograms (rows, bins, frames) in Whisper's scale: speech, then silence up to the last frame."""
        return audio.whisper_mel(audio.speech(self.rows, frames * audio.HOP, self.generator, ends=True), bins)

    def fbank(self, shape: tuple[int, ...], scale: float) -> torch.Tensor:
        """Log-mel spectrograms (rows, ..., frames, bins) of mean 0 and deviation `scale`."""
        *more, frames, bins = shape
        power = audio.log_mel(audio.speech(self.rows, frames * audio.HOP, self.generator), bins)
        features = scale * audio.standard(power.transpose(1, 2).flatten(1)).view(self.rows, frames, bins)
        return features.view(self.rows, *[1] * len(more), frames, bins).expand(self.rows, *shape).contiguous()

    def power(self, frames: int, bins: int) -> torch.Tensor:
        """Spectrograms of power (rows, frames, bins), on the mel scale, of speech of the loudness of recordings."""
        return audio.mel_power(audio.speech(self.rows, frames * audio.HOP, self.generator), bins).transpose(1, 2)

    def edges(self) -> torch.Tensor:
        """Random edges (2, DEGREE * rows), sources over targets, of a graph that has one node for each row."""
        nodes = torch.arange(self.rows)
        others = torch.randint(self.rows, ((DEGREE - 1) * self.rows,), generator=self.generator)
        return torch.stack([torch.cat([nodes, others]), nodes.repeat(DEGREE)])

    def adjacency(self) -> torch.Tensor:
        """The adjacency matrix (rows, rows) of such a graph, with each row divided by its sum."""
        sources, targets = self.edges()
        matrix = torch.zeros(self.rows, self.rows).index_put((targets, sources), torch.tensor(1.0))
        return matrix / matrix.sum(1, keepdim=True)

    def like(self, example: torch.Tensor, *, alone: bool, dim: int | None = 0) -> torch.Tensor:
        """Noise that resembles an example: floats of the same mean and deviation, integers drawn from its values.

        Args:
            alone: whether the forward takes nothing else. Then floats that are all equal, such as
                `torch.zeros(1, 3, 224, 224)`, only show a shape; otherwise they may be a mask, and stay equal.
            dim: the batch dimension of the example. With None it has none: then integers are kept unchanged, since
                they may be indices into another argument.

        Of floats that are not all finite, such as masks of minus infinity, samples are drawn.
        """
        if example.is_floating_point() and not bool(torch.isfinite(example).all()):
            return example if dim is None else self._drawn(example, dim)
        if dim is None:
            return self._noise(example, tuple(example.shape), alone)[0] if example.is_floating_point() else example
        shape = tuple(n for k, n in enumerate(example.shape) if k != dim)
        if example.is_floating_point():
            made = self._noise(example, shape, alone)
        else:
            seen = example.flatten()
            made = seen.cpu()[torch.randint(seen.numel(), (self.rows, *shape), generator=self.generator)]
        return made.transpose(0, dim) if dim and example.dim() > dim else made

    def _drawn(self, example: torch.Tensor, dim: int) -> torch.Tensor:
        numbers = torch.randint(example.shape[dim], (self.rows,), generator=self.generator)
        return example.index_select(dim, numbers.to(example.device))

    def _noise(self, example: torch.Tensor, shape: tuple[int, ...], alone: bool) -> torch.Tensor:
        mean, deviation = float(example.float().mean()), float(example.float().std(correction=0))
        mean, deviation = (0.0, 1.0) if alone and deviation == 0 else (mean, deviation)
        return (mean + deviation * self.signal(shape)).to(example.dtype)
