"""Unlabelled pictures for training: read once, held as bytes, and augmented anew for every epoch.

Augmentation is torchvision's (`transforms.v2`): a random part of the picture scaled to the model's size, mirrored or
not, in slightly other colours; of small pictures (below 64 pixels) a shift by an eighth instead. Every picture of every
epoch has random numbers of its own, from the seed, so that a resumed run sees what the uninterrupted one would have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from opq.base.extras import need
from opq.base.progress import Progress
from opq.base.tables import counted, some
from opq.errors import DataError
from opq.sources.base import InputHint
from opq.sources.images import ImageSet, prepared, readable, scaled

EXTRA = "finetune"
SMALL = 64
"""Pixels below which pictures are shifted rather than cropped."""
SCALE = (0.35, 1.0)
"""Part of the picture's area in a random crop. A choice: torchvision's own 0.08 leaves too little to learn in few
epochs."""
COLOUR = 0.2
"""By how much brightness, contrast and saturation change. A choice."""
HELD = 2 << 30
"""Bytes of scaled pictures that are held in memory; those beyond are read again in each epoch."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """The readable pictures of a set."""

    images: ImageSet
    hint: InputHint
    numbers: tuple[int, ...]
    """Of the readable ones among the images."""
    held: dict[int, torch.Tensor]
    """By the number: (C, H, W) uint8, scaled."""
    skipped: tuple[str, ...] = ()
    """What could not be read, and why."""

    @classmethod
    def read(cls, images: ImageSet, hint: InputHint, told: Progress) -> Pictures:
        """Reads every picture once.

        Raises:
            DataError: fewer than two can be read.
        """
        held: dict[int, torch.Tensor] = {}
        numbers, skipped, taken = list[int](), list[str](), 0
        for i, pixels in readable(images, lambda image: _pixels(image, hint), skipped):
            if pixels is not None:
                numbers.append(i)
                taken += pixels.numel()
                if taken <= HELD:
                    held[i] = pixels
            told("read", i + 1, images.count)
        if len(numbers) < 2:
            got = f"{len(numbers)} of {counted(images.count, 'picture')}" + (f" ({some(skipped)})" if skipped else "")
            wanted = "at least 2: one to learn from and one to judge by"
            raise DataError("too few pictures can be read", got=got, wanted=wanted)
        return cls(images, hint, tuple(numbers), held, tuple(skipped))

    def __len__(self) -> int:
        return len(self.numbers)

    def plain(self, which: Sequence[int]) -> torch.Tensor:
        """Pictures as `opq evaluate` shows them, (N, C, H, W) float32."""
        return torch.stack([prepared(_middle(self._at(k), self.hint), self.hint) for k in which])

    def augmented(self, which: Sequence[int], seed: int, epoch: int) -> torch.Tensor:
        """Pictures changed at random, (N, C, H, W) float32."""
        change = augmentation(self.hint)
        changed = []
        with torch.random.fork_rng(devices=[]):
            for k in which:
                torch.default_generator.manual_seed(hash_of(seed, epoch, k))  # torch.manual_seed takes 3 ms
                changed.append(change(self._at(k)))
        return torch.stack(changed)

    def _at(self, k: int) -> torch.Tensor:
        number = self.numbers[k]
        found = self.held.get(number)
        return _pixels(self.images.read(number), self.hint) if found is None else found


def augmentation(hint: InputHint) -> Any:
    """The random change of one picture (C, H, W) uint8, to the model's input (C, height, width) float32."""
    v2 = need("torchvision.transforms.v2", EXTRA)
    assert hint.image_size is not None
    channels, height, width = hint.image_size
    if min(height, width) < SMALL:
        shift = math.ceil(min(height, width) / 8)
        parts = [v2.Resize((height, width), antialias=True), v2.RandomCrop((height, width), padding=shift)]
    else:
        bicubic = v2.InterpolationMode.BICUBIC
        parts = [v2.RandomResizedCrop((height, width), scale=SCALE, interpolation=bicubic, antialias=True)]
    if channels == 3:
        parts += [v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=COLOUR, contrast=COLOUR, saturation=COLOUR)]
    mean, std = (list(v or (default,) * channels) for v, default in ((hint.mean, 0.0), (hint.std, 1.0)))
    return v2.Compose([*parts, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def hash_of(*numbers: int) -> int:
    """One number, the same everywhere, for a seed and what it is for."""
    return int(np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(1, np.uint64)[0] >> 1)


def _pixels(image: Any, hint: InputHint) -> torch.Tensor:
    assert hint.image_size is not None
    channels, height, width = hint.image_size
    shape = (height, width) if channels == 1 else (height, width, channels)
    own = image if isinstance(image, np.ndarray) and image.shape == shape else scaled(image, hint.image_size)
    pixels = torch.from_numpy(np.array(own, np.uint8))
    return (pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)).contiguous()


def _middle(pixels: torch.Tensor, hint: InputHint) -> Any:
    """The crop in the middle of a scaled picture, as `prepared` takes it: (H, W) or (H, W, C) uint8."""
    assert hint.image_size is not None
    channels, height, width = hint.image_size
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    crop = pixels[:, top : top + height, left : left + width]
    return (crop[0] if channels == 1 else crop.permute(1, 2, 0)).numpy()
