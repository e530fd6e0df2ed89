"""What a file holds of the weights that a source gives by their outputs, and the same weights again from a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from opq.base.arrays import Codes, Narrow
from opq.compression.by_outputs import ByOutputs, same, scales_of, turn_of
from opq.file.folder_reader import FolderReader
from opq.file.reader import Reader
from opq.file.stored import (
    Grid,
    GridColumns,
    GridRows,
    GridTurnedRows,
    Stored,
    Trellis,
    TrellisColumns,
    TrellisRows,
    TrellisTurned,
    TrellisTurnedRows,
    head_of_rows,
    head_of_turn,
)
from opq.plan import Plan, TensorPlan
from opq.quantizing import rows
from opq.quantizing.grid import dequantize
from opq.quantizing.moment import Layout
from opq.sources.base import Source


def layout_of(source: Source, name: str, layout: Layout) -> Layout:
    """How the weights that a source gives of a tensor are a stack of matrices, if those of the network are `layout`."""
    return layout if turn_of(source, name) is None else Layout(groups=layout.groups)


def decoded(source: Source, plan: TensorPlan, codes: Narrow, dtype: torch.dtype) -> torch.Tensor:
    """The weights of codes as a file of this source gives them."""
    q, turn, (e, f) = torch.from_numpy(codes), turn_of(source, plan.name), scales_of(source, plan.name)
    found = dequantize(q, plan, dtype) if e is None else rows.scaled(q, rows.steps(plan.step, e), dtype, across=f)
    return found if turn is None else turn.tensor(found, plan.shape)


def head(source: Source, name: str) -> bytes:
    """The bytes before the codes of a tensor whose matrix is as its weights lie."""
    turn, (e, f) = turn_of(source, name), scales_of(source, name)
    before = b"" if turn is None or f is None else head_of_turn(turn) + head_of_rows(f)
    return before + (b"" if e is None else head_of_rows(e))


def stored(source: Source, plan: TensorPlan, codes: Codes) -> Stored:
    """What a file of this source holds of a compressed tensor."""
    turn, (e, f) = turn_of(source, plan.name), scales_of(source, plan.name)
    name, codes = plan.name, codes if turn is None else turn.back(codes, plan.shape)
    if turn is not None and e is not None and f is not None:
        return (TrellisColumns if plan.on_trellis else GridColumns)(name, turn, codes, e, f)
    if turn is None or (e is None and not plan.on_trellis):
        if e is None:
            return (Trellis if plan.on_trellis else Grid)(name, codes)
        return (TrellisRows if plan.on_trellis else GridRows)(name, codes, e)
    if e is None:
        return TrellisTurned(name, turn, codes)
    return (TrellisTurnedRows if plan.on_trellis else GridTurnedRows)(name, turn, codes, e)


def told(source: Source, plan: Plan) -> Plan:
    """The plan of the file: that of the weights that the source gives, saying which are by their outputs."""
    if not isinstance(source, ByOutputs):
        return plan

    def of_file(tensor: TensorPlan) -> TensorPlan:
        by_row, by_column = tensor.name in source.exponents, tensor.name in source.across
        turned = tensor.name in source.turns and (by_row or tensor.on_trellis)
        kind = f"{tensor.codebook}{'-turned' * turned}{'-rows' * by_row}"
        kind = f"{tensor.codebook}-columns" if by_column else kind
        return dataclasses.replace(tensor, codebook=kind) if kind != tensor.codebook else tensor

    return plan.replace(tensors=tuple(of_file(t) if t.action == "compress" else t for t in plan.tensors))


def rebuilt(
    source: Source, plan: Plan, codes: Mapping[str, Codes], old: Reader | FolderReader
) -> tuple[Source, Plan, dict[str, Codes]]:
    """The source, the plan and the codes that a file was made of, from the network and what the file holds.

    It is enough to store the codes again: no weights by their outputs can be read from it.

    Args:
        plan: the file's own, and `codes` its codes.
        old: the file.
    """
    names = [t.name for t in plan.compressed]
    exponents = {name: e for name in names if (e := old.exponents(name)) is not None}
    across = {name: f for name in names if (f := old.columns(name)) is not None}
    turns = {name: turn for name in names if (turn := old.turn(name)) is not None}
    if not (exponents or turns):
        return source, plan, dict(codes)
    own = {"exponents": exponents, "across": across, "importance": {}, "costs": {}}
    seen = ByOutputs.over(source, whole=source, turns=turns, **own)
    of_source = {name: turns[name].codes(q) if name in turns else q for name, q in codes.items()}
    return seen, plan.replace(tensors=tuple(map(_within, plan))), of_source


def _within(plan: TensorPlan) -> TensorPlan:
    """A file's plan of a tensor as that of the weights that its source gave."""
    return dataclasses.replace(plan, codebook=plan.codebook.split("-")[0]) if plan.stepped else plan


def of_older(source: Source, old: Reader | FolderReader, name: str) -> TensorPlan | None:
    """An older file's plan of a tensor as a plan of this source's weights; None if that saw it in another way."""
    turn, e, plan = turn_of(source, name), old.exponents(name), old.plan[name]
    alike = same(scales_of(source, name), (e, old.columns(name)))
    told_of = turn if plan.on_trellis or e is not None else None
    return _within(plan) if alike and told_of == old.turn(name) else None


def older_codes(source: Source, old: Reader | FolderReader, name: str) -> Codes:
    """An older file's codes of a tensor as those of this source's weights."""
    codes, turn = old.codes(name), turn_of(source, name)
    return codes if turn is None else turn.codes(codes)
