"""Turns the bytes of numbers into integers of the same order: the larger number has the larger integer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from opq.base.dtypes import DTYPES

Patterns = npt.NDArray[np.signedinteger[Any]]
"""int8, int16, int32 or int64."""

_FRACTION = {"F16": 10, "BF16": 7, "F32": 23, "F64": 52}
"""Bits of the mantissa, for types that can be cast and that are classed by exponent."""


@dataclasses.dataclass(frozen=True, slots=True)
class Element:
    """How the elements of a type are read as integers."""

    width: int
    """Bytes of each integer."""
    floating: bool
    """Whether the bits are a sign and a magnitude, as those of floats."""
    fraction: int = 0
    """Bits of the mantissa, which stand below the exponent; 0 for types that are not classed by exponent."""

    @property
    def dtype(self) -> np.dtype[np.signedinteger[Any]]:
        """The integers' type, little-endian."""
        return np.dtype(f"<i{self.width}")


def element(dtype: str) -> Element:
    """How a type is read, by its safetensors name. A complex number is read as two floats."""
    if dtype == "C64":
        return element("F32")
    known = DTYPES[dtype]
    floating = known.is_floating_point and dtype != "F8_E8M0"
    return Element(known.itemsize, floating, _FRACTION.get(dtype, 0))


def in_order(data: bytes, kind: Element) -> Patterns:
    """The integers of elements; a larger float has a larger integer, and -0 comes just before +0."""
    p: Patterns = np.frombuffer(data, kind.dtype)
    return _turned(p) if kind.floating else p


def out_of_order(m: Patterns, kind: Element) -> bytes:
    """The inverse of `in_order`."""
    return np.ascontiguousarray(_turned(m) if kind.floating else m, kind.dtype).tobytes()


def _turned(p: Patterns) -> Patterns:
    """Inverts all bits but the sign of negative integers, which is its own inverse."""
    found: Patterns = p ^ ((p >> (8 * p.itemsize - 1)) & np.iinfo(p.dtype).max)
    return found


def exponents(m: Patterns, kind: Element) -> npt.NDArray[np.int64]:
    """The exponent fields of floats that `in_order` turned into integers."""
    p = m ^ (m >> (8 * m.itemsize - 1))  # the magnitude
    return (p >> kind.fraction).astype(np.int64)


def castable(old: str, new: str) -> bool:
    """Whether both are floating-point types, and different ones, so that one tells about the other's numbers."""
    return old != new and old in _FRACTION and new in _FRACTION


def cast(data: bytes, old: str, new: str) -> bytes:
    """Casts elements from one type to another; numbers that are not finite become 0.

    A cast is exact where possible. Otherwise numbers are rounded to the nearest, ties to even, first to F32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = _floats(data, old)
        values = np.where(np.isfinite(values), values, values.dtype.type(0))
        if new == "F64":
            return values.astype("<f8").tobytes()
        single = values.astype("<f4")
        if new == "F32":
            return single.tobytes()
        if new == "F16":
            return single.astype("<f2").tobytes()
    bits = single.view("<u4")
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype("<u2").tobytes()


def _floats(data: bytes, dtype: str) -> npt.NDArray[np.floating[Any]]:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
