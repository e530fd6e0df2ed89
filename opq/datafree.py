"""Accuracy without data: what the probe adds to a compression (docs/datafree.md says why it works).

Sensitivities `a_i^alpha` weigh the allocation; error feedback by the input moments `S_i` replaces plain rounding;
BatchNorm statistics are re-normalised behind it. The user's model comes back as it was.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from opq import index
from opq.decide import Problem
from opq.errors import InfeasibleError, MissingExtraError, ProbeError, ProbeWarning, SourceError
from opq.feedback import sweep
from opq.fit import Array, Codes, Fit
from opq.moments import Moment
from opq.options import ALPHAS, Options, silent
from opq.plan import Plan, TensorPlan
from opq.probe import Probe, probe
from opq.quantize import dequantize, quantize
from opq.sources import Source
from opq.stages import stage
from opq.threads import torch_threads

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
    made: dict[str, tuple[TensorPlan, Array]] = dataclasses.field(default_factory=dict)
    """Codes known already, by tensor: those of the plan that `weighed` chose."""

    def codes(self, tensors: Sequence[TensorPlan]) -> Iterator[Array]:
        """Codes of tensors: by feedback where a layer's input moments are known, else by plain rounding."""
        if all(self.made.get(t.name, (None,))[0] == t for t in tensors):
            return (self.made[t.name][1] for t in tensors)
        return (found[0] for found in self.alternatives([[t] for t in tensors]))

    def alternatives(self, tensors: Iterable[Sequence[TensorPlan]]) -> Iterator[list[Array]]:
        """Codes of tensors, each on the grids of several plans; tensors side by side on all cores."""

        def coded(item: tuple[Sequence[TensorPlan], Moment | None]) -> list[Array]:
            plans, moment = item
            w = self.source.tensor(plans[0].name)
            found = [quantize(w, plan) for plan in plans] if moment is None else sweep(w, plans, moment)
            return [q.numpy() for q in found]

        def moment(name: str) -> Moment | None:
            return self.probe.moments.get(name) if self.feeds_back else None

        with torch_threads() as threads:
            yield from threads.ordered(coded, ((plans, moment(plans[0].name)) for plans in tensors))

    def kept(self, plan: Plan, codes: Codes) -> dict[str, torch.Tensor]:
        """Running means and variances for the quantized network."""
        if not (self.renormalises and self.source.batchnorms):
            return {}
        return self.probe.renormalised(self.state(plan, codes))

    def state(self, plan: Plan, codes: Codes) -> dict[str, torch.Tensor]:
        """The compressed tensors as they will be read back, under every name they have."""
        planned = {t.name: t for t in plan}
        state = {n: dequantize(torch.from_numpy(q), planned[n], self.source.by_name[n].dtype) for n, q in codes.items()}
        return state | {t.name: state[t.like] for t in plan if t.like in state}


def weighed(coder: DataFreeCoder, problem: Problem, given: Mapping[str, float]) -> Problem:
    """The problem with the probe's sensitivities `a_i^alpha`, and those that the user gave.

    Where the user names no `alpha`: the one in `ALPHAS` whose plan moves the outputs least, for a network with
    BatchNorm; 1 for others (docs/datafree.md has the figures of both rules). The coder remembers that plan's codes.
    """
    named = len(given) == len(problem.stats)
    alphas = (1.0,) if named else _alphas(coder.source, problem.options)
    candidates = [
        problem.replace(sensitivities=coder.probe.sensitivities(problem.stats, alpha=alpha) | dict(given))
        for alpha in alphas
    ]
    return candidates[0] if len(candidates) == 1 else _best(coder, candidates)


def _alphas(source: Source, options: Options) -> tuple[float, ...]:
    if options.alpha is not None:
        return (options.alpha,)
    return ALPHAS if source.batchnorms and options.budget is not None else (1.0,)


def _best(coder: DataFreeCoder, candidates: Sequence[Problem]) -> Problem:
    """The problem whose plan at its budget moves the outputs least on synthetic inputs."""
    plain = [dataclasses.replace(candidate, trellised=frozenset()) for candidate in candidates]  # as good to choose by
    try:
        with stage("solve"):
            plans = [index.rounded(Fit(coder.source, candidate, coder, silent).decide()) for candidate in plain]
    except InfeasibleError:  # by prediction; at the smallest file all are alike, and `Fit.run` measures it
        return candidates[0]
    together = list(zip(*(plan.compressed for plan in plans), strict=True))
    codes: list[Codes] = [{} for _ in plans]
    with stage("quantize"):
        for tensors, found in zip(together, coder.alternatives(together), strict=True):
            for of_plan, q in zip(codes, found, strict=True):
                of_plan[tensors[0].name] = q
    with stage("compare"):
        errors = [coder.probe.output_error(coder.state(plan, q)) for plan, q in zip(plans, codes, strict=True)]
    best = errors.index(min(errors))
    coder.made.update({t.name: (t, codes[best][t.name]) for t in plans[best].compressed})
    return candidates[best]
