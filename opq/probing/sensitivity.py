"""Sensitivities without data: how much the outputs feel an error in each tensor (docs/mathematics.md, "Sensitivity").

`a_i` is the mean over the tensor's weights of the diagonal Gauss-Newton term `E_{x,v} [(d v'f(x) / d w)^2]` with
`v ~ N(0, I)` on the outputs and `x` synthetic. With an independent `v` per sample one backward pass per micro-batch
gives the sum over its samples, since the cross terms vanish in expectation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from opq.base import tables
from opq.base.calls import warn
from opq.base.pool import give_back
from opq.base.process_state import ordinary_arithmetic
from opq.base.progress import shown
from opq.base.stages import stage
from opq.base.tables import Column, printable
from opq.errors import OpqError, ProbeError, ProbeWarning
from opq.models.attachment import check_detached
from opq.models.batch import Batch, gathered
from opq.models.observe import batch_statistics, untouched
from opq.models.outputs import counted, floating
from opq.models.record import Record
from opq.models.wrappers import unwrapped
from opq.probing import evidence
from opq.probing.inputs import synthetic
from opq.probing.moments import Moments
from opq.probing.renorm import known, renormalise
from opq.quantizing.moment import DAMPING, DAMPING_REAL
from opq.sources.base import InputHint

SAMPLES, REAL_SAMPLES = 64, 512
"""Synthetic inputs made, and real ones taken, where the caller does not say how many."""

ACTIVATIONS = 0.75
"""Part of the memory allowed that activations kept for a backward pass may take; the rest is for their gradients."""


SampleProgress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


_FELT = (Column("tensor", least=24), Column("sensitivity", right=True))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """What synthetic (or calibration) inputs tell about a model; the model must not change while it is used."""

    model: nn.Module = dataclasses.field(repr=False)

    sensitivity: Mapping[str, float]
    """`a_i` of every floating-point parameter that the outputs depend on, by name."""
    moments: Moments
    """`S_i` by weight name, computed when asked for."""
    batch: Batch
    """The inputs, for re-normalisation."""
    micro_batch: int = 16

    def __repr__(self) -> str:
        felt = sorted(self.sensitivity.values())
        span = f" from {felt[0]:.3g} to {felt[-1]:.3g}" if felt else ""
        told = f"sensitivities of {tables.counted(len(felt), 'tensor')}{span}"
        layers = tables.counted(len(self.moments), "layer")
        return f"<opq.Probe of {type(self.model).__name__}: {told}, moments of {layers}>"

    def __str__(self) -> str:
        """Sensitivities by tensor, the largest first."""
        ranked = sorted(self.sensitivity.items(), key=lambda item: -item[1])
        drawn = tables.lines(_FELT, ((printable(n), f"{a:.4g}") for n, a in ranked), tables.width_of_output())
        return "\n".join((*drawn, repr(self)[1:-1]))

    def _repr_html_(self) -> str:
        ranked = sorted(self.sensitivity.items(), key=lambda item: -item[1])
        return tables.html(_FELT, ((printable(n), f"{a:.4g}") for n, a in ranked), total=len(ranked))

    def renormalised(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """New running means and variances for the network with `state` in place of its own tensors."""
        dense = self.moments.dense.statistics
        return renormalise(self.model, state, self.batch, micro_batch=self.micro_batch, dense=dense)

    def output_error(self, state: Mapping[str, torch.Tensor]) -> float:
        """How far `state` moves the outputs of a micro-batch, relative to how they vary from sample to sample.

        BatchNorm in batch-statistics mode, so this is the error that re-normalisation leaves. It ranks plans.
        """
        part = next(self.batch.to(self.model).parts(self.micro_batch))
        with torch.no_grad(), untouched(self.model), batch_statistics(self.model):
            output = functional_call(self.model, known(self.model, state), part.args, dict(part.kwargs))
        after = [counted(o, part.mask).double() for o in floating(output)]
        before = [o.double() for o in self.moments.dense.outputs]
        error = sum(float((b - a).square().sum()) for a, b in zip(before, after, strict=True))
        varied = sum(float((b - b.mean(0)).square().sum()) for b in before)
        return error / varied if varied > 0 else error

    def sensitivities(self, names: Iterable[str], *, alpha: float = 0.5) -> dict[str, float]:
        """`a_i^alpha` for the solver; a tensor that the outputs never felt gets the middle of the others."""
        return weights(self.sensitivity, names, alpha)


def weights(felt: Mapping[str, float], names: Iterable[str], alpha: float) -> dict[str, float]:
    """`a_i^alpha` of some tensors; one that was never felt gets the middle of the others."""
    names = list(names)
    known = sorted(felt[n] for n in names if felt.get(n, 0.0) > 0)
    middle = known[len(known) // 2] if known else 1.0
    return {n: (felt.get(n) or middle) ** alpha for n in names}


def probe(
    model: nn.Module,
    *,
    input_size: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    hint: InputHint | None = None,
    samples: int | None = None,
    seed: int = 0,
    micro_batch: int = 16,
    memory: int = 2**30,
    progress: SampleProgress | bool | None = None,
) -> Probe:
    """Sensitivities and input moments of a model from synthetic inputs; the model comes back untouched.

    Args:
        input_size: shape of one sample without the batch dimension, or shapes by the names of the forward's arguments;
            by default asked of the model.
        example_inputs: anything the forward takes, to be imitated in shape and kind.
        calibration: batches of real inputs to use instead of synthetic ones.
        samples: inputs in all; by default 64 synthetic ones, and up to 512 of `calibration`.
        seed: the same seed gives the same probe.
        micro_batch: samples in memory at one time, at most.
        memory: bytes of activations, and of second moments, held at one time.
        progress: called with (samples done, samples in all); True for a bar, False for none. By default a bar appears
            after two seconds, on a terminal or in a notebook only.

    Raises:
        ProbeError: the forward cannot be run, or gives nothing that can be differentiated.
        AttachError: the compression module is attached to the model.

    Example:
        >>> import opq
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
        >>> told = opq.probe(model, input_size=(3, 8, 8), samples=16)
        >>> sorted(told.sensitivity)
        ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    model = unwrapped(model)
    check_detached(model)
    if calibration is not None:
        batch = gathered(model, calibration, samples or REAL_SAMPLES)
    else:
        with ordinary_arithmetic():
            batch = synthetic(
                model,
                input_size=input_size,
                example_inputs=example_inputs,
                hint=hint,
                samples=samples or SAMPLES,
                seed=seed,
            )
    with shown((lambda _, done, total: progress(done, total)) if callable(progress) else progress) as told:
        tell: SampleProgress | None = functools.partial(told, "probe")
        if calibration is None:
            with stage("evidence"):
                batch, tell = _with_evidence(model, batch, (micro_batch, memory), tell)
        with stage("sensitivity"):
            felt = sensitivity(model, batch, seed=seed, micro_batch=micro_batch, memory=memory, progress=tell)
    give_back()
    damping = DAMPING if calibration is None else DAMPING_REAL
    moments = Moments(model, batch, micro_batch=micro_batch, memory=memory, damping=damping)
    return Probe(model, felt, moments, batch, micro_batch)


def _with_evidence(
    model: nn.Module, batch: Batch, most: tuple[int, int], progress: SampleProgress | None
) -> tuple[Batch, SampleProgress | None]:
    """Images that the network takes for something; and the progress of what is left, each pass counted."""
    if not evidence.applies(model, batch):
        return batch, progress
    before, passes = evidence.STEPS * batch.samples, (evidence.STEPS + 1) * batch.samples

    def see(done: int) -> None:
        if progress is not None:
            progress(done, passes)

    try:
        with _differentiable(model):
            size = _at_once(model, batch.to(model), most)
        batch = evidence.decided(model, batch, micro_batch=size, see=lambda done: see(evidence.STEPS * done))
    except OpqError:
        raise
    except Exception as error:  # a stranger's network may refuse to be differentiated: noise will do
        fact = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        warn(
            f"the images of the probe stay plain noise: {type(model).__name__} has no gradient for them, {fact}",
            ProbeWarning,
        )
        return batch, progress
    return batch, lambda done, total: see(before + done)


def sensitivity(
    model: nn.Module,
    batch: Batch,
    *,
    seed: int = 0,
    micro_batch: int = 16,
    memory: int = 2**30,
    progress: SampleProgress | None = None,
) -> dict[str, float]:
    """`a_i` of every floating-point parameter that the outputs depend on, by name (tied ones under every name).

    Rounded to four digits, so that the order in which threads add does not show. Micro-batches are smaller than
    `micro_batch` where the activations of a backward pass would take more than `memory` bytes.

    Raises:
        ProbeError: the forward or backward pass fails, or no output is a floating-point tensor.
    """
    try:
        return _sensitivity(model, batch, torch.Generator().manual_seed(seed), (micro_batch, memory), progress)
    except OpqError:
        raise
    except Exception as error:  # a stranger's forward may fail in any way; the cause is kept
        raise ProbeError(
            f"{type(model).__name__} fails on the probe's inputs", got=f"{type(error).__name__}: {error}"
        ) from error


def _sensitivity(
    model: nn.Module, batch: Batch, generator: torch.Generator, most: tuple[int, int], progress: SampleProgress | None
) -> dict[str, float]:
    total, done = batch.samples, 0
    with _differentiable(model):
        names = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()}
        parameters = list({id(p): p for p in names.values()}.values())
        sums = {id(p): 0.0 for p in parameters}
        batch = batch.to(model)
        record, size = Record(model), _at_once(model, batch, most)
        for part in batch.parts(size):
            gradients = _gradients(part(model), parameters, generator, part.mask)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    sums[id(parameter)] += float(gradient.float().square().mean(dtype=torch.float64)) / total
            record.restore()
            done += part.samples
            if progress is not None:
                progress(done, total)
    return {n: float(f"{sums[id(p)]:.4g}") for n, p in names.items() if sums[id(p)] > 0}


@contextlib.contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """The model in batch-statistics mode with a gradient for every parameter, those frozen by the user too."""
    with untouched(model), batch_statistics(model), torch.enable_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        yield


def _at_once(model: nn.Module, batch: Batch, most: tuple[int, int]) -> int:
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


def _gradients(
    output: Any, parameters: list[nn.Parameter], generator: torch.Generator, mask: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """d v'f / d w with fresh `v ~ N(0, I)` on every floating-point output, 0 on tokens that do not count."""
    outputs = [o for o in floating(output) if o.requires_grad]
    if not outputs:
        raise ProbeError("the forward's outputs do not depend on the weights", got=type(output).__name__)
    v = [counted(torch.randn(o.shape, generator=generator).to(o), mask) for o in outputs]
    return torch.autograd.grad(outputs, parameters, v, allow_unused=True)
