"""The probe of a model: runs it on inputs and measures sensitivities, input moments, BatchNorm statistics, outputs."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from opq.base import tables
from opq.base.arrays import Floats
from opq.base.calls import warn
from opq.base.pool import give_back
from opq.base.process_state import ordinary_arithmetic
from opq.base.progress import Progress, shown
from opq.base.stages import stage
from opq.base.tables import Column, printable
from opq.errors import OpqError, ProbeError, ProbeWarning
from opq.models.attachment import check_detached
from opq.models.batch import Batch
from opq.models.divided import gathered
from opq.models.observe import batch_statistics, device_of, untouched
from opq.models.outputs import counted, weighing
from opq.models.wrappers import unwrapped
from opq.probing import calibration as calibrating
from opq.probing import evidence, finite, recurrent, texts, usage
from opq.probing.gradients import Felt, NotFiniteError, SampleProgress, at_once, differentiable, sensitivity
from opq.probing.inputs import synthetic
from opq.probing.moments import Moments
from opq.probing.renorm import known, renormalise
from opq.probing.units import error_of
from opq.quantizing.moment import DAMPING, DAMPING_REAL, Layout
from opq.sources.base import InputHint
from opq.sources.hints import hint_of_module

REAL_SAMPLES = 512
"""How many real inputs are used at most, where the caller does not say."""
FELT = 16
"""Sensitivities are measured on at least so many samples, and on a quarter of all. docs/research.md compares 64."""

_FELT = (Column("tensor", least=24), Column("sensitivity", right=True))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """What a model does on synthetic or calibration inputs; the model must not change while a probe of it is used."""

    model: nn.Module = dataclasses.field(repr=False)

    sensitivity: Mapping[str, float]
    """The sensitivity `a_i` of every floating-point parameter that the outputs depend on, by name."""
    moments: Moments
    """The second moments `S_i` of layers' inputs by weight name, computed when they are first requested."""
    batch: Batch
    """The inputs, for re-normalisation."""
    micro_batch: int = 16
    rows: Mapping[str, Floats] = dataclasses.field(default_factory=dict)
    """The sensitivity of each row of tensors of two axes and more, see `gradients.Felt`."""
    usage: Mapping[str, Floats] = dataclasses.field(default_factory=dict)
    """How much each row of tables of tokens counts, see `usage.of`."""
    words: bool = False
    """Whether the outputs are scores of words, on texts of the model's own or real ones: these rank plans well."""

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

    def layout(self, name: str) -> Layout | None:
        """How feedback takes a tensor; None if errors are not fed back in it."""
        return self.moments.layout(name)

    def columns(self, names: Collection[str]) -> Mapping[str, Floats]:
        """How much errors in each column of some tensors' matrices cost, once those behind it make up for them."""
        return self.moments.costs(names)

    def is_crosswise(self, name: str) -> bool:
        """Whether feedback takes a tensor as (inputs, outputs), or as a stack, so that its rows are no outputs."""
        layout = self.layout(name)
        return layout is not None and layout.crosswise

    def renormalised(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """New running means and variances of BatchNorm for the quantized network `state`, by buffer name.

        Args:
            state: tensors by state-dict name; those that it lacks are taken from the model.
        """
        dense = self.moments.dense.statistics
        return renormalise(self.model, state, self.batch, micro_batch=self.micro_batch, dense=dense)

    def output_error(self, state: Mapping[str, torch.Tensor]) -> float:
        """How far `state` moves the outputs of a micro-batch, relative to how they vary from sample to sample.

        Of scores of words: the divergence from the dense network's distribution of words, in nats a token.
        BatchNorm is in batch-statistics mode, so this is the error that re-normalisation leaves. Plans are ranked by
        it. It is NaN where no output has the same shape as before, since the data decide the shapes.
        """
        part = next(self.batch.to(self.model).parts(self.micro_batch))
        state = known(self.model, state)
        with torch.no_grad(), untouched(self.model, replaced=state), batch_statistics(self.model):
            output = functional_call(self.model, state, part.args, dict(part.kwargs))
        after = [counted(o, part.mask) for o in weighing(output)]
        before = self.moments.dense.outputs
        return texts.divergence(before[0], after[0], part.mask) if self.words else error_of(before, after)

    def sensitivities(self, names: Iterable[str], *, alpha: float = 0.5) -> dict[str, float]:
        """`a_i^alpha` by name, as the solver takes it; a tensor without a sensitivity gets the median of the others."""
        return weights(self.sensitivity, names, alpha)


def weights(felt: Mapping[str, float], names: Iterable[str], alpha: float) -> dict[str, float]:
    """`a_i^alpha` of some tensors by name; a tensor without a sensitivity gets the median of the others."""
    names = list(names)
    known = sorted(felt[n] for n in names if felt.get(n, 0.0) > 0)
    middle = known[len(known) // 2] if known else 1.0
    return {n: (felt.get(n) or middle) ** alpha for n in names}


def probe(
    model: nn.Module,
    *,
    input_size: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    example_inputs: Any = None,
    calibration: Iterable[Any] | str | os.PathLike[str] | None = None,
    hint: InputHint | None = None,
    quick: bool = False,
    samples: int | None = None,
    seed: int = 0,
    micro_batch: int = 16,
    memory: int = 2**30,
    progress: SampleProgress | bool | None = None,
) -> Probe:
    """Measures sensitivities and input moments of a model, on synthetic inputs unless `calibration` is given.

    The model comes back untouched.

    Args:
        input_size: shape of one sample without the batch dimension, or such shapes by the names of the forward's
            arguments; by default they are guessed from the model.
        example_inputs: anything the forward takes, to be imitated in shape and kind.
        calibration: batches of real inputs to use instead of synthetic ones; or a tensor, or a folder or an `.npz` file
            of pictures.
        hint: what the source knows about the inputs (`Source.input_hint`).
        quick: a language model draws all words of its texts at once, twice, and does not write them word by word, for
            which it runs once a token.
        samples: inputs in all; by default 64 synthetic ones, or 32 images of 128 x 128 pixels and more for a network
            with BatchNorm, and up to 512 of `calibration`.
        seed: the same seed gives the same probe.
        micro_batch: the most samples that are run at one time.
        memory: the most bytes of activations, and again of second moments, that are held at one time.
        progress: called with (samples done, samples in all); True for a bar, False for none. By default a bar appears
            after two seconds, on a terminal or in a notebook only.

    Raises:
        ProbeError: the forward cannot be run. One without gradients gives no sensitivities, and a `ProbeWarning`.
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
    with shown((lambda _, done, total: progress(done, total)) if callable(progress) else progress) as told:
        if calibration is not None:
            given = calibrating.batches(calibration, hint or hint_of_module(model))
            batch, words = gathered(model, given, samples or REAL_SAMPLES), False
        else:
            batch, words = made_up(
                model,
                input_size=input_size,
                example_inputs=example_inputs,
                hint=hint,
                quick=quick,
                samples=samples,
                seed=seed,
                see=functools.partial(told, "texts"),
            )
        measured = functools.partial(_measured, model, (micro_batch, memory), calibration is None, seed, told)
        try:
            batch, felt = measured(batch)
        except NotFiniteError as error:
            batch, felt = _elsewhere(model, batch, error, micro_batch, calibration is None, measured)
    batch = _by_pixels(model, batch)
    give_back()
    damping = DAMPING if calibration is None else DAMPING_REAL
    moments = Moments(model, batch, micro_batch=micro_batch, memory=memory, damping=damping)
    with stage("usage"):
        used = usage.of(model, batch, micro_batch=micro_batch, real=calibration is not None)
    return Probe(model, felt, moments, batch, micro_batch, felt.rows, used, words)


def made_up(
    model: nn.Module,
    *,
    input_size: Sequence[int] | Mapping[str, Sequence[int]] | None,
    example_inputs: Any,
    hint: InputHint | None,
    quick: bool,
    samples: int | None,
    seed: int,
    see: texts.Seen | None = None,
) -> tuple[Batch, bool]:
    """Synthetic inputs of a model, and whether they are texts that it has written itself; options as of `probe`."""
    with ordinary_arithmetic():
        batch = synthetic(
            model, input_size=input_size, example_inputs=example_inputs, hint=hint, samples=samples, seed=seed
        )
    if example_inputs is not None or input_size is not None:
        return batch, False
    if quick:
        return texts.drafted(model, batch, seed=seed), False
    written = texts.written(model, batch, seed=seed, see=see)
    return written, written is not batch


def _by_pixels(model: nn.Module, batch: Batch) -> Batch:
    """Images stored pixel by pixel, as processors convolve them fastest, where the forward takes them so.

    For passes without gradients only: torch 2.13 may crash in a backward pass over images stored like this (seen with
    a small ResNet of transformers).
    """
    if batch.images is None or device_of(model).type != "cpu":
        return batch
    with torch.no_grad(), untouched(model), batch_statistics(model):
        stored = batch.map(lambda images: images.contiguous(memory_format=torch.channels_last))
        try:
            next(stored.to(model).parts(2))(model)
        except Exception:  # a stranger's forward may see a tensor in another shape, which its memory must allow
            return batch
    return stored


def _measured(
    model: nn.Module, most: tuple[int, int], made: bool, seed: int, told: Progress, batch: Batch
) -> tuple[Batch, Felt]:
    """The sensitivities, with the inputs on which they were measured."""
    tell: SampleProgress | None = functools.partial(told, "probe")
    if made:
        give_back()
        with stage("evidence"):
            batch, tell = _with_evidence(model, batch, most, tell)
            give_back()
    enough, (micro_batch, memory) = _enough(model, batch.samples), most
    with stage("sensitivity"):
        felt = sensitivity(
            model, batch, seed=seed, micro_batch=micro_batch, memory=memory, enough=enough, progress=tell
        )
    return batch, felt


def _enough(model: nn.Module, samples: int) -> int:
    """On how many samples sensitivities are measured.

    Of a recurrent network on all: a few sequences have by far the largest gradients, so that those of a quarter say
    little, and they are cheap (a speaker encoder at 3 bits then has a cosine of 0.83 with the dense one, else of 0.81,
    the mean of three seeds).
    """
    steps = any(recurrent.matrices(module) for module in model.modules())
    return samples if steps else max(FELT, samples // 4)


def _elsewhere(
    model: nn.Module,
    batch: Batch,
    error: NotFiniteError,
    micro_batch: int,
    made: bool,
    measured: Callable[[Batch], tuple[Batch, Felt]],
) -> tuple[Batch, Felt]:
    """The result of `measured` on other inputs, where those given lead to NaN or infinity; warns where they do.

    Raises:
        ProbeError: no other inputs give finite numbers either.
    """
    found = finite.trouble(model, batch, micro_batch=micro_batch)
    where = found.where or f"the gradient of {error.name!r}"
    for name, other in finite.others(batch, found.good if found.where else error.good, synthetic=made):
        try:
            result = measured(other)
        except NotFiniteError:
            continue
        warn(f"{where} is NaN or infinite on inputs of the probe, which goes on with {name}", ProbeWarning)
        return result
    raise ProbeError(
        f"{where} is NaN or infinite on the probe's inputs",
        got=type(model).__name__,
        remedy="Pass inputs that the model is made for: calibration= or example_inputs=, or probe=False."
        if made
        else "Leave out of calibration= what the model itself answers with NaN, or pass probe=False.",
    )


def _with_evidence(
    model: nn.Module, batch: Batch, most: tuple[int, int], progress: SampleProgress | None
) -> tuple[Batch, SampleProgress | None]:
    """The batch with images that show evidence of a class, and a progress callback for the passes that are left."""
    if not evidence.applies(model, batch):
        return batch, progress
    before, passes = evidence.STEPS * batch.samples, (evidence.STEPS + 1) * batch.samples

    def see(done: int) -> None:
        if progress is not None:
            progress(done, passes)

    try:
        with differentiable(model):
            size = at_once(model, batch.to(model), most)
        batch = evidence.decided(model, batch, micro_batch=size, see=lambda done: see(evidence.STEPS * done))
    except OpqError:
        raise
    except Exception as error:  # a network may not be differentiable in its inputs: the noise is used as it is
        fact = f"{type(error).__name__}: {str(error).splitlines()[:1]}"
        warn(
            f"the images of the probe stay plain noise: {type(model).__name__} has no gradient for them, {fact}",
            ProbeWarning,
        )
        return batch, progress
    return batch, lambda done, total: see(before + done)
