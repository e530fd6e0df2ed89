"""A source that gives some tensors by their outputs: as matrices (outputs, inputs), with rows and columns scaled.

One step for all rows has the smallest squared error, and where every error counts alike nothing else is needed. A probe
tells how much errors in each row count (`Probe.rows`), and rows that count for more have smaller steps; not so where
BatchNorm is, whose statistics make up for most of it. In recurrent layers rows are scaled to the same root mean square,
with a probe or without: gates whose weights are small would get errors as large as they are, in every step. So would
all rows of any matrix beside one that is far larger. Columns have factors where errors are fed back, by what an error
in each costs once those behind it have made up for it.

Paths of a trellis run down the outputs of one input while errors are fed back from input to input. So a tensor whose
first axis counts no outputs is turned into a matrix where errors are fed back.

All that decides on steps and codes works on the weights that this source gives; what a file holds of them is in
`opq.compression.in_file`. docs/datafree.md has figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import numpy as np
import torch

from opq.allocation.stats import TensorStats
from opq.base.arrays import Codes, Floats
from opq.base.pool import torch_threads
from opq.base.stages import stage
from opq.compression.differences import Differences
from opq.compression.prior import is_recurrent, is_table
from opq.compression.roles import Role
from opq.file.folder_reader import FolderReader
from opq.file.reader import Reader
from opq.quantizing import rows, trellis
from opq.quantizing.moment import Layout
from opq.quantizing.turned import Turn
from opq.sources.base import Source

RECURRENT = 0.05
"""Bits per weight, see `rows.spread`, from which on the rows of recurrent layers have steps of their own. Measured: the
matrices of a speaker encoder have 0.09 to 1.27. With such steps in all of MiniLM, from the weights alone, its rank
correlation falls from 96.8 to 96.1 at 3 bits: elsewhere small rows need not be as precise as others."""
FAR, AS_FAR = 24, 8
"""Quarter octaves: rows that are more than 64 times as large as the median one are scaled down to 4 times that where no
BatchNorm is. Beside them all others would get errors as large as they are at few bits. A choice: of the benchmarks'
networks a voice (Piper) has a row 54 times as large, the others none that is more than 10 times as large."""
POWER = -0.25
"""With a probe rows are scaled by this power of their sensitivities, columns by that of what errors in them cost: half
the exponent that is the best at high rates where these are known exactly."""
FAINT, FAINT_COLUMN = 16, 256
"""Sensitivities of rows are at least the median one that is not 0 divided by this, and at most that times it: a row
without effect on synthetic inputs may have one on others. Costs of columns likewise. A choice."""
COLUMNS, COLUMNS_FELT = 16, 64
"""Weights of the shortest row that has a step of its own, which takes two to four bits: in a recurrent layer; by
sensitivities, which are worth less. Measured on 76 tiny networks whose rows have 32 weights, at 6 bits: by
sensitivities their errors grow by 4 %."""


class Told(Protocol):
    """What a probe tells of tensors, by name."""

    @property
    def sensitivity(self) -> Mapping[str, float]:
        """How much errors in each tensor count."""

    @property
    def rows(self) -> Mapping[str, Floats]:
        """How much errors in each row count."""

    @property
    def usage(self) -> Mapping[str, Floats]:
        """The same of tables of tokens, by how often each token is used."""

    def columns(self, names: Collection[str]) -> Mapping[str, Floats]:
        """What errors in each column of these tensors' matrices cost (`moment.costs`), of those of which it knows."""

    def layout(self, name: str) -> Layout | None:
        """How feedback takes a tensor; None if it is not known."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ByOutputs(Source):
    """Reads some tensors as matrices (outputs, inputs), or with rows and columns divided by their scales."""

    whole: Source
    """The network itself."""
    turns: Mapping[str, Turn]
    """Of the tensors that are turned into matrices."""
    exponents: Mapping[str, Codes]
    """Of the tensors with steps by row, see `opq.quantizing.rows`."""
    across: Mapping[str, Codes]
    """Those of the columns, of the tensors with factors by column: each of them is a matrix, with steps by row."""

    importance: Mapping[str, Floats]
    """How much an error in each row of these tensors counts, up to a factor for the tensor."""
    costs: Mapping[str, Floats]
    """The same of columns."""

    @classmethod
    def of(
        cls,
        source: Source,
        roles: Iterable[Role],
        probe: Told | None = None,
        *,
        turning: bool = True,
        looking: bool = True,
        old: Reader | FolderReader | None = None,
    ) -> Source:
        """The source by its outputs; itself where no tensor is turned or has steps by row.

        Args:
            turning: whether tensors whose first axis counts no outputs are turned where errors are fed back; only a
                trellis needs it.
            looking: whether all matrices are read to find rows that are far larger than others.
            old: a file of which tensors are to be taken over if they did not change: their rows are scaled as there
                where that is nearly the same.
        """
        listed = [role for role in roles if role.action == "compress"]
        felt = {} if probe is None else {**probe.rows, **probe.usage}
        with stage("rows"):
            if isinstance(source, Differences):
                return source
            turns = {} if probe is None or not turning else _turns(listed, probe)
            names = [role.name for role in listed if _may(role, probe, turns.get(role.name))]
            importance = {}
            if felt and not source.batchnorms:
                importance = {
                    n: felt[n]
                    for n in names
                    if n in felt and _counts_by_row(source, n, len(felt[n])) and (felt[n] > 0).any()
                }
            importance = {name: _limited(a, FAINT) for name, a in importance.items()}
            found = {name: rows.in_quarters(a, POWER) for name, a in importance.items()}
            uneven = _uneven(source, names)
            far = _far(source, names, turns, found) if looking and not source.batchnorms else {}
            uneven |= {name: e for name, e in far.items() if name not in found}
            importance |= {name: rows.factors(e) ** -2.0 for name, e in uneven.items()}
            found |= uneven | far
            costs = _costs(listed, probe, turns) if felt and not source.batchnorms and probe is not None else {}
            for role in (role for role in listed if role.name in costs):
                turns[role.name] = turn = _as_matrix(role, turns)
                count, _ = turn.shape(role.spec.shape)
                found.setdefault(role.name, np.zeros(count, np.int16))
                importance.setdefault(role.name, np.ones(count))
            across = {name: rows.in_quarters(d, POWER) for name, d in costs.items()}
            if old is not None:
                found = {n: _as_before(old.exponents(n) if n in old.plan else None, e) for n, e in found.items()}
                across = {n: _as_before(old.columns(n) if n in old.plan else None, f) for n, f in across.items()}
        if not (found or turns):
            return source

        def read(name: str) -> torch.Tensor:
            tensor = source.tensor(name)
            tensor = turns[name].matrix(tensor) if name in turns else tensor
            return rows.divided(tensor, found[name], across.get(name)) if name in found else tensor

        own = {"exponents": found, "across": across, "importance": importance, "costs": costs}
        return cls.over(source, read=read, whole=source, turns=turns, **own)


def _as_before(before: Codes | None, e: Codes) -> Codes:
    """The exponents of a tensor in an older file, if none differs by more than a quarter octave from the new ones.

    What a probe tells of rows moves a little with every tensor that changed, and a row may lie on the edge.
    """
    if before is None or before.shape != e.shape or (np.abs(before - e) > 1).any():
        return e
    return before


def _costs(roles: Iterable[Role], probe: Told, turns: Mapping[str, Turn]) -> dict[str, Floats]:
    """What errors in each column cost, limited, of the matrices whose columns have enough weights for a factor."""
    wide = []
    for role in roles:
        layout = probe.layout(role.name)
        if layout is not None and layout.groups == 1 and (role.name in turns or not layout.crosswise):
            count, _ = _as_matrix(role, turns).shape(role.spec.shape)
            wide += [role.name] * (count >= COLUMNS_FELT)
    return {name: _limited(d, FAINT_COLUMN) for name, d in probe.columns(wide).items() if (d > 0).any()}


def _as_matrix(role: Role, turns: Mapping[str, Turn]) -> Turn:
    """How a tensor is a matrix (outputs, inputs): as it is turned, else as it lies."""
    return turns.get(role.name) or Turn(1, len(role.spec.shape) - 1)


def _turns(roles: Iterable[Role], probe: Told) -> dict[str, Turn]:
    """The tensors that are turned: those that feedback takes as (inputs, outputs), or as a stack."""
    found = {}
    for role in roles:
        layout = probe.layout(role.name)
        if layout is not None and layout.turn is not None and layout.turn.shape(role.spec.shape)[0] <= trellis.TALLEST:
            found[role.name] = layout.turn
    return found


def _limited(a: Floats, most: float) -> Floats:
    """The sensitivities, each at most so many times the median one that is not 0, and at least that part of it."""
    middle = np.median(a[a > 0])
    limited: Floats = np.clip(a, middle / most, middle * most)
    return limited


def _uneven(source: Source, names: Iterable[str]) -> dict[str, Codes]:
    """The exponents of the matrices of recurrent layers whose rows differ in scale."""
    found = {}
    for name in filter(is_recurrent, names):
        tensor = source.tensor(name)
        if rows.spread(tensor) >= RECURRENT:
            found[name] = rows.exponents(tensor)
    return found


def _far(
    source: Source, names: Iterable[str], turns: Mapping[str, Turn], found: Mapping[str, Codes]
) -> dict[str, Codes]:
    """The exponents of matrices with rows that are far larger than others, from those `found`; no recurrent ones."""
    changed = {}
    for name in (name for name in names if not is_recurrent(name)):
        tensor = turns[name].matrix(source.tensor(name)) if name in turns else source.tensor(name)
        if bool(((size := rows.exponents(tensor)) > FAR).any()):
            e = found.get(name, np.zeros_like(size))
            changed[name] = np.where(size > FAR, size - AS_FAR, e)  # which a probe's factors never come near
    return changed


def _counts_by_row(source: Source, name: str, number: int) -> bool:
    """Whether a tensor of so many rows has steps by their sensitivities, where a probe tells these."""
    return not is_recurrent(name) and source.by_name[name].size >= COLUMNS_FELT * number


def _may(role: Role, probe: Told | None, turn: Turn | None) -> bool:
    """Whether a tensor has outputs as rows, each with enough weights to have a step of its own."""
    shape = role.spec.shape
    layout = None if probe is None or turn is not None else probe.layout(role.name)
    if len(shape) < 2 or (layout is not None and layout.crosswise):
        return False
    count = shape[0] if turn is None else turn.shape(shape)[0]
    used = probe is not None and role.name in probe.usage
    return role.spec.size >= COLUMNS * count and (used or not is_table(role.name, shape))


def restated(source: Source, stats: Mapping[str, TensorStats], *, but: Collection[str] = ()) -> dict[str, TensorStats]:
    """Statistics of a source's tensors, from those of the tensors whose rows are not scaled.

    Args:
        but: tensors of which `stats` has those of the scaled rows already.
    """
    if not isinstance(source, ByOutputs):
        return dict(stats)
    with torch_threads() as threads:
        names = [name for name in source.exponents if name not in but]
        every = threads.ordered(lambda name: TensorStats.of(source.tensor(name), name=name), names)
        return dict(stats) | dict(zip(names, every, strict=True))


def alike(one: Source, other: Source, names: Iterable[str]) -> set[str]:
    """The tensors whose rows and columns are scaled in the same way in both sources of a network, or in neither."""
    return {name for name in names if same(scales_of(one, name), scales_of(other, name))}


def scales_of(source: Source, name: str) -> tuple[Codes | None, Codes | None]:
    """The exponents of a tensor's rows and columns, None for each that has none."""
    return (source.exponents.get(name), source.across.get(name)) if isinstance(source, ByOutputs) else (None, None)


def same(one: tuple[Codes | None, ...], other: tuple[Codes | None, ...]) -> bool:
    """Whether exponents are the same."""
    both = zip(one, other, strict=True)
    return all((e is None) == (f is None) and (e is None or f is None or np.array_equal(e, f)) for e, f in both)


def of_rows(source: Source, sensitivities: Mapping[str, float]) -> dict[str, float]:
    """Sensitivities of the scaled weights from those of the weights, which are means over all of them.

    An error in a scaled row is `r_i` times as large in the weights, if `r_i` is its scale, and counts `r_i^2` times as
    much as there. Columns likewise.
    """
    if not isinstance(source, ByOutputs):
        return dict(sensitivities)
    return {name: a * _counts(source, name) for name, a in sensitivities.items()}


def _counts(source: ByOutputs, name: str) -> float:
    """How much an error in the scaled weights counts beside one in the weights."""
    if name not in source.exponents:
        return 1.0
    counts = _mean(source.importance[name], source.exponents[name])
    return counts * _mean(source.costs[name], source.across[name]) if name in source.across else counts


def _mean(a: Floats, e: Codes) -> float:
    """The mean of the squares of scales, weighted."""
    return float(np.mean(a * rows.factors(e) ** 2) / np.mean(a))


def turn_of(source: Source, name: str) -> Turn | None:
    """How a source turns a tensor; None if it leaves it as it is."""
    return source.turns.get(name) if isinstance(source, ByOutputs) else None


def columns_of(source: Source, name: str) -> Codes | None:
    """The exponents of the columns of a tensor's matrix, as the source scales them."""
    return scales_of(source, name)[1]
