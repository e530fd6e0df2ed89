"""Floats in the stack, in as few bytes as hold them exactly.

Numbers that a plan rounds beforehand (`rounded`) take two or three bytes; any other finite number takes four or eight.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from opq.ans import Reader, Writer, uniform
from opq.errors import CorruptFileError

WIDTHS = (16, 24, 32, 64)
"""Bits: the upper half of a float32, its upper three quarters, all of it, a float64."""

_SMALLEST, _LARGEST = 2.0**-126, 3.4e38
"""Between these float32 is at its full precision."""

_CODES = uniform(len(WIDTHS))


def rounded(value: float, width: int) -> float:
    """The nearest number that `width` bits hold; numbers beyond float32, large or small, stay as they are."""
    if width == 64 or not _SMALLEST <= abs(value) < _LARGEST:
        return value
    drop = 32 - width
    bits = _float32(value)
    half = 1 << drop - 1 if drop else 0
    return _value((bits + half) >> drop, width) if (bits + half) >> drop << drop < 1 << 32 else value


def put(writer: Writer, values: Sequence[float]) -> None:
    """Writes finite numbers with one width for all."""
    code = next(k for k, width in enumerate(WIDTHS) if all(fits(v, width) for v in values))
    writer.put(code, _CODES)
    for value in values:
        writer.number(_bits(value, WIDTHS[code]), WIDTHS[code])


def take(reader: Reader, amount: int) -> list[float]:
    """The inverse of `put`; raises `CorruptFileError` on numbers that are not finite."""
    width = WIDTHS[reader.take(_CODES)]
    values = [_value(reader.number(width), width) for _ in range(amount)]
    if not all(map(math.isfinite, values)):
        raise CorruptFileError("a number in the index is not finite")
    return values


def fits(value: float, width: int) -> bool:
    """Whether `width` bits hold a finite number exactly."""
    if width == 64:
        return True
    return abs(value) < _LARGEST and _bits(value, width) << (32 - width) == _float32(value) and _exact(value)


def _exact(value: float) -> bool:
    return _value(_float32(value), 32) == value


def _float32(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def _bits(value: float, width: int) -> int:
    if width == 64:
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    return _float32(value) >> (32 - width)


def _value(bits: int, width: int) -> float:
    if width == 64:
        return float(struct.unpack("<d", struct.pack("<Q", bits))[0])
    return float(struct.unpack("<f", struct.pack("<I", bits << (32 - width)))[0])
