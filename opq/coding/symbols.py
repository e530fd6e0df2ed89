"""Codes <-> symbols: small magnitudes are symbols of their own, larger ones eight to the octave with bits behind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Ints
from opq.base.format_v1 import DIRECT as DIRECT
from opq.base.format_v1 import LARGEST_CODE


def _symbol_tables() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Of every int16 code: its symbol, and how many bits follow; of every symbol + 128: its smallest magnitude."""
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
EDGES = (*map(int, BASE[128 : 129 + LAST]), 2**15)
"""The smallest magnitude of each symbol, and the first beyond."""


def bits_behind(low: int, high: int) -> Ints:
    """How many bits follow each symbol."""
    symbols = np.abs(np.arange(low, high + 1))
    return np.where(symbols < DIRECT, 0, 2 + (symbols - DIRECT) // 8)


def any_behind(low: int, size: int) -> bool:
    """Whether some of the symbols have bits behind them."""
    return low <= -DIRECT or low + size > DIRECT
