"""Accuracy without data: what the probe adds to a compression (docs/datafree.md says why it works).

Sensitivities `a_i` weigh the allocation; error feedback by the input moments `S_i` replaces plain rounding; BatchNorm
statistics are re-normalised behind it. The user's model comes back as it was.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from opq.errors import ProbeError, ProbeWarning
from opq.feedback import feedback
from opq.options import Options
from opq.plan import Plan, TensorPlan
from opq.probe import Probe, probe
from opq.quantize import dequantize, quantize
from opq.renorm import renormalise
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
    except ProbeError as error:
        if options.probe:
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
    """Codes with error feedback, and re-normalised BatchNorm statistics."""

    source: Source
    probe: Probe

    def codes(self, plan: TensorPlan) -> npt.NDArray[np.int16]:
        """Codes of one tensor: by feedback where its layer's input moments are known, else by plain rounding."""
        w = self.source.tensor(plan.name)
        moment = self.probe.moments.get(plan.name)
        return (quantize(w, plan) if moment is None else feedback(w, plan, moment)).numpy()

    def kept(self, plan: Plan, codes: Mapping[str, npt.NDArray[np.int16]]) -> dict[str, torch.Tensor]:
        """Running means and variances for the quantized network."""
        if not self.source.batchnorms:
            return {}
        state = {n: dequantize(torch.from_numpy(q), plan[n], self.source.by_name[n].dtype) for n, q in codes.items()}
        state |= {t.name: state[t.like] for t in plan if t.like in state}
        return renormalise(self.source.build(), state, self.probe.batch, micro_batch=self.probe.micro_batch)
