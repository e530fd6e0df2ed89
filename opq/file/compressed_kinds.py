"""The kinds of payload of compressed tensors: codes on a grid, on a trellis, or into a codebook.

On a grid and on a trellis a tensor may have a step for each row, and a factor for each column; the exponents of both
stand before its codes. Paths run down the first axis of a tensor, or down the rows of a matrix of which the payload
says how it is a tensor.
"""

from __future__ import annotations

import abc
import dataclasses
import zlib
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from opq.base.arrays import Codes, Floats32, Reals
from opq.base.dtypes import torch_dtype
from opq.base.format_v1 import FARTHEST_ROW
from opq.coding import entropy
from opq.errors import CorruptFileError, MismatchError
from opq.file import codebook
from opq.file.payload import Coded, Payload, Place
from opq.plan import Action, TensorPlan
from opq.quantizing import rows, trellis
from opq.quantizing.grid import densely, saturated, scaled
from opq.quantizing.turned import Turn


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
        start, shape = cls.behind(data, plan)
        k = entropy.decode(data[start:], shape)
        return trellis.numbers(k, out=k)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class GridRows(Grid):
    """A compressed tensor: integer multiples of a step for each row, see `opq.quantizing.rows`."""

    kind: ClassVar[str] = "grid-rows"
    exponents: Codes
    """`e_i` of each row: (rows,)."""

    def head(self) -> bytes:
        return head_of_rows(self.exponents)

    def payload(self, plan: TensorPlan) -> Payload:
        self._fits(plan, self._shape(plan))
        _check(plan, self.exponents, plan.shape[:1], "rows")
        _row_steps(plan, self.exponents)
        return Grid.payload(self, plan)

    def digest(self, payload: bytes) -> int:
        return _with_exponents(self.exponents, Grid.digest(self, payload))

    @classmethod
    def behind(cls, data: memoryview, plan: TensorPlan) -> tuple[int, tuple[int, ...]]:
        return len(_exponents_in(data)) + _LENGTH, plan.shape

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        steps = _row_steps(plan, cls.exponents_of(data, plan))
        return rows.scaled(torch.from_numpy(cls.codes_of(data, plan)), steps, torch_dtype(plan.dtype))

    @classmethod
    def exponents_of(cls, data: memoryview, plan: TensorPlan) -> Codes:
        """`e_i` of each row; raises `CorruptFileError` unless the payload begins with them."""
        return _exponents(data, plan.shape[0], "row")

    @classmethod
    def check(cls, plan: TensorPlan, place: Place) -> None:
        Grid.check(plan, place)
        if not plan.shape:
            raise CorruptFileError(f"tensor {plan.name!r}: steps by row of a tensor without rows")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrellisRows(GridRows, Trellis):
    """A compressed tensor: multiples of a step for each row that follow the paths of a trellis."""

    kind: ClassVar[str] = "trellis-rows"


_LENGTH = 4
"""Bytes of the length of the coded exponents, before them."""


def head_of_rows(exponents: Codes) -> bytes:
    """What stands before the codes where rows have exponents `e_i` (rows,)."""
    coded = entropy.encode(exponents)
    return len(coded).to_bytes(_LENGTH, "little") + coded


def _check(plan: TensorPlan, exponents: Codes, shape: tuple[int, ...], of: str) -> None:
    """Raises `MismatchError` unless there are exponents for so many rows or columns, none too far."""
    if exponents.shape != shape or np.abs(exponents.astype(int)).max(initial=0) > FARTHEST_ROW:
        fact = f"tensor {plan.name!r}: exponents of {of}"
        raise MismatchError(fact, got=exponents.shape, wanted=f"{shape} within {FARTHEST_ROW}")


def _with_exponents(exponents: Codes, digest: int) -> int:
    return zlib.crc32(np.ascontiguousarray(exponents, np.int16).data, digest)


def _exponents(data: memoryview, number: int, of: str) -> Codes:
    """The exponents at the start of a payload, of so many rows or columns."""
    found = entropy.decode(_exponents_in(data, of), (number,))
    if (largest := int(np.abs(found.astype(int)).max(initial=0))) > FARTHEST_ROW:
        raise CorruptFileError(f"a {of} scaled too far", got=largest, wanted=f"exponents within {FARTHEST_ROW}")
    return found


def _exponents_in(data: memoryview, of: str = "row") -> memoryview:
    """The coded exponents at the start of a payload."""
    length = int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH + length:
        raise CorruptFileError(f"exponents of {of}s are cut off", got=f"{len(data)} bytes", wanted=_LENGTH + length)
    return data[_LENGTH : _LENGTH + length]


def _row_steps(plan: TensorPlan, exponents: Codes) -> Floats32:
    """The step of each row; raises `CorruptFileError` if float32 cannot hold one."""
    found = rows.steps(plan.step, exponents)
    if not bool((np.isfinite(found) & (found > 0)).all()):
        got = f"{plan.step:.3g}, scaled by 2^({int(exponents.min())}/4) to 2^({int(exponents.max())}/4)"
        raise CorruptFileError(f"tensor {plan.name!r}: the step of a row is out of range", got=got)
    return found


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Turned(Coded):
    """A compressed tensor of which a matrix (outputs, inputs) is stored, see `opq.quantizing.turned`."""

    action: ClassVar[Action] = "compress"
    inner: ClassVar[type[Grid]]
    """How the matrix is stored."""
    name: str
    turn: Turn
    codes: Codes
    """In the tensor's shape."""

    @property
    @abc.abstractmethod
    def matrix(self) -> Grid:
        """The matrix as a tensor of its own."""

    def read(self) -> Codes:
        return self.codes

    def payload(self, plan: TensorPlan) -> Payload:
        if not self.turn.fits(plan.shape):
            fact = f"tensor {plan.name!r}: axes of its inputs"
            raise MismatchError(fact, got=self.turn, wanted=f"axes of {plan.shape}")
        self._fits(plan, self.codes.shape)
        found = self.matrix.payload(_of_matrix(plan, self.turn, self.inner))
        return Payload(self.before(plan) + found.head, found.draft, found.codes)

    def before(self, plan: TensorPlan) -> bytes:
        """What stands before the payload of the matrix; raises `MismatchError` if it does not fit the plan."""
        return head_of_turn(self.turn)

    @classmethod
    def start(cls, data: memoryview) -> int:
        """The bytes before the payload of the matrix."""
        return _AXES

    @classmethod
    def check(cls, plan: TensorPlan, place: Place) -> None:
        cls.inner.check(plan, place)
        if not plan.shape:
            raise CorruptFileError(f"tensor {plan.name!r}: a turned tensor without axes")

    @classmethod
    def turn_of(cls, data: memoryview, plan: TensorPlan) -> Turn:
        turn = Turn(data[0], data[1]) if len(data) >= _AXES else None
        if turn is None or not turn.fits(plan.shape):
            raise CorruptFileError("axes of the inputs that a tensor has not", got=turn, wanted=f"axes of {plan.shape}")
        return turn

    @classmethod
    def behind(cls, data: memoryview, plan: TensorPlan) -> tuple[int, tuple[int, ...]]:
        before = cls.start(data)
        start, shape = cls.inner.behind(data[before:], _of_matrix(plan, cls.turn_of(data, plan), cls.inner))
        return before + start, shape

    @classmethod
    def codes_of(cls, data: memoryview, plan: TensorPlan) -> Codes:
        turn = cls.turn_of(data, plan)
        return turn.back(cls.inner.codes_of(data[cls.start(data) :], _of_matrix(plan, turn, cls.inner)), plan.shape)

    @classmethod
    def exponents_of(cls, data: memoryview, plan: TensorPlan) -> Codes | None:
        return cls.inner.exponents_of(data[cls.start(data) :], _of_matrix(plan, cls.turn_of(data, plan), cls.inner))

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        turn = cls.turn_of(data, plan)
        return turn.tensor(cls.inner.restore(data[_AXES:], _of_matrix(plan, turn, cls.inner), number), plan.shape)


_AXES = 2
"""Bytes before the payload of the matrix: how many axes stand before those of the inputs, and how many these are."""


def head_of_turn(turn: Turn) -> bytes:
    """What stands before the payload of a matrix."""
    return bytes((turn.front, turn.inputs))


def _of_matrix(plan: TensorPlan, turn: Turn, kind: type[Grid]) -> TensorPlan:
    """The plan of a tensor's matrix."""
    return dataclasses.replace(plan, shape=turn.shape(plan.shape), codebook=kind.kind)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrellisTurned(Turned):
    """A matrix (outputs, inputs) of multiples of its plan's step that follow the paths of a trellis."""

    kind: ClassVar[str] = "trellis-turned"
    inner: ClassVar[type[Grid]] = Trellis

    @property
    def matrix(self) -> Trellis:
        return Trellis(self.name, self.turn.codes(self.codes))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class GridTurnedRows(Turned):
    """A matrix (outputs, inputs) of multiples of a step for each of its rows."""

    kind: ClassVar[str] = "grid-turned-rows"
    inner: ClassVar[type[GridRows]] = GridRows
    exponents: Codes
    """Of the rows of the matrix."""

    def digest(self, payload: bytes) -> int:
        return _with_exponents(self.exponents, Turned.digest(self, payload))

    @property
    def matrix(self) -> GridRows:
        return self.inner(self.name, self.turn.codes(self.codes), self.exponents)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrellisTurnedRows(GridTurnedRows):
    """The same on the paths of a trellis."""

    kind: ClassVar[str] = "trellis-turned-rows"
    inner: ClassVar[type[GridRows]] = TrellisRows


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class GridColumns(GridTurnedRows):
    """A matrix (outputs, inputs) of multiples of a step for each of its rows, times a factor for each column."""

    kind: ClassVar[str] = "grid-columns"
    columns: Codes
    """`f_j` of the columns of the matrix."""

    def digest(self, payload: bytes) -> int:
        return _with_exponents(self.columns, GridTurnedRows.digest(self, payload))

    def before(self, plan: TensorPlan) -> bytes:
        _check(plan, self.columns, self.turn.shape(plan.shape)[1:], "columns")
        return head_of_turn(self.turn) + head_of_rows(self.columns)

    @classmethod
    def start(cls, data: memoryview) -> int:
        return _AXES + _LENGTH + len(_exponents_in(data[_AXES:], "column"))

    @classmethod
    def columns_of(cls, data: memoryview, plan: TensorPlan) -> Codes:
        return _exponents(data[_AXES:], cls.turn_of(data, plan).shape(plan.shape)[1], "column")

    @classmethod
    def restore(cls, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
        turn = cls.turn_of(data, plan)
        matrix, of_matrix = _of_matrix(plan, turn, cls.inner), data[cls.start(data) :]
        steps = _row_steps(matrix, cls.inner.exponents_of(of_matrix, matrix))
        codes = torch.from_numpy(cls.inner.codes_of(of_matrix, matrix))
        found = rows.scaled(codes, steps, torch_dtype(plan.dtype), across=cls.columns_of(data, plan))
        return turn.tensor(found, plan.shape)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrellisColumns(GridColumns):
    """The same on the paths of a trellis."""

    kind: ClassVar[str] = "trellis-columns"
    inner: ClassVar[type[GridRows]] = TrellisRows


class Listed(Coded):
    """A compressed tensor: indices into a codebook of K entries of d weights."""

    __slots__ = ()
    action: ClassVar[Action] = "compress"
    indices: npt.NDArray[np.integer]

    @property
    @abc.abstractmethod
    def entries(self) -> Floats32:
        """(K, d)."""

    def read(self) -> npt.NDArray[np.integer]:
        return self.indices

    def head(self) -> bytes:
        try:
            return codebook.put(self.entries)
        except MismatchError as error:
            raise MismatchError(f"tensor {self.name!r}: {error.fact}", got=error.got, wanted=error.wanted) from error

    @classmethod
    def indices_shape(cls, plan: TensorPlan, width: int) -> tuple[int, ...]:
        """The shape of indices into entries of `width` weights; raises `CorruptFileError` if there can be no such."""
        if width != 1:
            raise CorruptFileError("a codebook of impossible size", got=f"entries of {width} weights", wanted=1)
        return plan.shape

    @classmethod
    def behind(cls, data: memoryview, plan: TensorPlan) -> tuple[int, tuple[int, ...]]:
        entries, start = codebook.take(data)
        return start, cls.indices_shape(plan, entries.shape[1])

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
    """`ceil(size / d)` of them; if the vectors hold more weights than the tensor, those at the end are dropped."""

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
