"""The kinds of payload of kept tensors: on a fine grid, by logarithms, bit for bit, or one integer."""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import ClassVar

import numpy as np
import torch

from opq.base.arrays import Codes
from opq.base.dtypes import torch_dtype
from opq.errors import CorruptFileError, MismatchError
from opq.file.payload import Coded, Payload, Place, Stored
from opq.plan import TensorPlan
from opq.quantizing.grid import densely, saturated, scaled

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""The integer types of tensors whose single element the index can hold."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Fine(Coded):
    """A kept tensor on its own fine grid: `step` times the codes."""

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
    """A tensor kept bit for bit."""

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


def _same(item: Raw | Scalar, plan: TensorPlan) -> None:
    item._fits(plan, tuple(item.tensor.shape))
    if item.tensor.dtype != torch_dtype(plan.dtype):
        got = item.tensor.dtype
        raise MismatchError(f"tensor {plan.name!r}: type of the stored tensor", got=got, wanted=plan.dtype)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor in row-major order, little-endian."""
    return bytes(raw_view(tensor))


def raw_view(tensor: torch.Tensor) -> memoryview:
    """`raw_bytes` without a copy, if the tensor is laid out like this already."""
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
