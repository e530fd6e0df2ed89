"""Noise in the range of pixels, for networks that divide these by 255 themselves.

Noise of deviation 1 is next to nothing for them: what they do is then decided by their biases, and says nothing of
their weights. Whether that is so is seen at the first module in which the inputs meet a constant, mostly a bias.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from opq.models.batch import Batch
from opq.models.observe import batch_statistics, untouched
from opq.models.outputs import floating
from opq.models.record import Record

MIDDLE, DEVIATION, BRIGHTEST = 127.5, 64.0, 255.0
"""Of pixels: their mean, their standard deviation, and the largest one."""
FAINT, CLEAR = 0.1, 16
"""Noise is hardly seen if it moves the outputs of that module by less than this part of the constant. Then pixels are
taken if they move them so many times as far. A choice: where pixels are divided by 255, it is 40 times and more; of
ordinary networks, as they are made, noise moves that module by more than its constant."""
FEW = 4
"""Samples that are looked at."""


class _EnoughError(Exception):
    """Ends a forward at the module that was looked for."""


def visible(model: nn.Module, batch: Batch) -> Batch:
    """The batch, with its noise in the range of pixels if the model hardly sees it as it is; the model stays untouched.

    Only noise of mean 0 and deviation 1 is changed, and only where all else in the batch is integers.
    """
    if not _is_noise(batch):
        return batch
    few = next(batch.parts(FEW))
    with untouched(model), batch_statistics(model), torch.no_grad():
        try:
            moved = _moved(model, few)
        except Exception:  # a stranger's forward may fail in any way; through the noise it did run
            return batch
    return batch.map(as_pixels) if moved[0] < FAINT and moved[1] > CLEAR * moved[0] else batch


def as_pixels(noise: torch.Tensor) -> torch.Tensor:
    """Noise of mean 0 and deviation 1 in the range of pixels; integers as they are."""
    return (MIDDLE + DEVIATION * noise).clamp(0, BRIGHTEST) if noise.is_floating_point() else noise


def _dark(noise: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(noise) if noise.is_floating_point() else noise


def _is_noise(batch: Batch) -> bool:
    found = [t for t in batch.tensors if t.is_floating_point()]
    if batch.dim is None or len(found) != 1 or found[0].numel() < 2:
        return False
    return abs(float(found[0].mean())) < 0.5 and 0.5 < float(found[0].std()) < 2


def _moved(model: nn.Module, noise: Batch) -> tuple[float, float]:
    """How far noise, and pixels, move the first constant that they meet, as parts of it; infinitely without one."""
    met = _first(model, noise.map(_dark), list(_weighted(model)))
    if met is None:
        return math.inf, math.inf
    module, constant = met
    seen = (_first(model, batch, [module]) for batch in (noise, noise.map(as_pixels)))
    by_noise, by_pixels = (math.inf if one is None else float((one[1] - constant).norm()) for one in seen)
    return by_noise / float(constant.norm()), by_pixels / float(constant.norm())


def _weighted(model: nn.Module) -> Iterator[nn.Module]:
    """The modules with weights of their own."""
    return (module for module in model.modules() if next(module.parameters(recurse=False), None) is not None)


def _first(model: nn.Module, batch: Batch, modules: list[nn.Module]) -> tuple[nn.Module, torch.Tensor] | None:
    """The first of some modules whose output is not 0, and that output; None if there is none. No more is run."""
    seen: list[tuple[nn.Module, torch.Tensor]] = []

    def hook(module: nn.Module, _: object, output: object) -> None:
        found = [] if seen else floating(output)[:1]
        seen.extend((module, one.detach().float().clone()) for one in found if bool(one.any()))
        if seen:
            raise _EnoughError

    record = Record(model)
    with contextlib.ExitStack() as stack:
        stack.callback(record.restore)
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        with contextlib.suppress(_EnoughError):
            batch.to(model)(model)
    return seen[0] if seen else None
