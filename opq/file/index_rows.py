"""The rows of an index: what it says of each tensor, in the plan's order, except the numbers of the plan's columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from opq.base.dtypes import DTYPES
from opq.base.format_v1 import (
    DTYPE_NAMES,
    KIND_NAMES,
    KIND_WEIGHTS,
    OWN_ENTRY_WEIGHTS,
    RANK_WEIGHTS,
    SAME_SHAPE_WEIGHTS,
    SMALL_WEIGHTS,
    TYPE_WEIGHTS,
    WIDE_WEIGHTS,
)
from opq.coding.adaptive import Adaptive, AdaptiveNumber
from opq.coding.stack import StackReader, StackWriter
from opq.errors import CorruptFileError, NewerFormatError
from opq.file.payload import Place, Stored
from opq.file.stored import KINDS, Log, Raw, Scalar, Share
from opq.plan import TensorPlan, is_vector


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What the index says of one tensor, except the numbers of its plan's columns."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str
    place: Place
    like: str | None = None
    """For kind `share`: the tensor that holds the values."""

    @property
    def kind(self) -> type[Stored | Share]:
        """The class of the tensor's kind."""
        return KINDS[KIND_NAMES.index(self.place.kind)]

    def plan(self, numbers: Mapping[str, float]) -> TensorPlan:
        """The tensor's plan, given its numbers by column."""
        fields: dict[str, Any] = dict(numbers)
        if self.kind.action == "compress":
            fields["codebook"] = self.place.kind
        if self.kind is Raw and is_vector(self.shape, self.dtype):
            fields["exact"] = True
        return TensorPlan(
            name=self.name,
            shape=self.shape,
            dtype=self.dtype,
            action=self.kind.action,
            reason=self.reason,
            like=self.like,
            **fields,
        )


class Rows:
    """Writes or reads one row after the other, with adaptive models that learn from the rows before."""

    def __init__(self, reasons: Sequence[str], numbers: dict[str, int]):
        self.reasons, self.numbers = reasons, numbers
        self.number_of = {reason: k for k, reason in enumerate(reasons)}
        self.kinds = [Adaptive(KIND_WEIGHTS) for _ in KIND_WEIGHTS]
        self.dtypes = Adaptive(TYPE_WEIGHTS)
        self.ranks = Adaptive(RANK_WEIGHTS)
        self.same = Adaptive(SAME_SHAPE_WEIGHTS)
        self.own = Adaptive(OWN_ENTRY_WEIGHTS)
        self.wide = AdaptiveNumber(WIDE_WEIGHTS)
        self.small = AdaptiveNumber(SMALL_WEIGHTS)
        self.kind = 0
        self.shape: tuple[int, ...] = ()

    def put(self, writer: StackWriter, tensor: TensorPlan, place: Place) -> None:
        kind = KIND_NAMES.index(place.kind)
        self.kinds[self.kind].put(writer, kind)
        self.dtypes.put(writer, DTYPE_NAMES.index(tensor.dtype))
        self.small.put(writer, self.number_of[tensor.reason])
        self.same.put(writer, int(tensor.shape == self.shape))
        if tensor.shape != self.shape:
            self.ranks.put(writer, len(tensor.shape))
            for length in tensor.shape:
                self.wide.put(writer, length)
        self.kind, self.shape = kind, tensor.shape
        if place.kind == Share.kind:
            self.small.put(writer, self.numbers[str(tensor.like)])
        elif place.kind == Scalar.kind:
            writer.sint(int(place.number))
        else:
            self._put_place(writer, place)

    def _put_place(self, writer: StackWriter, place: Place) -> None:
        if place.kind == Log.kind:
            self.small.put(writer, int(place.number))
        self.wide.put(writer, place.length)
        self.own.put(writer, int(place.checksum is not None))
        if place.checksum is not None:
            writer.number(place.checksum, 32)

    def take(self, reader: StackReader, names: Sequence[str]) -> Row:
        number = len(self.numbers)
        name = names[number]
        self.numbers[name] = number
        self.kind = self.kinds[self.kind].take(reader)
        kind = _known(KIND_NAMES, self.kind, "kind of tensor")
        dtype = _known(DTYPE_NAMES, self.dtypes.take(reader), "element type")
        if dtype not in DTYPES:
            raise NewerFormatError(f"tensor {name!r}: this torch has no such type", got=dtype)
        reason = _listed(self.reasons, self.small.take(reader), "reason")
        if not self.same.take(reader):
            self.shape = tuple(self.wide.take(reader) for _ in range(self.ranks.take(reader)))
        like = _listed(names, self.small.take(reader), "shared tensor") if kind == Share.kind else None
        return Row(name, self.shape, dtype, reason, self._take_place(reader, kind), like)

    def _take_place(self, reader: StackReader, kind: str) -> Place:
        if kind == Share.kind:
            return Place(kind, 0)
        if kind == Scalar.kind:
            return Place(kind, 0, number=reader.sint())
        number = self.small.take(reader) if kind == Log.kind else 0
        length = self.wide.take(reader)
        return Place(kind, length, reader.number(32) if self.own.take(reader) else None, number)


def _known(known: Sequence[str], number: int, what: str) -> str:
    if number >= len(known):
        raise NewerFormatError(f"an unknown {what}", got=number, wanted=f"below {len(known)}")
    return known[number]


def _listed(known: Sequence[str], number: int, what: str) -> str:
    if number >= len(known):
        raise CorruptFileError(f"the number of a {what} is too large", got=number, wanted=f"below {len(known)}")
    return known[number]
