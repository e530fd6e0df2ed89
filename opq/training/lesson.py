"""Unlabelled data as a lesson: what is shown in each epoch, and what is held back to judge by.

A lesson is made of pictures, of synthetic images, or of texts. A tenth is held back: the agreement with the teacher on
it tells which epoch was the best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from opq.base.tables import counted
from opq.errors import DataError
from opq.models.batch import Batch
from opq.models.observe import batchnorms, evaluating
from opq.probing import images as image_noise
from opq.probing.renorm import renormalise
from opq.sources.base import InputHint
from opq.training.imitation import agreement, distance, mask_of
from opq.training.objective import run, to_device
from opq.training.pictures import Pictures, hash_of
from opq.training.proving import dense_state_dict

if TYPE_CHECKING:
    from opq.training.loop import Training

HELD_BACK = 10
"""One in so many is held back."""
STATISTICS = 128
"""Samples from which BatchNorm statistics are estimated before training. A choice: re-normalisation takes as many
synthetic ones."""
SYNTHETIC = 1000
"""Synthetic images in an epoch: as many as there are photographs in a small folder."""

Inputs = Any
Shown = Callable[[Sequence[int], int], Inputs]


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Inputs without labels."""

    count: int
    shown: Shown
    """The inputs of these numbers as they are shown in an epoch."""
    plain: Callable[[Sequence[int]], Inputs]
    """The same without augmentation."""
    skipped: tuple[str, ...] = ()
    """What could not be read, and why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """Inputs without labels, and the teacher."""

    data: Data
    teacher: nn.Module
    batch: int
    seed: int
    temperature: float
    order: tuple[int, ...] = ()
    """All numbers, the held-back ones first; made of the seed."""

    def __post_init__(self) -> None:
        if self.data.count < 2:
            wanted = "at least 2: one to learn from and one to judge by"
            raise DataError("too little to learn from", got=counted(self.data.count, "sample"), wanted=wanted)
        generator = torch.Generator().manual_seed(hash_of(self.seed))
        object.__setattr__(self, "order", tuple(torch.randperm(self.data.count, generator=generator).tolist()))

    @classmethod
    def of(cls, data: Data, teacher: nn.Module, how: Training) -> Lesson:
        """A lesson by the options of a training."""
        return cls(data, teacher, how.batch, how.seed or 0, how.temperature)

    @property
    def held_back(self) -> tuple[int, ...]:
        """The numbers that are judged by."""
        return self.order[: max(1, self.data.count // HELD_BACK)]

    @property
    def taught(self) -> tuple[int, ...]:
        """The numbers that are learnt from."""
        return self.order[len(self.held_back) :]

    @property
    def rows(self) -> int:
        """Samples of a batch; fewer than asked for where there are not as many."""
        return min(self.batch, len(self.taught))

    def epoch(self, number: int) -> Passes:
        """The batches of an epoch, in an order of its own."""
        generator = torch.Generator().manual_seed(hash_of(self.seed, number))
        order = [self.taught[k] for k in torch.randperm(len(self.taught), generator=generator).tolist()]
        return Passes(order, self.rows, lambda which: self.data.shown(which, number))

    def unchanged(self) -> Passes:
        """The batches without augmentation, for statistics."""
        return Passes(list(self.taught), self.rows, self.data.plain)

    def statistics(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """BatchNorms by which a model's channels are where its teacher's are on what is learnt from.

        By the name of the buffer or parameter; none where the teacher is another kind of network. Weights and biases
        are the teacher's: those of a file make up for the coarse statistics that it stores, and for these alone.
        """
        norms = set(batchnorms(self.teacher))
        if not norms:
            return {}
        state = dense_state_dict(model)
        own = self.teacher.state_dict()
        if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in state.items()}:
            return {}
        inputs = self.data.plain(self.taught[:STATISTICS])
        batch = Batch((), inputs) if isinstance(inputs, Mapping) else Batch((inputs,))
        names = [name for name, module in self.teacher.named_modules() if module in norms]
        affine = (f"{name}.{which}".lstrip(".") for name in names for which in ("weight", "bias"))
        theirs = {name: own[name] for name in affine if name in own}
        return renormalise(self.teacher, state | theirs, batch) | theirs

    def judge(self, model: nn.Module) -> tuple[float, float]:
        """The agreement of a model with its teacher on what is held back, and its distance from it."""
        same, places, apart, samples = 0.0, 0, 0.0, 0
        device = next(model.parameters()).device
        with torch.no_grad(), evaluating(model):
            for start in range(0, len(self.held_back), self.batch):
                which = self.held_back[start : start + self.batch]
                inputs = to_device(self.data.plain(which), device)
                own, wanted, mask = run(model, inputs), run(self.teacher, inputs), mask_of(inputs)
                agreeing, here = agreement(own, wanted, mask)
                same, places = same + agreeing, places + here
                apart += float(distance(own, wanted, mask, self.temperature)) * len(which)
                samples += len(which)
        return same / max(places, 1), apart / samples


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
    """Whole batches of some samples, as (inputs, None)."""

    order: Sequence[int]
    rows: int
    made: Callable[[Sequence[int]], Inputs]

    def __len__(self) -> int:
        return len(self.order) // self.rows

    def __iter__(self) -> Iterator[tuple[Inputs, None]]:
        for k in range(len(self)):
            yield self.made(self.order[k * self.rows : (k + 1) * self.rows]), None


def of_pictures(pictures: Pictures, seed: int) -> Data:
    """Pictures, augmented."""
    return Data(len(pictures), lambda which, epoch: pictures.augmented(which, seed, epoch), pictures.plain,
                pictures.skipped)  # fmt: skip


def of_noise(hint: InputHint, seed: int) -> Data:
    """Synthetic images, new ones in every epoch; those held back stay."""
    assert hint.image_size is not None
    size = hint.image_size

    def made(which: Sequence[int], epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash_of(seed, epoch, *which[:1]))
        return image_noise.images(len(which), size, generator)

    return Data(SYNTHETIC, lambda which, epoch: made(which, epoch + 1), lambda which: made(which, 0))
