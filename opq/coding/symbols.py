"""Codes <-> symbols.

A code of small magnitude is its own symbol. Larger magnitudes share eight symbols to the octave, and the remaining low
bits of the code follow uncoded: the bits behind the symbol.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Ints
from opq.base.format_v1 import DIRECT as DIRECT
from opq.base.format_v1 import LARGEST_CODE


def _symbol_tables() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Three lookup tables, for coding and decoding.

    Returns:
        at code + 2^15 the symbol of the code, at code + 2^15 the number of bits behind it, both (2^16,); at
        symbol + 128 the smallest magnitude that the symbol stands for, (256,).
    """
    magnitude = np.abs(np.arange(-(2**15), 2**15))
    exponent = np.frexp(np.maximum(magnitude, 1))[1] - 1
    behind = np.where(magnitude < DIRECT, 0, exponent - 3)
    symbol = np.where(magnitude < DIRECT, magnitude, DIRECT + 8 * (exponent - 5) + (magnitude >> behind) - 8)
    octave, eighth = np.divmod(np.maximum(np.abs(np.arange(-128, 128)) - DIRECT, 0), 8)
    base = np.where(np.abs(np.arange(-128, 128)) < DIRECT, np.abs(np.arange(-128, 128)), (8 + eighth) << (octave + 2))
    signs = np.where(np.arange(-(2**15), 2**15) < 0, -1, 1)
    return (signs * symbol).astype(np.int16), behind.astype(np.int16), np.minimum(base, LARGEST_CODE).astype(np.int16)


SYMBOL, BEHIND, BASE = _symbol_tables()
LAST = int(SYMBOL.max())
"""The largest symbol."""
EDGES = (*map(int, BASE[128 : 129 + LAST]), 2**15)
"""The smallest magnitude of each symbol 0 to `LAST`, and then the first magnitude beyond all."""


def bits_behind(low: int, high: int) -> Ints:
    """How many bits follow each symbol from `low` to `high`."""
    symbols = np.abs(np.arange(low, high + 1))
    return np.where(symbols < DIRECT, 0, 2 + (symbols - DIRECT) // 8)


def any_behind(low: int, size: int) -> bool:
    """Whether any of the symbols `low` to `low + size - 1` has bits behind it."""
    return low <= -DIRECT or low + size > DIRECT
