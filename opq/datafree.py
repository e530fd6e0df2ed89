"""Accuracy without data: what the probe adds to a compression (docs/datafree.md says why it works).

Sensitivities `a_i^alpha` weigh the allocation; error feedback by the input moments `S_i` replaces plain rounding;
BatchNorm statistics are re-normalised behind it. The user's model comes back as it was.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from opq.decide import Problem
from opq.errors import MissingExtraError, ProbeError, ProbeWarning, SourceError
from opq.feedback import feedback
from opq.fit import Fit
from opq.options import ALPHAS, Options, silent
from opq.plan import Plan, TensorPlan
from opq.probe import Probe, probe
from opq.quantize import dequantize, quantize
from opq.sources import Source

PROBED = ("module", "timm", "torchvision", "demo", "hf")
"""Origins whose model is probed unless the user says otherwise."""


def probe_source(source: Source, options: Options) -> Probe | None:
    """The probe of the source's model; None where it is not asked for or cannot be had.

    A model that cannot be probed is compressed all the same, with a `ProbeWarning` that says what to pass; where the
    user asked for the probe, `probe=True`, the `ProbeError` is raised.
    """
    wanted = options.probe
    if wanted is None:
        wanted = source.origin in PROBED or options.calibration is not None
    if not wanted:
        return None
    try:
        model = source.build()
        return probe(
            model,
            input_size=options.input_size,
            example_inputs=options.example_inputs,
            calibration=options.calibration,
            hint=source.input_hint,
            seed=options.seed,
            progress=lambda done, total: options.progress("probe", done, total),
        )
    except (ProbeError, SourceError, MissingExtraError) as error:  # the weights are read already: go on without
        if options.probe or options.calibration is not None:
            raise
        warnings.warn(
            f"{source.label} is compressed with all sensitivities 1, without feedback and re-normalisation: {error} "
            "Silence this with probe=False.",
            ProbeWarning,
            stacklevel=4,
        )
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class DataFreeCoder:
    """Codes with error feedback, and re-normalised BatchNorm statistics; each can be left out, for comparison."""

    source: Source
    probe: Probe
    feeds_back: bool = True
    renormalises: bool = True

    def codes(self, plan: TensorPlan) -> npt.NDArray[np.int16]:
        """Codes of one tensor: by feedback where its layer's input moments are known, else by plain rounding."""
        w = self.source.tensor(plan.name)
        moment = self.probe.moments.get(plan.name) if self.feeds_back else None
        return (quantize(w, plan) if moment is None else feedback(w, plan, moment)).numpy()

    def kept(self, plan: Plan, codes: Mapping[str, npt.NDArray[np.int16]]) -> dict[str, torch.Tensor]:
        """Running means and variances for the quantized network."""
        if not (self.renormalises and self.source.batchnorms):
            return {}
        return self.probe.renormalised(self.state(plan, codes))

    def state(self, plan: Plan, codes: Mapping[str, npt.NDArray[np.int16]]) -> dict[str, torch.Tensor]:
        """The compressed tensors as they will be read back, under every name they have."""
        state = {n: dequantize(torch.from_numpy(q), plan[n], self.source.by_name[n].dtype) for n, q in codes.items()}
        return state | {t.name: state[t.like] for t in plan if t.like in state}


def weighed(source: Source, problem: Problem, probe: Probe, given: Mapping[str, float]) -> Problem:
    """The problem with the probe's sensitivities `a_i^alpha`, and those that the user gave.

    Where the user names no `alpha`: the one in `ALPHAS` whose plan moves the outputs least, for a network with
    BatchNorm; 1 for others (docs/datafree.md has the figures of both rules).
    """
    alphas = _alphas(source, problem.options) if len(given) < len(problem.stats) else (1.0,)
    candidates = [
        problem.replace(sensitivities=probe.sensitivities(problem.stats, alpha=alpha) | dict(given)) for alpha in alphas
    ]
    if len(candidates) == 1:
        return candidates[0]
    coder = DataFreeCoder(source, probe)
    return min(candidates, key=lambda candidate: _predicted_error(coder, candidate))


def _alphas(source: Source, options: Options) -> tuple[float, ...]:
    if options.alpha is not None:
        return (options.alpha,)
    return ALPHAS if source.batchnorms and options.budget is not None else (1.0,)


def _predicted_error(coder: DataFreeCoder, problem: Problem) -> float:
    """Relative error of the outputs on synthetic inputs, for the plan that the problem has at its budget."""
    plan = Fit(coder.source, problem, coder, silent).decide()
    return coder.probe.output_error(coder.state(plan, {t.name: coder.codes(t) for t in plan.compressed}))
