"""What a file holds of one tensor, and the bytes of it: the two directions side by side."""

from __future__ import annotations

import dataclasses
import math
import struct

import numpy as np
import numpy.typing as npt
import torch

from opq.base.arrays import Codes, Floats32
from opq.base.dtypes import torch_dtype
from opq.coding import entropy
from opq.errors import CorruptFileError, MismatchError
from opq.plan import TensorPlan
from opq.quantizing import trellis
from opq.quantizing.grid import densely, saturated, scaled


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A compressed tensor: integer multiples of its plan's step."""

    name: str
    codes: Codes


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Trellis:
    """A compressed tensor: integer multiples of its plan's step that follow the paths of `opq.trellis`."""

    name: str
    codes: Codes


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A compressed tensor: indices into a list of values (at most 32767)."""

    name: str
    values: Floats32
    indices: npt.NDArray[np.integer]
    """In the tensor's shape."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A compressed tensor: indices into a list of vectors of d weights that follow each other in row-major order."""

    name: str
    centroids: Floats32
    """(K, d)."""
    indices: npt.NDArray[np.integer]
    """`ceil(size / d)` of them; what the last vector has too much is dropped."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Fine:
    """A kept tensor on a fine grid of its own: `step` times the codes."""

    name: str
    codes: Codes
    step: float


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Log:
    """A kept tensor of positive numbers: `2 ** (code / per_octave)`."""

    name: str
    codes: Codes
    per_octave: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """A tensor kept bit by bit."""

    name: str
    tensor: torch.Tensor


Stored = Grid | Trellis | Table | Product | Fine | Log | Raw
"""A shared tensor stands in the plan only."""

KINDS = ("grid", "table", "product", "fine", "log", "raw", "share", "scalar", "trellis")
"""Their numbers in the file. `share` and `scalar` (an integer in the index) have no bytes of their own."""

MOST_AXES = 32
"""Axes that a tensor in a file may have."""

CODED_TYPES = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ")
"""Element types that codes may stand for."""

COMPRESSED = ("grid", "table", "product", "trellis")


@dataclasses.dataclass(frozen=True, slots=True)
class Drafted:
    """The bytes of a stored tensor, decided but not made."""

    kind: str
    head: bytes
    draft: entropy.Draft | None = None
    codes: npt.NDArray[np.integer] | None = None

    @property
    def size(self) -> int:
        """Bytes, within a few."""
        return len(self.head) + (self.draft.size if self.draft else 0)

    def bytes(self) -> bytes:
        if self.draft is None or self.codes is None:
            return self.head
        return self.head + entropy.write(self.draft, self.codes)


def draft(item: Stored, plan: TensorPlan) -> Drafted:
    """How a stored tensor is coded; raises `MismatchError` where it does not fit its plan."""
    kind = type(item).__name__.lower()
    if isinstance(item, Raw):
        _fits(plan, kind, tuple(item.tensor.shape), item.tensor.dtype)
        return Drafted(kind, raw_bytes(item.tensor))
    if isinstance(item, Product):
        amount = -(-plan.size // max(item.centroids.shape[1], 1))
        _fits(plan, kind, plan.shape if item.indices.size == amount else item.indices.shape)
        codes: npt.NDArray[np.integer] = item.indices.reshape(-1)
    else:
        codes = item.indices if isinstance(item, Table) else item.codes
        _fits(plan, kind, codes.shape)
        codes = trellis.paths(item.codes) if isinstance(item, Trellis) else codes
    return Drafted(kind, _head(item), entropy.draft(codes), codes)


def restore(kind: str, data: memoryview, plan: TensorPlan, number: float) -> torch.Tensor:
    """The dense tensor of a payload.

    Args:
        number: of `fine` the step, of `log` the codes an octave, of `scalar` the integer itself.
    """
    dtype = torch_dtype(plan.dtype)
    if kind == "scalar":
        return torch.tensor([int(number)], dtype=dtype).reshape(plan.shape)
    if kind == "raw":
        return raw_tensor(data, plan.shape, dtype)
    values, position = _values(kind, data)
    codes = _decoded(kind, data[position:], plan, values)
    if kind in ("grid", "trellis", "fine"):
        return scaled(torch.from_numpy(codes), number if kind == "fine" else plan.step, dtype)
    if kind == "log":
        with np.errstate(over="ignore"):
            return densely(torch.from_numpy(codes), plan.shape, dtype, lambda q: _powers(q, number, dtype))
    if codes.size and (codes.min() < 0 or codes.max() >= len(values)):
        raise CorruptFileError("an index beyond the codebook", got=int(codes.max()), wanted=f"below {len(values)}")
    book = saturated(torch.from_numpy(values.astype(np.float64)), dtype)
    return densely(torch.from_numpy(codes), plan.shape, dtype, lambda q: book[q.long()])


def codes_of(kind: str, data: memoryview, plan: TensorPlan) -> Codes:
    """The integer codes of a payload: of `product` one-dimensional, else in the tensor's shape."""
    values, position = _values(kind, data)
    return _decoded(kind, data[position:], plan, values)


def _decoded(kind: str, coded: memoryview, plan: TensorPlan, values: npt.NDArray[np.floating]) -> Codes:
    codes = entropy.decode(coded, indices_shape(kind, plan, values))
    return trellis.numbers(codes) if kind == "trellis" else codes


def indices_shape(kind: str, plan: TensorPlan, values: npt.NDArray[np.floating]) -> tuple[int, ...]:
    return (-(-plan.size // values.shape[1]),) if kind == "product" else plan.shape


def _powers(codes: torch.Tensor, per_octave: float, dtype: torch.dtype) -> torch.Tensor:
    return saturated(torch.from_numpy(np.exp2(codes.numpy() / per_octave)), dtype)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor in row-major order, little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


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


def _fits(plan: TensorPlan, kind: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    wanted = "compress" if kind in COMPRESSED else "keep"
    if plan.action != wanted or (wanted == "compress" and plan.codebook != kind):
        raise MismatchError(f"tensor {plan.name!r}: stored as {kind}", wanted=f"{plan.action}, {plan.codebook}")
    if len(shape) > MOST_AXES:
        raise MismatchError(f"tensor {plan.name!r}: too many axes", got=len(shape), wanted=f"at most {MOST_AXES}")
    if tuple(shape) != plan.shape:
        raise MismatchError(f"tensor {plan.name!r}: shape of the stored tensor", got=shape, wanted=plan.shape)
    if kind != "raw" and plan.dtype not in CODED_TYPES:
        raise MismatchError(f"tensor {plan.name!r}: stored by codes", got=plan.dtype, wanted=", ".join(CODED_TYPES))
    if dtype is not None and dtype != torch_dtype(plan.dtype):
        raise MismatchError(f"tensor {plan.name!r}: type of the stored tensor", got=dtype, wanted=plan.dtype)


def _head(item: Stored) -> bytes:
    """The codebook: bytes a number (2 or 4), how many entries, of what length, and the numbers."""
    if not isinstance(item, Table | Product):
        return b""
    values = np.ascontiguousarray(item.values if isinstance(item, Table) else item.centroids, np.float32)
    if not 0 < len(values) <= 0x7FFF or not np.isfinite(values).all():
        raise MismatchError(f"tensor {item.name!r}: codebook", got=len(values), wanted="1 to 32767 finite entries")
    width = values.shape[1] if isinstance(item, Product) else 1
    half = np.clip(values, -65504, 65504).astype("<f2")
    short = bool((half.astype(np.float32) == values).all())
    body = half.tobytes() if short else values.astype("<f4").tobytes()
    return struct.pack("<BHH", 2 if short else 4, len(values), width) + body


def _values(kind: str, data: memoryview) -> tuple[npt.NDArray[np.floating], int]:
    """The codebook and where the codes begin; empty where the kind has none."""
    if kind not in ("table", "product"):
        return np.empty((0, 1), np.float32), 0
    if len(data) < 5:
        raise CorruptFileError("a codebook is cut off", got=f"{len(data)} bytes", wanted="at least 5")
    each, number, width = struct.unpack("<BHH", data[:5])
    end = 5 + each * number * width
    if each not in (2, 4) or not number or not width or end > len(data) or (kind == "table" and width != 1):
        raise CorruptFileError("a codebook of impossible size", got=f"{number} x {width} of {each} bytes")
    values = np.frombuffer(data[5:end], "<f2" if each == 2 else "<f4").reshape(number, width)
    return (values if kind == "product" else values[:, 0]), end
