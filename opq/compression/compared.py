"""The probe against its absence: its file is kept only where the outputs are not further off than without it.

What a probe tells rests on inputs that were made up. Where they are nothing like those that a network is used on, or
something is divided by nearly nothing, its file can be worse than one from the weights alone. So both are compared on
a few other inputs, in inference mode, as they will be used. Without the probe weights are taken on plain grids there:
they cost next to nothing to make. Only where these do better their file is made in earnest, and compared again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch.func import functional_call

from opq.allocation.stats import TensorStats
from opq.base.arrays import narrow
from opq.base.pool import give_back
from opq.base.progress import silent
from opq.base.stages import stage
from opq.compression.coders import CodesByName, DataFreeCoder, PlainCoder
from opq.compression.differences import Differences
from opq.compression.fit import Draft, Fit
from opq.compression.least_rates import NEVER
from opq.compression.options import Options
from opq.compression.problem import Problem
from opq.errors import InfeasibleError
from opq.models.batch import Batch
from opq.models.observe import untouched
from opq.models.outputs import counted, weighing
from opq.plan import Plan, as_stored
from opq.probing.renorm import known
from opq.probing.sensitivity import made_up
from opq.probing.units import error_of
from opq.sources.base import Source

SAMPLES = 8
"""Inputs that the outputs are compared on, of language models texts whose words are drawn at once. A choice: a probe
that fails is worse by factors on every one."""
OTHER = 1
"""Added to the seed, so that these are not the probe's inputs."""


def without_probe(
    coder: DataFreeCoder, made: Draft, plain: Problem[TensorStats], rounded: PlainCoder, make: Callable[[], Draft]
) -> Draft | None:
    """The file without the probe where its outputs are nearer; None where the file made with the probe is to be kept.

    It is kept where no output can be compared, and where no file without the probe keeps within the budget.

    Args:
        plain: the problem without what the probe tells.
        rounded: what makes codes of its plans.
        make: makes the file of this problem; it is asked for only where plain grids do better than the probe.
    """
    with stage("compare"):
        try:
            judge = _Judge(coder, plain.options)
            with_probe = judge.error(lambda: {**coder.state(made.plan, made.codes), **made.changed})
            without = judge.error(lambda: rounded.state(*_rounded(rounded, plain)))
        except Exception:  # a stranger's forward may fail in any way on inputs that it has not seen
            return None
    if not with_probe > without:
        return None
    try:
        other = make()
    except InfeasibleError:
        return None
    with stage("compare"):
        return other if judge.error(lambda: rounded.state(other.plan, other.codes)) < with_probe else None


def _rounded(rounded: PlainCoder, plain: Problem[TensorStats]) -> tuple[Plan, CodesByName]:
    """A plan and its codes on plain grids, without the probe; its size is predicted, not measured."""
    plan = as_stored(Fit(rounded.source, dataclasses.replace(plain, trellised=NEVER), rounded, silent).decide())
    return plan, {name: narrow(codes) for name, codes in rounded.codes(plan.compressed)}


class _Judge:
    """The errors of the network's outputs on some inputs."""

    def __init__(self, coder: DataFreeCoder, options: Options):
        self._coder, self._batch, self._seed = coder, _inputs(coder, options), options.seed
        self._before = self._outputs(dict)

    def error(self, state: Callable[[], Mapping[str, torch.Tensor]]) -> float:
        """Of the network with the tensors that are made then, and not held any longer than they are needed; NaN where
        nothing can be compared."""
        return error_of(self._before, self._outputs(state))

    @torch.no_grad()
    def _outputs(self, state: Callable[[], Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
        """What the network gives with these tensors, random numbers the same every time."""
        model, batch = self._coder.probe.model, self._batch
        own = known(model, _whole(self._coder.source, state()))
        with untouched(model, replaced=own):
            torch.manual_seed(self._seed)
            output = functional_call(model, own, batch.args, dict(batch.kwargs))
            outputs = [counted(o, batch.mask).clone() for o in weighing(output)]
        give_back()
        return outputs


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
        quick=True,
        samples=SAMPLES,
        seed=options.seed + OTHER,
    )
    return batch.to(model)


def _whole(source: Source, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Weights, where what is compressed is their differences to a base."""
    if not isinstance(source, Differences):
        return state
    base = source.base
    return {n: base.read(n).double().add(t).to(t.dtype) if base.fits(n, t.shape) else t for n, t in state.items()}
