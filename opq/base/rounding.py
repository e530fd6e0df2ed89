"""Numbers rounded to a few bits, as the file holds them."""

from __future__ import annotations

import struct

_SMALLEST, _LARGEST = 2.0**-126, 3.4e38
"""The smallest normal number of float32, and just below its largest: between them it has its full precision."""


def rounded(value: float, width: int) -> float:
    """The nearest number that `width` bits hold; a number outside the range of float32 is left as it is."""
    if width == 64 or not _SMALLEST <= abs(value) < _LARGEST:
        return value
    drop = 32 - width
    pattern = _float32(value) + (1 << drop - 1 if drop else 0)
    return value_of(pattern >> drop, width) if pattern >> drop << drop < 1 << 32 else value


def fits(value: float, width: int) -> bool:
    """Whether `width` bits hold a finite number exactly."""
    if width == 64:
        return True
    return abs(value) < _LARGEST and pattern_of(value, width) << (32 - width) == _float32(value) and _exact(value)


def _exact(value: float) -> bool:
    return value_of(_float32(value), 32) == value


def _float32(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def pattern_of(value: float, width: int) -> int:
    """The `width` bits that hold a number, as an integer."""
    if width == 64:
        return int(struct.unpack("<Q", struct.pack("<d", value))[0])
    return _float32(value) >> (32 - width)


def value_of(pattern: int, width: int) -> float:
    """The inverse of `pattern_of`."""
    if width == 64:
        return float(struct.unpack("<d", struct.pack("<Q", pattern))[0])
    return float(struct.unpack("<f", struct.pack("<I", pattern << (32 - width)))[0])
