"""The probe against its absence: its file is kept only where the outputs are not further off than without it.

What a probe tells rests on inputs that were made up. Where they are nothing like those that a network is used on, or
something is divided by nearly nothing, its file can be worse than one from the weights alone. So both are compared on
a few other inputs, in inference mode, as they will be used. Without the probe weights are taken on plain grids there:
they cost next to nothing to make, and a trellis would save them about as much as what a few inputs leave to chance.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch.func import functional_call

from opq.allocation.stats import TensorStats
from opq.base.progress import silent
from opq.base.stages import stage
from opq.compression.coders import DataFreeCoder, PlainCoder
from opq.compression.differences import Differences
from opq.compression.fit import Draft, Fit
from opq.compression.options import Options
from opq.compression.problem import Problem
from opq.models.batch import Batch
from opq.models.observe import untouched
from opq.models.outputs import counted, weighing
from opq.plan import as_stored
from opq.probing.renorm import known
from opq.probing.sensitivity import made_up
from opq.probing.units import error_of
from opq.sources.base import Source

SAMPLES = 8
"""Inputs that the outputs are compared on. A choice: a probe that fails is worse by factors on every one."""
OTHER = 1
"""Added to the seed, so that these are not the probe's inputs."""


def harmful(coder: DataFreeCoder, made: Draft, plain: Problem[TensorStats]) -> bool:
    """Whether the outputs of a file made with the probe are further off than those without it.

    False where no output can be compared, or where no file without the probe keeps within the budget.

    Args:
        plain: the problem without what the probe tells.
    """
    with stage("compare"):
        try:
            with_probe, without = _errors(coder, made, dataclasses.replace(plain, trellised={}))
        except Exception:  # a stranger's forward may fail in any way on inputs that it has not seen
            return False
        return with_probe > without


def _errors(coder: DataFreeCoder, made: Draft, plain: Problem[TensorStats]) -> tuple[float, float]:
    """Errors of the outputs with the probe and without it; NaN where nothing can be compared."""
    source, rounded = coder.source, PlainCoder(coder.source)
    plan = as_stored(Fit(source, plain, rounded, silent).decide())
    codes = dict(rounded.codes(plan.compressed))
    outputs = functools.partial(_outputs, coder, _inputs(coder, plain.options), plain.options.seed)
    before, after = outputs({}), outputs({**coder.state(made.plan, made.codes), **made.changed})
    return error_of(before, after), error_of(before, outputs(coder.state(plan, codes)))


def _inputs(coder: DataFreeCoder, options: Options) -> Batch:
    """Other synthetic inputs than the probe's; of real ones there are no others."""
    model = coder.probe.model
    if coder.calibrated:
        return next(coder.probe.batch.to(model).parts(SAMPLES))
    batch, _ = made_up(
        model,
        input_size=options.input_size,
        example_inputs=options.example_inputs,
        hint=coder.source.input_hint,
        quick=options.probe == "quick",
        samples=SAMPLES,
        seed=options.seed + OTHER,
    )
    return batch.to(model)


@torch.no_grad()
def _outputs(coder: DataFreeCoder, batch: Batch, seed: int, state: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the network gives with these tensors, random numbers the same every time."""
    model = coder.probe.model
    with untouched(model):
        torch.manual_seed(seed)
        output = functional_call(model, known(model, _whole(coder.source, state)), batch.args, dict(batch.kwargs))
        return [counted(o, batch.mask).clone() for o in weighing(output)]


def _whole(source: Source, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Weights, where what is compressed is their differences to a base."""
    if not isinstance(source, Differences):
        return state
    base = source.base
    return {n: base.read(n).double().add(t).to(t.dtype) if base.fits(n, t.shape) else t for n, t in state.items()}
