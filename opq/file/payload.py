"""Payloads: the base classes of all kinds, which `opq.file.stored` lists."""

from __future__ import annotations

import abc
import dataclasses
import zlib
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from opq.base.arrays import Codes
from opq.base.format_v1 import CODED_TYPES, MOST_AXES
from opq.coding import entropy
from opq.errors import CorruptFileError, MismatchError
from opq.plan import Action, TensorPlan
from opq.quantizing.turned import Turn


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes are."""

    kind: str
    """One of `KIND_NAMES`."""
    length: int
    """Bytes of the payload."""
    checksum: int | None = None
    """CRC-32 of a payload that has its own entry; None if it is in the common entry."""
    number: float = 0.0
    """For kind `fine` the step, for `log` the codes in an octave, for `scalar` the integer itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """A payload of which everything is decided, but whose bytes are not yet made."""

    head: bytes
    draft: entropy.Draft | None = None
    codes: npt.NDArray[np.integer] | None = None

    @property
    def size(self) -> int:
        """The number of bytes, to within a few."""
        return len(self.head) + (self.draft.size if self.draft else 0)

    def bytes(self) -> bytes:
        """The bytes themselves."""
        if self.draft is None or self.codes is None:
            return self.head
        return self.head + entropy.write(self.draft, self.codes)


class Stored(abc.ABC):
    """One kind of payload. An instance is the stored form of one tensor; the class decodes such payloads."""

    __slots__ = ()
    kind: ClassVar[str]
    """The name of the kind, one of `KIND_NAMES`."""
    action: ClassVar[Action] = "keep"
    """The plan's action for such tensors."""
    name: str
    """The tensor's name."""

    @property
    def number(self) -> float:
        """The number that the index holds beside the length, see `Place.number`."""
        return 0.0

    @abc.abstractmethod
    def payload(self, plan: TensorPlan) -> Payload:
        """The payload to be written; raises `MismatchError` if the tensor does not fit its plan."""

    @classmethod
    @abc.abstractmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        """The dense tensor of a payload; raises `CorruptFileError` if the bytes are not such a payload."""

    @abc.abstractmethod
    def digest(self, payload: bytes) -> int | None:
        """CRC-32 of the decoded codes or elements; None if the index holds the whole tensor."""

    @classmethod
    def codes_of(cls, data: memoryview, plan: TensorPlan) -> Codes:
        """The integer codes of a payload, in the tensor's shape; raises `MismatchError` if the kind has none."""
        raise MismatchError("no codes", got=cls.kind)

    @classmethod
    def exponents_of(cls, data: memoryview, plan: TensorPlan) -> Codes | None:
        """The exponent of each row; None if the kind has none. Raises `CorruptFileError` if they are not there."""
        return None

    @classmethod
    def columns_of(cls, data: memoryview, plan: TensorPlan) -> Codes | None:
        """The exponent of each column; None if the kind has none. Raises `CorruptFileError` if they are not there."""
        return None

    @classmethod
    def turn_of(cls, data: memoryview, plan: TensorPlan) -> Turn | None:
        """How the codes are those of a matrix (outputs, inputs); None if the kind does not say."""
        return None

    @classmethod
    @abc.abstractmethod
    def check(cls, plan: TensorPlan, place: Place) -> None:
        """Raises `CorruptFileError` if index and plan contradict each other."""

    def _fits(self, plan: TensorPlan, shape: tuple[int, ...]) -> None:
        if plan.action != self.action or (self.action == "compress" and plan.codebook != self.kind):
            raise MismatchError(
                f"tensor {plan.name!r}: stored as {self.kind}", wanted=f"{plan.action}, {plan.codebook}"
            )
        if len(shape) > MOST_AXES:
            raise MismatchError(f"tensor {plan.name!r}: too many axes", got=len(shape), wanted=f"at most {MOST_AXES}")
        if tuple(shape) != plan.shape:
            raise MismatchError(f"tensor {plan.name!r}: shape of the stored tensor", got=shape, wanted=plan.shape)


class Coded(Stored):
    """A payload of integer codes, with or without a codebook before them."""

    __slots__ = ()

    @abc.abstractmethod
    def read(self) -> npt.NDArray[np.integer]:
        """The codes as `codes_of` will give them."""

    def written(self) -> npt.NDArray[np.integer]:
        """The codes as they are written in the payload."""
        return self.read()

    def head(self) -> bytes:
        """The bytes before the codes."""
        return b""

    def payload(self, plan: TensorPlan) -> Payload:
        self._fits(plan, self._shape(plan))
        if plan.dtype not in CODED_TYPES:
            raise MismatchError(f"tensor {plan.name!r}: stored by codes", got=plan.dtype, wanted=", ".join(CODED_TYPES))
        codes = self.written()
        return Payload(self.head(), entropy.draft(codes), codes)

    def digest(self, payload: bytes) -> int:
        return zlib.crc32(np.ascontiguousarray(self.read(), np.int16).data)

    @classmethod
    def behind(cls, data: memoryview, plan: TensorPlan) -> tuple[int, tuple[int, ...]]:
        """Where the codes begin behind the head of a payload, and their shape.

        Raises:
            CorruptFileError: the head is not one of this kind.
        """
        return 0, plan.shape

    @classmethod
    def codes_of(cls, data: memoryview, plan: TensorPlan) -> Codes:
        start, shape = cls.behind(data, plan)
        return entropy.decode(data[start:], shape)

    @classmethod
    def check(cls, plan: TensorPlan, place: Place) -> None:
        if plan.dtype not in CODED_TYPES:
            raise CorruptFileError(f"tensor {plan.name!r}: codes of a type that has none", got=plan.dtype)

    def _shape(self, plan: TensorPlan) -> tuple[int, ...]:
        """The shape of the weights that the codes stand for."""
        return self.read().shape
