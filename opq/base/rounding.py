"""Numbers rounded to a few bits, as the file holds them."""

from __future__ import annotations

import struct

WIDTHS = (16, 24, 32, 64)
"""Bits: the upper half of a float32, its upper three quarters, all of it, a float64."""

_SMALLEST, _LARGEST = 2.0**-126, 3.4e38
"""Between these float32 is at its full precision."""


def rounded(value: float, width: int) -> float:
    """The nearest number that `width` bits hold; numbers beyond float32, large or small, stay as they are."""
    if width == 64 or not _SMALLEST <= abs(value) < _LARGEST:
        return value
    drop = 32 - width
    bits = _float32(value)
    half = 1 << drop - 1 if drop else 0
    return value_of((bits + half) >> drop, width) if (bits + half) >> drop << drop < 1 << 32 else value


def fits(value: float, width: int) -> bool:
    """Whether `width` bits hold a finite number exactly."""
    if width == 64:
        return True
    return abs(value) < _LARGEST and bits_of(value, width) << (32 - width) == _float32(value) and _exact(value)


def _exact(value: float) -> bool:
    return value_of(_float32(value), 32) == value


def _float32(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def bits_of(value: float, width: int) -> int:
    if width == 64:
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    return _float32(value) >> (32 - width)


def value_of(bits: int, width: int) -> float:
    if width == 64:
        return float(struct.unpack("<d", struct.pack("<Q", bits))[0])
    return float(struct.unpack("<f", struct.pack("<I", bits << (32 - width)))[0])
