"""Other tools on the scene of `photographs.py`: what each makes of a network of pictures.

CLIP-Q learns from the same pictures without labels: their label is the class that the dense network gives. Its search,
which evaluates the network for each layer anew, is kept short. NNCodec and HQQ see no picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import peers
import torch
from torch import nn

import opq
from opq.evaluation import ImageSet
from opq.training.pictures import Pictures

BATCH = 32
SEARCH: Mapping[str, Any] = {"evaluations": 10, "startup": 4, "subset": 2}
"""Of CLIP-Q. Its own defaults, 24 evaluations of 16 batches for each of 28 layers, would take three hours."""
LR = 1e-4
"""Of CLIP-Q's training, which begins with a trained network."""


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """What a tool made of a network."""

    bytes: int
    state: Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """One epoch of augmented pictures in an order of its own, with the classes that a network gives them."""

    teacher: nn.Module
    pictures: Pictures
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.pictures) // BATCH

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        order = torch.randperm(len(self.pictures), generator=generator)
        for which in order[: len(self) * BATCH].view(-1, BATCH).tolist():
            x = self.pictures.augmented(which, self.seed, self.epoch).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                classes = self.teacher(x).argmax(1)
            yield x, classes


def clipq(
    model: nn.Module,
    images: ImageSet,
    *,
    epochs: int,
    weight: float,
    theta: tuple[float, int] | None,
    seed: int,
    progress: Callable[..., None],
) -> Made:
    """CLIP-Q, taught by the network itself; `weight` is its lambda, `theta` (p, b) of every layer in place of a search.

    A search by lambda alone may give the network up: once a layer has made the error large, all others cost nothing.
    """
    pictures = Pictures.read(images, model.input_hint, lambda *_: None)  # type: ignore[arg-type]
    fixed = None if theta is None else {"*": theta}
    how = opq.methods.ClipQ(data=lambda epoch: Labelled(model, pictures, seed, epoch), epochs=epochs, weight=weight,
                            theta=fixed, lr=LR, distill=1.0, **SEARCH)  # fmt: skip
    checkpoint = peers.CACHE / f"clipq-{weight:g}-{theta}-{seed}"
    result = opq.compress(model, method=how, seed=seed, progress=progress, checkpoint=checkpoint)
    return Made(result.bytes, result.state_dict())


def nncodec(model: nn.Module, bits: float) -> Made:
    """NNCodec 2 with dependent quantization, at the size nearest to so many bits a parameter."""
    own = {n: w for n, w in model.state_dict().items() if w.is_floating_point()}
    count = sum(p.numel() for p in model.parameters())
    _, coded = peers.nncodec_near({n: w.numpy() for n, w in own.items()}, bits, count)
    return Made(coded.bytes, {n: torch.from_numpy(np.array(a)).reshape(own[n].shape) for n, a in coded.arrays.items()})


def hqq(model: nn.Module, bits: float) -> Made:
    """HQQ in groups of 64 inputs, at the nearest whole number of bits; vectors and depthwise kernels as fp16.

    Codes of two bits are packed four groups at a time: what has other numbers of groups is fp16, too.
    """
    own = dict(model.named_parameters())
    matrices = {n: w.detach().flatten(1) for n, w in own.items() if w.dim() > 1}
    given = {n: w for n, w in matrices.items() if w.shape[1] % 64 == 0 and w.numel() % 256 == 0}
    coded = peers.hqq({n: w.numpy() for n, w in given.items()}, bits=max(2, round(bits)))
    left = sum(2 * w.numel() for n, w in model.state_dict().items() if n not in given and w.is_floating_point())
    state = {n: torch.from_numpy(np.array(a)).reshape(own[n].shape) for n, a in coded.arrays.items()}
    return Made(coded.bytes + left, state)
