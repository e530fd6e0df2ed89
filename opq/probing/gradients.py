"""How much an error in each tensor changes the outputs (docs/mathematics.md, "Sensitivity").

The sensitivity `a_i` of tensor i is the mean over its weights w of the diagonal Gauss-Newton term
`E_{x,v} [(d v'f(x) / d w)^2]`, where f is the network, x a synthetic input and `v ~ N(0, I)` a random vector of the
outputs' shape. Outputs of different scales are first divided by their scale (`opq.probing.units`). With an independent
v for each sample, one backward pass gives the sum over a micro-batch, since the cross terms vanish in expectation.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import nn

from opq.base.arrays import Floats
from opq.base.calls import warn
from opq.base.extras import brief
from opq.errors import OpqError, ProbeError, ProbeWarning
from opq.models.batch import Batch
from opq.models.observe import batch_statistics, tidied, untouched
from opq.models.outputs import counted, floating, weighing
from opq.models.record import Record
from opq.probing import robust
from opq.probing.layers import layers
from opq.probing.units import Units
from opq.quantizing.turned import Turn

ACTIVATIONS = 0.75
"""The fraction of the allowed memory for the activations of a backward pass; the rest is for the gradients of these and
of the weights, and for what a convolution needs beside them."""
VARIED = 8
"""The fewest samples on which the units of outputs are measured, where there are as many."""
DRAWN = 256
"""The fewest random numbers on the outputs that one average is over: micro-batches times the outputs of one sample. A
choice: a sensitivity then has an error of about sqrt(2 / 256), 9 %."""

AT_ONCE = 1 << 18
"""Weights whose gradients are squared at one time. A choice: with their squares in float64 they take 3 MB."""

SampleProgress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


class NotFiniteError(ProbeError):
    """Some inputs give gradients that are NaN or infinite."""

    name: str = ""
    """The last parameter with such a gradient."""
    good: torch.Tensor
    """For each sample, whether all gradients of its micro-batch were finite; bool."""


class Felt(dict[str, float]):
    """The sensitivity of each tensor by name."""

    rows: Mapping[str, Floats]
    """Of tensors of two axes and more, but tables of embeddings, that of each row (rows,): their mean is the tensor's,
    up to rounding. Rows are those of the matrix (outputs, inputs) that `Layout.turn` gives, where there is one."""

    def __init__(self, tensors: Mapping[str, float], rows: Mapping[str, Floats] | None = None):
        super().__init__(tensors)
        self.rows = rows or {}


class _NoGradientError(ProbeError):
    """The forward gives nothing that can be differentiated."""


def sensitivity(
    model: nn.Module,
    batch: Batch,
    *,
    seed: int = 0,
    micro_batch: int = 16,
    memory: int = 2**30,
    enough: int | None = None,
    progress: SampleProgress | None = None,
) -> Felt:
    """`a_i` of every floating-point parameter that the outputs depend on, by name (tied ones under every name).

    The numbers are rounded to four digits, so that they do not depend on the order in which threads add. Micro-batches
    are smaller than `micro_batch` where the activations of a backward pass would take more than `memory` bytes.

    None, with a `ProbeWarning`, where the forward cannot be differentiated.

    Args:
        enough: samples after which it stops if the outputs are many (`DRAWN`); by default all are used.

    Raises:
        NotFiniteError: some gradients are NaN or infinite.
        ProbeError: the forward fails.
    """
    try:
        return _sensitivity(model, batch, torch.Generator().manual_seed(seed), (micro_batch, memory, enough), progress)
    except _NoGradientError as error:
        why = error.fact
    except OpqError:
        raise
    except Exception as error:  # a user's forward may fail in any way; the cause is kept
        why = brief(error)
        if not _runs(model, batch, micro_batch):
            raise ProbeError(f"{type(model).__name__} fails on the probe's inputs", got=why) from error
    warn(
        f"{type(model).__name__} has no gradients: {why}. Sensitivities are then by its weights, and errors are fed "
        "back as elsewhere.",
        ProbeWarning,
    )
    return Felt({})


@torch.no_grad()
def _runs(model: nn.Module, batch: Batch, micro_batch: int) -> bool:
    """Whether the forward works where no gradient is asked for."""
    with untouched(model), batch_statistics(model):
        try:
            next(batch.to(model).parts(micro_batch))(model)
        except Exception:
            return False
        return True


def _sensitivity(
    model: nn.Module,
    batch: Batch,
    generator: torch.Generator,
    most: tuple[int, int, int | None],
    progress: SampleProgress | None,
) -> Felt:
    total, done, drawn, enough = batch.samples, 0, 0, most[2]
    good, last, units = torch.ones(total, dtype=torch.bool), "", None
    with differentiable(model) as before:
        names = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}
        parameters = {id(p): p for p in names.values()}
        sums, of_rows = dict.fromkeys(parameters, 0.0), dict[int, torch.Tensor]()
        batch = batch.to(model)
        record, size = Record(model), at_once(model, batch, most[:2])
        before.settle()
        of_tokens, turns = robust.tables(model), _turns(model)
        for part in batch.parts(size):
            with tidied(model):
                outputs = _outputs(model, part)
            units = units or _units(model, batch, part, outputs)
            felt = [(k, o) for k, o in enumerate(outputs) if o.requires_grad]
            v = [_noise(o, part.mask, units, k, generator) for k, o in felt]
            squares, by_row = _squares([o for _, o in felt], v, list(parameters.values()), of_tokens, turns)
            record.restore()
            for key, row in by_row.items():
                of_rows[key] = of_rows[key] + row if key in of_rows else row
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
    return Felt(
        {n: float(f"{sums[id(p)] / done:.4g}") for n, p in names.items() if sums[id(p)] > 0},
        {n: of_rows[id(p)].numpy() / done for n, p in names.items() if id(p) in of_rows},
    )


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[Record]:
    """The model in batch-statistics mode, with gradients for all parameters, also for those that the user froze.

    Yields what will be put back.
    """
    with untouched(model) as before, batch_statistics(model), torch.enable_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        yield before


def at_once(model: nn.Module, batch: Batch, most: tuple[int, int]) -> int:
    """The size of micro-batches for backward passes that keep within `most`, a number of samples and of bytes."""
    return min(most[0], max(2, int(ACTIVATIONS * most[1]) // _bytes_per_sample(model, batch)))


def _bytes_per_sample(model: nn.Module, batch: Batch) -> int:
    """Bytes per sample that the forward pass keeps for the backward one, measured on two samples."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor.detach()  # with its own graph it would be held by the graph that it holds, for ever

    part, record = next(batch.parts(2)), Record(model)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = part(model)
    del output
    record.restore()
    return max(sum(storage.nbytes() for storage in saved.values()) // part.samples, 1)


def _outputs(model: nn.Module, part: Batch) -> list[torch.Tensor]:
    """The outputs that errors are measured on; if none of them depends on the weights, all floating-point outputs."""
    output = part(model)
    for found in (weighing(output), floating(output)):
        if any(o.requires_grad for o in found):
            return found
    raise _NoGradientError("no output follows the weights smoothly")


def _units(model: nn.Module, batch: Batch, part: Batch, outputs: Sequence[torch.Tensor]) -> Units:
    """The units of the first micro-batch's outputs; if it has fewer than `VARIED` samples, of a larger one's."""
    if part.samples < VARIED and part.samples < batch.samples:
        part, record = next(batch.parts(VARIED)), Record(model)
        with torch.no_grad():
            outputs = weighing(part(model))
        record.restore()
    return Units.of([counted(o.detach(), part.mask) for o in outputs])


def _noise(
    output: torch.Tensor, mask: torch.Tensor | None, units: Units, number: int, generator: torch.Generator
) -> torch.Tensor:
    """A new `v ~ N(0, I)` for one output, divided by the output's unit; 0 at padding tokens."""
    return units.scaled(counted(torch.randn(output.shape, generator=generator).to(output), mask), number)


def _squares(
    outputs: Sequence[torch.Tensor],
    v: Sequence[torch.Tensor],
    parameters: Sequence[nn.Parameter],
    of_tokens: Collection[int],
    turns: Mapping[int, Turn],
) -> tuple[list[float], dict[int, torch.Tensor]]:
    """Means over each parameter of `(d v'f / d w)^2`; of a table of embeddings so that no token decides them.

    Also the means over each row, that is each output, of all others of two axes and more, by `id`, in float64. Each
    gradient is released as soon as it is measured: together they would take as much as the weights.
    """
    found, of_rows = dict.fromkeys(map(id, parameters), 0.0), dict[int, torch.Tensor]()

    def measured(parameter: nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
        mean, of_token = math.inf, id(parameter) in of_tokens
        if gradient.dim() > 1 and gradient.numel() and not of_token:
            turn = turns.get(id(parameter))
            rows = gradient if turn is None else turn.matrix(gradient)
            wide = (some if some.dtype == torch.float64 else some.float() for some in _pieces(rows))
            means = torch.cat([some.square().mean(1, dtype=torch.float64) for some in wide]).cpu()
            of_rows[id(parameter)], mean = means, float(means.mean())
        if not math.isfinite(mean):
            mean = (robust.kept(gradient) if of_token else 1.0) * _mean_square(gradient)
        found[id(parameter)] = mean
        return gradient.new_zeros(()).expand_as(gradient) if type(gradient) is torch.Tensor else gradient

    with contextlib.ExitStack() as stack:
        for parameter in parameters:
            handle = parameter.register_hook(functools.partial(measured, parameter))  # type: ignore[no-untyped-call]
            stack.callback(handle.remove)
        torch.autograd.grad(outputs, parameters, v, allow_unused=True)
    return list(found.values()), of_rows


def _turns(model: nn.Module) -> dict[int, Turn]:
    """By `id` how weights whose first axis counts no outputs are matrices (outputs, inputs)."""
    named = dict(model.named_parameters(remove_duplicate=False))
    found = {id(named[name]): layer.layout.turn for name, layer in layers(model).items()}
    return {key: turn for key, turn in found.items() if turn is not None}


def _mean_square(gradient: torch.Tensor) -> float:
    total = sum(float(p.float().square().sum(dtype=torch.float64)) for p in _pieces(gradient))
    if not math.isfinite(total):
        total = sum(float(p.double().square().sum()) for p in _pieces(gradient))
    return total / gradient.numel() if gradient.numel() else math.nan


def _pieces(gradient: torch.Tensor) -> Sequence[torch.Tensor]:
    """A gradient as (rows, columns), some rows at a time: its squares take three times as much as it does."""
    rows = gradient.reshape(len(gradient), -1) if gradient.dim() and gradient.numel() else gradient.reshape(1, -1)
    return torch.split(rows, max(1, AT_ONCE // max(1, rows.shape[1])))
