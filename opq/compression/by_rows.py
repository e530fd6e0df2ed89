"""Steps by row: which tensors have them, and a source that gives these tensors with their rows divided.

One step for all rows has the smallest squared error, and where every error counts alike nothing else is needed. A probe
tells how much errors in each row count (`Probe.rows`), and rows that count for more have smaller steps; not so where
BatchNorm is, whose statistics make up for most of it. In recurrent layers rows are scaled to the same root mean square,
with a probe or without: gates whose weights are small would get errors as large as they are, in every step.
All that decides on steps and codes works on the scaled weights. docs/datafree.md has figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch

from opq.allocation.stats import TensorStats
from opq.base.arrays import Codes, Floats, Narrow
from opq.base.pool import torch_threads
from opq.base.stages import stage
from opq.compression.differences import Differences
from opq.compression.prior import is_recurrent, is_table
from opq.compression.roles import Role
from opq.file.stored import Grid, GridRows, Trellis, TrellisRows
from opq.plan import Plan, TensorPlan
from opq.probing.sensitivity import Probe
from opq.quantizing import rows
from opq.quantizing.grid import dequantize
from opq.sources.base import Source

RECURRENT = 0.05
"""Bits per weight, see `rows.spread`, from which on the rows of recurrent layers have steps of their own. Measured: the
matrices of a speaker encoder have 0.09 to 1.27. With such steps in all of MiniLM, from the weights alone, its rank
correlation falls from 96.8 to 96.1 at 3 bits: elsewhere small rows need not be as precise as others."""
POWER = -0.25
"""With a probe rows are scaled by this power of their sensitivities: half the exponent that is the best at high rates
where these are known exactly."""
FAINT = 16
"""Sensitivities of rows are raised to the median one that is not 0 divided by this: a row without effect on synthetic
inputs may have one on others. A choice."""
COLUMNS, COLUMNS_FELT = 16, 64
"""Weights of the shortest row that has a step of its own, which takes two to four bits: in a recurrent layer; by
sensitivities, which are worth less. Measured on 76 tiny networks whose rows have 32 weights, at 6 bits: by
sensitivities their errors grow by 4 %."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowScaled(Source):
    """Reads some tensors with each row divided by its scale, others as they are."""

    whole: Source
    """The network itself."""
    exponents: Mapping[str, Codes]
    """Of the tensors with steps by row, see `opq.quantizing.rows`."""

    importance: Mapping[str, Floats]
    """How much an error in each row of these tensors counts, up to a factor for the tensor."""

    @classmethod
    def of(cls, source: Source, roles: Iterable[Role], probe: Probe | None = None) -> Source:
        """The source, its rows scaled where that pays; itself where no tensor has steps by row."""
        names = [role.name for role in roles if role.action == "compress" and _may(role, probe)]
        felt = {} if probe is None else probe.rows
        with stage("rows"):
            if isinstance(source, Differences):
                return source
            importance = {}
            if felt and not source.batchnorms:
                importance = {
                    n: felt[n] for n in names if n in felt and _counts_by_row(source, n) and (felt[n] > 0).any()
                }
            importance = {name: _limited(a) for name, a in importance.items()}
            found = {name: rows.in_quarters(a, POWER) for name, a in importance.items()}
            uneven = _uneven(source, [n for n in names if n not in found])
            importance |= {name: rows.factors(e) ** -2.0 for name, e in uneven.items()}
            found |= uneven
        if not found:
            return source

        def read(name: str) -> torch.Tensor:
            tensor = source.tensor(name)
            return rows.divided(tensor, found[name]) if name in found else tensor

        return cls.over(source, read=read, whole=source, exponents=found, importance=importance)


def _limited(a: Floats) -> Floats:
    """The sensitivities of rows, each at most `FAINT` times the median one that is not 0, and at least a part of it."""
    middle = np.median(a[a > 0])
    limited: Floats = np.clip(a, middle / FAINT, middle * FAINT)
    return limited


def _uneven(source: Source, names: Iterable[str]) -> dict[str, Codes]:
    """The exponents of the matrices of recurrent layers whose rows differ in scale."""
    found = {}
    for name in filter(is_recurrent, names):
        tensor = source.tensor(name)
        if bool(torch.isfinite(tensor.float()).all()) and rows.spread(tensor) >= RECURRENT:
            found[name] = rows.exponents(tensor)
    return found


def _counts_by_row(source: Source, name: str) -> bool:
    """Whether a tensor has steps by the sensitivities of its rows, where a probe tells these."""
    spec = source.by_name[name]
    return not is_recurrent(name) and spec.size >= COLUMNS_FELT * spec.shape[0]


def _may(role: Role, probe: Probe | None) -> bool:
    """Whether a tensor's first axis are outputs, each with enough weights to have a step of its own."""
    shape = role.spec.shape
    if probe is not None and probe.is_crosswise(role.name):
        return False
    return len(shape) > 1 and role.spec.size >= COLUMNS * shape[0] and not is_table(role.name, shape)


def restated(source: Source, stats: Mapping[str, TensorStats], *, but: Collection[str] = ()) -> dict[str, TensorStats]:
    """Statistics of a source's tensors, from those of the tensors whose rows are not scaled.

    Args:
        but: tensors of which `stats` has those of the scaled rows already.
    """
    if not isinstance(source, RowScaled):
        return dict(stats)
    with torch_threads() as threads:
        names = [name for name in source.exponents if name not in but]
        every = threads.ordered(lambda name: TensorStats.of(source.tensor(name), name=name), names)
        return dict(stats) | dict(zip(names, every, strict=True))


def alike(one: Source, other: Source, names: Iterable[str]) -> set[str]:
    """The tensors whose rows are scaled in the same way in both sources of a network, or in neither."""
    mine, theirs = (source.exponents if isinstance(source, RowScaled) else {} for source in (one, other))
    return {n for n in names if (n in mine) == (n in theirs) and (n not in mine or np.array_equal(mine[n], theirs[n]))}


def of_rows(source: Source, sensitivities: Mapping[str, float]) -> dict[str, float]:
    """Sensitivities of the scaled weights from those of the weights, which are means over all rows.

    An error in a scaled row is `r_i` times as large in the weights, if `r_i` is its scale, and counts `r_i^2` times as
    much as there.
    """
    if not isinstance(source, RowScaled):
        return dict(sensitivities)
    return {name: a * _counts(source, name) for name, a in sensitivities.items()}


def _counts(source: RowScaled, name: str) -> float:
    """How much an error in the scaled weights counts beside one in the weights."""
    if name not in source.exponents:
        return 1.0
    a, r = source.importance[name], rows.factors(source.exponents[name])
    return float(np.mean(a * r**2) / np.mean(a))


def decoded(source: Source, plan: TensorPlan, codes: Narrow, dtype: torch.dtype) -> torch.Tensor:
    """The weights of codes as a file of this source gives them."""
    q = torch.from_numpy(codes)
    if not isinstance(source, RowScaled) or plan.name not in source.exponents:
        return dequantize(q, plan, dtype)
    return rows.scaled(q, rows.steps(plan.step, source.exponents[plan.name]), dtype)


def stored(source: Source, plan: TensorPlan, codes: Codes) -> Grid:
    """What a file of this source holds of a compressed tensor."""
    if not isinstance(source, RowScaled) or plan.name not in source.exponents:
        return (Trellis if plan.on_trellis else Grid)(plan.name, codes)
    return (TrellisRows if plan.on_trellis else GridRows)(plan.name, codes, source.exponents[plan.name])


def told(source: Source, plan: Plan) -> Plan:
    """The plan of the file: that of the scaled weights, saying which tensors have steps by row."""
    if not isinstance(source, RowScaled):
        return plan
    by_row = source.exponents
    return plan.replace(
        tensors=tuple(
            dataclasses.replace(t, codebook=f"{t.codebook}-rows") if t.name in by_row else t for t in plan.tensors
        )
    )


def rebuilt(source: Source, plan: Plan, exponents: Mapping[str, Codes]) -> tuple[Source, Plan]:
    """The source and the plan that a file was made of, from the network and the file's own plan and exponents.

    It is enough to store the codes again: no scaled weights can be read from it.
    """
    if not exponents:
        return source, plan
    plain = (dataclasses.replace(t, codebook=t.codebook.removesuffix("-rows")) for t in plan)
    scaled = RowScaled.over(source, whole=source, exponents=exponents, importance={})
    return scaled, plan.replace(tensors=tuple(plain))


def of_scaled(source: Source, plan: TensorPlan, exponents: Codes | None) -> TensorPlan | None:
    """An older file's plan of a tensor as a plan of this source's weights; None if its rows were scaled otherwise.

    Args:
        exponents: of the older file.
    """
    own = source.exponents.get(plan.name) if isinstance(source, RowScaled) else None
    if own is None or exponents is None:
        return plan if own is None and exponents is None else None
    return (
        dataclasses.replace(plan, codebook=plan.codebook.removesuffix("-rows"))
        if np.array_equal(own, exponents)
        else None
    )
