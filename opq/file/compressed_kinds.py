"""The kinds of payload of compressed tensors: codes on a grid, on a trellis, or into a codebook."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from opq.base.arrays import Codes, Floats32, Reals
from opq.base.dtypes import torch_dtype
from opq.coding import entropy
from opq.errors import CorruptFileError, MismatchError
from opq.file import codebook
from opq.file.payload import Coded
from opq.plan import Action, TensorPlan
from opq.quantizing import trellis
from opq.quantizing.grid import densely, saturated, scaled


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
        k = entropy.decode(data, plan.shape)
        return trellis.numbers(k, out=k)


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
