"""Steps by row: which tensors have them, and a source that gives these tensors with their rows divided.

One step for all rows has the smallest squared error, and where every error counts alike nothing else is needed. It is
wrong where rows differ widely in scale and nothing makes up for that behind them: the gates of a recurrent layer whose
inputs are small get errors as large as their weights. Their rows are then scaled to the same root mean square, and all
that decides on steps and codes works on the scaled weights. docs/datafree.md has figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from opq.base.arrays import Codes
from opq.base.stages import stage
from opq.compression.differences import Differences
from opq.compression.prior import is_recurrent, is_table, paired
from opq.compression.roles import Role
from opq.file.stored import Grid, GridRows, Trellis, TrellisRows
from opq.plan import Plan, TensorPlan
from opq.quantizing import rows
from opq.quantizing.grid import dequantize
from opq.sources.base import Source

LEAST = 0.5
RECURRENT = 0.05
"""Bits per weight, see `rows.spread`, from which on rows have steps of their own; the second in recurrent layers, where
a gate that is far off stays so in all steps. Measured: the matrices of a speaker encoder have 0.09 to 1.27, those of
MiniLM up to 0.23, of SmolLM2 up to 0.38. With steps by row in all of MiniLM its rank correlation falls from 96.8 to
96.1 at 3 bits."""
COLUMNS = 16
"""Weights of the shortest row that has a step of its own, which takes about four bits. A choice."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowScaled(Source):
    """Reads some tensors with each row divided by its scale, others as they are."""

    whole: Source
    """The network itself."""
    exponents: Mapping[str, Codes]
    """Of the tensors with steps by row, see `opq.quantizing.rows`."""

    @classmethod
    def of(cls, source: Source, roles: Iterable[Role]) -> Source:
        """The source, its rows scaled where that pays; itself where no tensor has steps by row."""
        found = _chosen(source, roles)
        if not found:
            return source

        def read(name: str) -> torch.Tensor:
            tensor = source.tensor(name)
            return rows.divided(tensor, found[name]) if name in found else tensor

        fields = {f.name: getattr(source, f.name) for f in dataclasses.fields(Source)}
        return cls(**{**fields, "read": read}, whole=source, exponents=found)


@stage("rows")
def _chosen(source: Source, roles: Iterable[Role]) -> dict[str, Codes]:
    """The exponents of the tensors with steps by row: no differences, no tables, and nothing before a BatchNorm."""
    if isinstance(source, Differences):
        return {}
    names = [role.name for role in roles if role.action == "compress" and _may(role)]
    normed = paired(source, names)
    found = {}
    for name in names:
        if name not in normed:
            tensor = source.tensor(name)
            least = RECURRENT if is_recurrent(name) else LEAST
            if bool(torch.isfinite(tensor.float()).all()) and rows.spread(tensor) >= least:
                found[name] = rows.exponents(tensor)
    return found


def _may(role: Role) -> bool:
    shape = role.spec.shape
    return len(shape) > 1 and role.spec.size >= COLUMNS * shape[0] and not is_table(role.name, shape)


def of_rows(source: Source, sensitivities: Mapping[str, float]) -> dict[str, float]:
    """Sensitivities of the scaled weights from those of the weights, which are means over all rows.

    That rows are scaled says that an error in row i counts as `c / r_i^2`, if `r_i` is its scale; the mean of these is
    the tensor's sensitivity, and `c` that of the scaled weights.
    """
    by_row = source.exponents if isinstance(source, RowScaled) else {}
    return {
        name: a / float(np.mean(rows.factors(by_row[name]) ** -2.0)) if name in by_row else a
        for name, a in sensitivities.items()
    }


def decoded(source: Source, plan: TensorPlan, codes: Codes, dtype: torch.dtype) -> torch.Tensor:
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
