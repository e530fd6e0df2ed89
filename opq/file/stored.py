"""What a file holds of one tensor: one class for each kind of payload, to bytes and back side by side.

A new kind is a class here, at the end of `KINDS`, and a name at the end of `opq.base.format_v1.KIND_NAMES`.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import zlib
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from opq.base.arrays import Codes, Floats32, Reals
from opq.base.dtypes import torch_dtype
from opq.coding import entropy
from opq.errors import CorruptFileError, MismatchError
from opq.file import codebook
from opq.file.payload import Coded, Payload, Place
from opq.file.payload import Stored as Stored
from opq.plan import Action, TensorPlan
from opq.quantizing import trellis
from opq.quantizing.grid import densely, saturated, scaled

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types of integers that the index may hold."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Grid(Coded):
    """A compressed tensor: integer multiples of its plan's step."""

    kind: ClassVar[str] = "grid"
    action: ClassVar[Action] = "compress"
    name: str
    codes: Codes

    def read(self) -> Codes:
        return self.codes

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        return scaled(torch.from_numpy(cls.codes_of(data, plan)), plan.step, torch_dtype(plan.dtype))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Trellis(Grid):
    """A compressed tensor: integer multiples of its plan's step that follow the paths of a trellis."""

    kind: ClassVar[str] = "trellis"

    def written(self) -> Codes:
        return trellis.paths(self.codes)

    @classmethod
    def codes_of(cls, data: memoryview, plan: TensorPlan) -> Codes:
        return trellis.numbers(entropy.decode(data, plan.shape))


class Listed(Coded):
    """A compressed tensor: indices into a codebook of K entries of d weights."""

    __slots__ = ()
    action: ClassVar[Action] = "compress"
    indices: npt.NDArray[np.integer]

    @property
    @abc.abstractmethod
    def entries(self) -> Floats32:
        """K x d."""

    def read(self) -> npt.NDArray[np.integer]:
        return self.indices

    def head(self) -> bytes:
        try:
            return codebook.put(self.entries)
        except MismatchError as error:
            raise MismatchError(f"tensor {self.name!r}: {error.fact}", got=error.got, wanted=error.wanted) from error

    @classmethod
    def indices_shape(cls, plan: TensorPlan, width: int) -> tuple[int, ...]:
        """The shape of indices into entries of `width` weights; raises `CorruptFileError` where none can be."""
        if width != 1:
            raise CorruptFileError("a codebook of impossible size", got=f"entries of {width} weights", wanted=1)
        return plan.shape

    @classmethod
    def codes_of(cls, data: memoryview, plan: TensorPlan) -> Codes:
        return cls._split(data, plan)[1]

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        entries, codes = cls._split(data, plan)
        if codes.size and (codes.min() < 0 or codes.max() >= len(entries)):
            raise CorruptFileError("an index beyond the codebook", got=int(codes.max()), wanted=f"below {len(entries)}")
        dtype = torch_dtype(plan.dtype)
        book = saturated(torch.from_numpy(entries.astype(np.float64)), dtype)
        return densely(torch.from_numpy(codes), plan.shape, dtype, lambda q: book[q.long()])

    @classmethod
    def _split(cls, data: memoryview, plan: TensorPlan) -> tuple[Reals, Codes]:
        entries, start = codebook.take(data)
        return entries, entropy.decode(data[start:], cls.indices_shape(plan, entries.shape[1]))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Table(Listed):
    """A compressed tensor: indices into a list of values (at most 32767)."""

    kind: ClassVar[str] = "table"
    name: str
    values: Floats32
    indices: npt.NDArray[np.integer]
    """In the tensor's shape."""

    @property
    def entries(self) -> Floats32:
        return np.asarray(self.values).reshape(-1, 1)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Product(Listed):
    """A compressed tensor: indices into a list of vectors of d weights that follow each other in row-major order."""

    kind: ClassVar[str] = "product"
    name: str
    centroids: Floats32
    """(K, d)."""
    indices: npt.NDArray[np.integer]
    """`ceil(size / d)` of them; what the last vector has too much is dropped."""

    @property
    def entries(self) -> Floats32:
        return self.centroids

    def written(self) -> npt.NDArray[np.integer]:
        return self.indices.reshape(-1)

    @classmethod
    def indices_shape(cls, plan: TensorPlan, width: int) -> tuple[int, ...]:
        return (-(-plan.size // width),)

    def _shape(self, plan: TensorPlan) -> tuple[int, ...]:
        amount = -(-plan.size // max(self.centroids.shape[1], 1))
        return plan.shape if self.indices.size == amount else self.indices.shape


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Fine(Coded):
    """A kept tensor on a fine grid of its own: `step` times the codes."""

    kind: ClassVar[str] = "fine"
    name: str
    codes: Codes
    step: float

    @property
    def number(self) -> float:
        return self.step

    def read(self) -> Codes:
        return self.codes

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        return scaled(torch.from_numpy(cls.codes_of(data, plan)), number, torch_dtype(plan.dtype))

    @classmethod
    def check(cls, plan: TensorPlan, place: Place) -> None:
        Coded.check(plan, place)
        if not math.isfinite(place.number):
            raise CorruptFileError(f"tensor {plan.name!r}: a step that is not finite", got=place.number)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Log(Coded):
    """A kept tensor of positive numbers: `2 ** (code / per_octave)`."""

    kind: ClassVar[str] = "log"
    name: str
    codes: Codes
    per_octave: int

    @property
    def number(self) -> float:
        return self.per_octave

    def read(self) -> Codes:
        return self.codes

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        dtype = torch_dtype(plan.dtype)

        def powers(codes: torch.Tensor) -> torch.Tensor:
            return saturated(torch.from_numpy(np.exp2(codes.numpy() / number)), dtype)

        with np.errstate(over="ignore"):
            return densely(torch.from_numpy(cls.codes_of(data, plan)), plan.shape, dtype, powers)

    @classmethod
    def check(cls, plan: TensorPlan, place: Place) -> None:
        Coded.check(plan, place)
        if not place.number >= 1:
            raise CorruptFileError(f"tensor {plan.name!r}: no codes an octave", got=place.number)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Raw(Stored):
    """A tensor kept bit by bit."""

    kind: ClassVar[str] = "raw"
    name: str
    tensor: torch.Tensor

    def payload(self, plan: TensorPlan) -> Payload:
        _same(self, plan)
        return Payload(raw_bytes(self.tensor))

    def digest(self, payload: bytes) -> int:
        return zlib.crc32(payload)

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        return raw_tensor(data, plan.shape, torch_dtype(plan.dtype))

    @classmethod
    def check(cls, plan: TensorPlan, place: Place) -> None:
        if place.length != plan.nbytes:
            raise CorruptFileError(f"tensor {plan.name!r} has the wrong length", got=place.length, wanted=plan.nbytes)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scalar(Stored):
    """A kept tensor of one integer, which the index holds in a few bits."""

    kind: ClassVar[str] = "scalar"
    name: str
    tensor: torch.Tensor

    @property
    def number(self) -> float:
        return int(self.tensor)

    def payload(self, plan: TensorPlan) -> Payload:
        _same(self, plan)
        return Payload(b"")

    def digest(self, payload: bytes) -> None:
        return None

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        return torch.tensor([int(number)], dtype=torch_dtype(plan.dtype)).reshape(plan.shape)

    @classmethod
    def check(cls, plan: TensorPlan, place: Place) -> None:
        dtype = torch_dtype(plan.dtype)
        limits = torch.iinfo(dtype) if dtype in WHOLE else None
        if limits is None or plan.size != 1 or not limits.min <= place.number <= limits.max:
            raise CorruptFileError(f"tensor {plan.name!r} is no scalar of its type", got=place.number)


class Share:
    """No payload: the values are those of another tensor. Stands in the plan only."""

    kind: ClassVar[str] = "share"
    action: ClassVar[Action] = "share"


KINDS: tuple[type[Stored | Share], ...] = (Grid, Table, Product, Fine, Log, Raw, Share, Scalar, Trellis)
"""In the order of their numbers in the file, `KIND_NAMES`."""

PAYLOADS: dict[str, type[Stored]] = {kind.kind: kind for kind in KINDS if issubclass(kind, Stored)}
"""The kinds that a reader restores from, by name."""


def smallest(item: Stored) -> Stored:
    """The item, or the same tensor as a scalar of the index where it is one integer."""
    if isinstance(item, Raw) and item.tensor.numel() == 1 and item.tensor.dtype in WHOLE:
        return Scalar(item.name, item.tensor) if abs(int(item.tensor)) < 1 << 38 else item
    return item


def _same(item: Raw | Scalar, plan: TensorPlan) -> None:
    item._fits(plan, tuple(item.tensor.shape))
    if item.tensor.dtype != torch_dtype(plan.dtype):
        got = item.tensor.dtype
        raise MismatchError(f"tensor {plan.name!r}: type of the stored tensor", got=got, wanted=plan.dtype)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor in row-major order, little-endian."""
    return bytes(raw_view(tensor))


def raw_view(tensor: torch.Tensor) -> memoryview:
    """`raw_bytes` without a copy, where the tensor lies so already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def raw_tensor(data: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `raw_bytes`."""
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise CorruptFileError("a kept tensor has the wrong length", got=f"{len(data)} bytes", wanted=wanted)
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool and np.frombuffer(data, np.uint8).max() > 1:
        raise CorruptFileError("a truth value that is neither 0 nor 1")
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
