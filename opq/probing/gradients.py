"""How much the outputs feel an error in each tensor (docs/mathematics.md, "Sensitivity").

`a_i` is the mean over the tensor's weights of the diagonal Gauss-Newton term `E_{x,v} [(d v'f(x) / d w)^2]` with
`v ~ N(0, I)` on the outputs and `x` synthetic; outputs of several units are divided by theirs (`opq.probing.units`).
With an independent `v` per sample one backward pass per micro-batch gives the sum over its samples, since the cross
terms vanish in expectation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from opq.errors import OpqError, ProbeError
from opq.models.batch import Batch
from opq.models.observe import batch_statistics, untouched
from opq.models.outputs import counted, floating, weighing
from opq.models.record import Record
from opq.probing.units import Units

ACTIVATIONS = 0.75
"""Part of the memory allowed that activations kept for a backward pass may take; the rest is for the gradients of these
and of the weights, and for what a convolution needs beside them."""
VARIED = 8
"""Samples on which the units of outputs are measured at least, where there are as many."""
DRAWN = 256
"""Random numbers on the outputs that one average is over at least: micro-batches times the outputs of one sample. A
choice: a sensitivity then has an error of about sqrt(2 / 256), 9 %."""

SampleProgress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


class NotFiniteError(ProbeError):
    """Some inputs give gradients that are NaN or infinite."""

    name: str = ""
    """The last parameter of which that is so."""
    good: torch.Tensor
    """Which samples were not in such a micro-batch, bool."""


def sensitivity(
    model: nn.Module,
    batch: Batch,
    *,
    seed: int = 0,
    micro_batch: int = 16,
    memory: int = 2**30,
    enough: int | None = None,
    progress: SampleProgress | None = None,
) -> dict[str, float]:
    """`a_i` of every floating-point parameter that the outputs depend on, by name (tied ones under every name).

    Rounded to four digits, so that the order in which threads add does not show. Micro-batches are smaller than
    `micro_batch` where the activations of a backward pass would take more than `memory` bytes.

    Args:
        enough: samples after which it stops if the outputs are many (`DRAWN`); by default all are used.

    Raises:
        ProbeError: the forward or backward pass fails, or no output is a floating-point tensor.
    """
    try:
        return _sensitivity(model, batch, torch.Generator().manual_seed(seed), (micro_batch, memory, enough), progress)
    except OpqError:
        raise
    except Exception as error:  # a stranger's forward may fail in any way; the cause is kept
        raise ProbeError(
            f"{type(model).__name__} fails on the probe's inputs", got=f"{type(error).__name__}: {error}"
        ) from error


def _sensitivity(
    model: nn.Module,
    batch: Batch,
    generator: torch.Generator,
    most: tuple[int, int, int | None],
    progress: SampleProgress | None,
) -> dict[str, float]:
    total, done, drawn, enough = batch.samples, 0, 0, most[2]
    good, last, units = torch.ones(total, dtype=torch.bool), "", None
    with differentiable(model):
        names = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}
        parameters = {id(p): p for p in names.values()}
        sums = dict.fromkeys(parameters, 0.0)
        batch = batch.to(model)
        record, size = Record(model), at_once(model, batch, most[:2])
        for part in batch.parts(size):
            outputs = _outputs(model, part)
            units = units or _units(model, batch, part, outputs)
            felt = [(k, o) for k, o in enumerate(outputs) if o.requires_grad]
            v = [_noise(o, part.mask, units, k, generator) for k, o in felt]
            squares = _squares([o for _, o in felt], v, list(parameters.values()))
            record.restore()
            for key, square in zip(parameters, squares, strict=True):
                sums[key] += square
            done, drawn = done + part.samples, drawn + sum(o.numel() for o in v) // part.samples
            bad = [n for n, square in zip(parameters, squares, strict=True) if not math.isfinite(square)]
            if bad:
                good[done - part.samples : done] = False
                last = next(name for name, p in names.items() if id(p) == bad[-1])
            finished = done == total or (enough is not None and done >= enough and drawn >= DRAWN)
            if progress is not None:
                progress(total if finished else done, total)
            if finished:
                break
    if last:
        error = NotFiniteError(f"the gradient of {last} is NaN or infinite on the probe's inputs")
        error.name, error.good = last, good
        raise error
    return {n: float(f"{sums[id(p)] / done:.4g}") for n, p in names.items() if sums[id(p)] > 0}


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """The model in batch-statistics mode with a gradient for every parameter, those frozen by the user too."""
    with untouched(model), batch_statistics(model), torch.enable_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        yield


def at_once(model: nn.Module, batch: Batch, most: tuple[int, int]) -> int:
    """Samples of a micro-batch whose backward pass keeps within so many samples and bytes."""
    return min(most[0], max(2, int(ACTIVATIONS * most[1]) // _bytes_per_sample(model, batch)))


def _bytes_per_sample(model: nn.Module, batch: Batch) -> int:
    """Of what the backward pass needs of the forward one, measured on two samples."""
    saved = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    part, record = next(batch.parts(2)), Record(model)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = part(model)
    size = sum(n for at, n in saved.items() if at not in own) // part.samples
    del output
    record.restore()
    return max(size, 1)


def _outputs(model: nn.Module, part: Batch) -> list[torch.Tensor]:
    """What errors are measured on, and what depends on the weights at all where that does not."""
    output = part(model)
    for found in (weighing(output), floating(output)):
        if any(o.requires_grad for o in found):
            return found
    raise ProbeError("the forward's outputs do not depend on the weights", got=type(output).__name__)


def _units(model: nn.Module, batch: Batch, part: Batch, outputs: Sequence[torch.Tensor]) -> Units:
    """Of the first micro-batch's outputs, or of a larger one's where that is small."""
    if part.samples < VARIED and part.samples < batch.samples:
        part, record = next(batch.parts(VARIED)), Record(model)
        with torch.no_grad():
            outputs = weighing(part(model))
        record.restore()
    return Units.of([counted(o.detach(), part.mask) for o in outputs])


def _noise(
    output: torch.Tensor, mask: torch.Tensor | None, units: Units, number: int, generator: torch.Generator
) -> torch.Tensor:
    """Fresh `v ~ N(0, I)` on one output, as it counts; 0 on tokens that do not count."""
    return units.scaled(counted(torch.randn(output.shape, generator=generator).to(output), mask), number)


def _squares(
    outputs: Sequence[torch.Tensor], v: Sequence[torch.Tensor], parameters: Sequence[nn.Parameter]
) -> list[float]:
    """Means over each parameter of `(d v'f / d w)^2`."""
    gradients = torch.autograd.grad(outputs, parameters, v, allow_unused=True)
    return [0.0 if g is None else _mean_square(g) for g in gradients]


def _mean_square(gradient: torch.Tensor) -> float:
    square = float(gradient.float().square().mean(dtype=torch.float64))
    return square if math.isfinite(square) else float(gradient.double().square().mean())
