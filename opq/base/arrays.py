"""Types of arrays, by what they hold. Shapes are said where an array is used."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[np.int32]
"""Symbols as the entropy coder takes them."""
Codes = npt.NDArray[np.int16]
"""Integer codes of weights, at most `format_v1.LARGEST_CODE` in magnitude."""

Narrow = npt.NDArray[np.int8] | npt.NDArray[np.int16]
"""Codes in one byte each, or in two."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Reals = npt.NDArray[np.floating]
Floats32 = npt.NDArray[np.float32]


def narrow(codes: Codes) -> Narrow:
    """Codes in one byte each if that is enough."""
    return codes.astype(np.int8) if codes.size and codes.min() > -128 and codes.max() < 128 else codes
