"""From planned tensors to codes, with or without the probe (docs/datafree.md says why it works without data).

With the probe, sensitivities `a_i^alpha` weight the allocation, error feedback by the input moments `S_i` replaces
plain rounding, and BatchNorm statistics are then re-normalised. The user's model is left unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from opq.base.arrays import Codes, Narrow
from opq.base.calls import warn
from opq.base.pool import torch_threads
from opq.base.stages import stage
from opq.base.tables import some
from opq.compression.by_outputs import columns_of, of_rows
from opq.compression.in_file import decoded, layout_of
from opq.compression.method import DataFree
from opq.compression.options import Options
from opq.errors import MissingExtraError, ProbeError, ProbeWarning, SourceError
from opq.file.basis import NOTES, REAL, SYNTHETIC, noted
from opq.plan import Plan, TensorPlan
from opq.probing.sensitivity import Probe, probe, weights
from opq.quantizing.feedback import sweep
from opq.quantizing.grid import quantize
from opq.quantizing.moment import Factors
from opq.sources.base import Source

CodesByName = dict[str, Narrow]

LIVE = ("module", "timm", "torchvision", "demo", "hf")
"""Origins of sources that have a model: it is probed by default."""


WHOLE = 1 << 32
"""Bytes of the largest weights in a folder whose model is built to be probed where nobody asks for it. A choice: larger
ones are for a folder as output, for which one block of the model is in memory at a time."""


def wants_probe(source: Source, options: Options) -> bool:
    """Whether the source's model is probed: as the option says, else if there is a model or inputs are given."""
    if not isinstance(options.how, DataFree):
        return False
    if options.probe is not None:
        return bool(options.probe)
    if source.origin == "folder" and source.buildable and source.bytes <= WHOLE:
        return True
    return source.origin in LIVE or options.calibration is not None


NAMED = ("timm", "torchvision", "hf")
"""Origins for which the user has given a name that means the model, not only its weights."""


def basis_of(source: Source, options: Options, note: str, *, coded: bool = True) -> str:
    """What a compression is based on, in words for the report.

    Args:
        note: what its file says.
        coded: whether codes are made, not only a plan.
    """
    if note and not coded:
        return SYNTHETIC if options.calibration is None else REAL
    if note:
        return NOTES[note]
    if options.probe is False:
        why = "no probe was asked for"
    elif not source.buildable:
        why = source.no_model
    else:
        large = f"a model of more than {WHOLE >> 30} GiB in files is probed by probe=True, or with a folder as output"
        why = large if source.origin == "folder" and source.bytes > WHOLE else "the model could not be probed"
    return f"the weights alone: {why}"


@stage("probe")
def probe_source(source: Source, options: Options) -> Probe | None:
    """The probe of the source's model; None if it is not wanted or not possible.

    A module that cannot be probed is compressed without it, with a `ProbeWarning` that says what to pass. If the user
    has asked for the probe or named the model (`hf:`, `timm:`, `torchvision:`), it is an error instead, because a
    network compressed by its weights alone is much worse.
    """
    if not wants_probe(source, options):
        return None
    try:
        model = source.build()
        if source.origin == "folder":
            _check_names(source, model, asked=bool(options.probe) or options.calibration is not None)
        return probe(
            model,
            input_size=options.input_size,
            example_inputs=options.example_inputs,
            calibration=options.calibration,
            hint=source.input_hint,
            quick=options.probe == "quick",
            seed=options.seed,
            progress=lambda done, total: options.progress("probe", done, total),
        )
    except (ProbeError, SourceError, MissingExtraError) as error:  # the weights could be read: continue without
        if options.probe or options.calibration is not None:
            raise
        if source.origin in NAMED:
            raise type(error)(
                f"{source.label} cannot be probed: {error.fact}",
                got=error.got,
                wanted=error.wanted,
                remedy=f"{error.remedy} Or compress the weights alone, much less accurate: probe=False (--no-probe).",
            ) from error
        warn(
            f"{source.label} is compressed by its weights alone, without feedback and re-normalisation: {error} "
            "Silence this with probe=False.",
            ProbeWarning,
        )
        return None


def _check_names(source: Source, model: nn.Module, *, asked: bool) -> None:
    """Looks whether matrices of a checkpoint have other names in the model, which may even fuse some.

    Where the user has asked for the probe they are named in a `ProbeWarning`.

    Raises:
        ProbeError: there are some, and the user has not.
    """
    names = model.state_dict().keys()
    other = [spec.name for spec in source.specs if len(spec.shape) > 1 and spec.name not in names]
    fact = "tensors of the files have other names in the model"
    remedy = f"Name it hf:{source.folder or source.label} to compress the tensors as the model names them."
    if other and not asked:
        raise ProbeError(fact, got=some(other), remedy=remedy)
    if other:
        warn(f"{fact}, so that the probe tells nothing of them: {some(other)}. {remedy}", ProbeWarning)


@dataclasses.dataclass(frozen=True, eq=False)
class DataFreeCoder:
    """Codes with error feedback, and re-normalised BatchNorm statistics; each can be turned off, for comparison."""

    source: Source
    probe: Probe
    feeds_back: bool = True
    renormalises: bool = True
    calibrated: bool = False
    """Whether the probe saw real inputs."""
    known: Mapping[str, tuple[TensorPlan, Codes]] = dataclasses.field(default_factory=dict)
    """Codes that were made before, by tensor, with their plan; they are used again for an equal plan."""

    @property
    def note(self) -> str:
        """What the file says that it rests on."""
        return noted(
            calibrated=self.calibrated,
            renormalised=self.renormalises and bool(self.source.batchnorms),
            felt=bool(self.probe.sensitivity),
        )

    def sensitivities(self, names: Iterable[str], *, alpha: float) -> dict[str, float]:
        """`a_i^alpha` of the tensors that are coded, whose rows may be scaled."""
        return weights(of_rows(self.source, self.probe.sensitivity), names, alpha)

    def codes(self, tensors: Sequence[TensorPlan]) -> Iterator[tuple[str, Codes]]:
        """Codes of tensors: by feedback if the layer's input moments are known, otherwise by plain rounding."""
        if all(self.known.get(t.name, (None,))[0] == t for t in tensors):
            return ((t.name, self.known[t.name][1]) for t in tensors)
        return ((name, found[0]) for name, found in self.alternatives([[t] for t in tensors]))

    def alternatives(self, tensors: Iterable[Sequence[TensorPlan]]) -> Iterator[tuple[str, list[Codes]]]:
        """Name and codes of tensors, each on the grids of several plans; in parallel on all cores.

        They come in the order of the passes that give the moments, whatever the order of the arguments.
        """
        by_name = {plans[0].name: plans for plans in tensors}
        moments = self.probe.moments
        fed = [name for name in by_name if self.feeds_back and name in moments]

        def coded(item: tuple[str, Factors | None]) -> tuple[str, list[Codes]]:
            name, moment = item
            w, plans = self.source.tensor(name), by_name[name]
            if moment is None:
                return name, [quantize(w, plan).numpy() for plan in plans]
            layout = layout_of(self.source, name, moment.layout)
            return name, [q.numpy() for q in sweep(w, plans, moment, layout=layout, f=columns_of(self.source, name))]

        with torch_threads() as threads:
            yield from threads.ordered(coded, ((name, None) for name in by_name if name not in set(fed)))
            for group in moments.groups(fed):
                yield from threads.ordered(coded, moments.of(group).items())

    def kept(self, plan: Plan, codes: CodesByName) -> dict[str, torch.Tensor]:
        """Running means and variances for the quantized network. No codes are expected to be asked for after this."""
        self.probe.moments.release()
        if not (self.renormalises and self.source.batchnorms):
            return {}
        return self.probe.renormalised(self.state(plan, codes))

    def state(self, plan: Plan, codes: Mapping[str, Narrow]) -> dict[str, torch.Tensor]:
        """The compressed tensors as they will be decoded, under all their names."""
        return _state(self.source, plan, codes)


def _state(source: Source, plan: Plan, codes: Mapping[str, Narrow]) -> dict[str, torch.Tensor]:
    state = {n: decoded(source, plan[n], q, source.by_name[n].dtype) for n, q in codes.items()}
    return state | {t.name: state[t.like] for t in plan if t.like in state}


class Coder(Protocol):
    """How planned tensors become codes, and which other tensors of the model change as a consequence."""

    @property
    def note(self) -> str:
        """What the file says that its codes rest on; nothing for the weights alone."""

    def codes(self, tensors: Sequence[TensorPlan]) -> Iterator[tuple[str, Codes]]:
        """Name and integer codes of compressed tensors, in any order."""

    def kept(self, plan: Plan, codes: CodesByName) -> Mapping[str, torch.Tensor]:
        """New values of kept tensors, by name: re-normalised statistics, corrected biases."""


@dataclasses.dataclass(frozen=True, eq=False)
class PlainCoder:
    """Every weight is rounded by itself, and no other tensor changes."""

    source: Source
    note: str = ""

    def codes(self, tensors: Sequence[TensorPlan]) -> Iterator[tuple[str, Codes]]:
        weights = ((tensor, self.source.tensor(tensor.name)) for tensor in tensors)
        with torch_threads() as threads:
            yield from threads.ordered(lambda item: (item[0].name, quantize(item[1], item[0]).numpy()), weights)

    def kept(self, plan: Plan, codes: CodesByName) -> Mapping[str, torch.Tensor]:
        return {}

    def state(self, plan: Plan, codes: Mapping[str, Narrow]) -> dict[str, torch.Tensor]:
        """The compressed tensors as they will be decoded, under all their names."""
        return _state(self.source, plan, codes)
