"""Where NaN or infinity first appears in a network, and which other inputs to try then."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from opq.models.batch import Batch
from opq.models.observe import batch_statistics, untouched
from opq.models.outputs import floating
from opq.models.record import Record

FEWEST = 0.25
"""The smallest fraction of the samples that the probe goes on with alone."""
SMALLER = (0.1, 0.01)
"""Factors by which synthetic inputs are multiplied where they may be too large."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Trouble:
    """Where a forward first gives NaN or infinity, and for which samples it does not."""

    where: str
    """The place in words, such as `module 'fc'`, in the first micro-batch that has one; empty where all is finite."""
    good: torch.Tensor
    """For each sample, whether its values are finite at the place where its micro-batch first has others; bool."""


@torch.no_grad()
def trouble(model: nn.Module, batch: Batch, *, micro_batch: int) -> Trouble:
    """Runs the batch through the model, which comes back untouched, and checks every module's inputs and outputs."""
    good, where, done = torch.ones(batch.samples, dtype=torch.bool), "", 0
    with untouched(model), batch_statistics(model):
        record = Record(model)
        for part in batch.to(model).parts(micro_batch):
            with _Looking(model, part.samples) as looking:
                output = part(model)
            looking.see(type(model).__name__, [output])
            record.restore()
            where = where or looking.where
            good[done : done + part.samples] = ~looking.bad
            done += part.samples
    return Trouble(where, good)


class _Looking:
    """Hooks on every module that note the first values that are not finite."""

    def __init__(self, model: nn.Module, samples: int):
        self.where, self.bad = "", torch.zeros(samples, dtype=torch.bool)
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> _Looking:
        for name, module in self._model.named_modules():
            if module is not self._model:
                label = f"module {name!r}"
                before, after = self._before(label), self._after(label)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(after))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def see(self, label: str, values: Any) -> None:
        """Notes the first values that are not finite."""
        for tensor in floating(values) if not self.where else ():
            wrong = ~torch.isfinite(tensor)
            if bool(wrong.any()):
                self.where = self.where or label
                by_sample = tensor.dim() > 0 and len(tensor) == len(self.bad)
                self.bad |= wrong.flatten(1).any(1).cpu() if by_sample and tensor.dim() > 1 else True

    def _before(self, label: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.see(f"what is given to {label}", [*args, kwargs])

        return hook

    def _after(self, label: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.see(label, [output])

        return hook


def others(batch: Batch, good: torch.Tensor, *, synthetic: bool) -> Iterator[tuple[str, Batch]]:
    """Batches to try in place of one, each with a name: its good samples; if it is synthetic, also milder noise."""
    if int(good.sum()) >= max(2, FEWEST * len(good)) and not bool(good.all()):
        yield f"{int(good.sum())} of the {len(good)} inputs", batch.only(good)
    if synthetic and any(t.is_floating_point() for t in batch.tensors):
        yield "inputs without negative numbers", _changed(batch, torch.abs)
        for factor in SMALLER:
            yield f"inputs of {factor} times the size", _changed(batch, functools.partial(torch.mul, other=factor))


def _changed(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    return batch.map(lambda t: change(t) if t.is_floating_point() else t)
