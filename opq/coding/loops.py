"""Counting of symbols in machine code. Imported through `classes.LOOPS` only; see `base.kernels`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Codes, Floats, Ints
from opq.base.kernels import kernel

_CLASSES = "uint8[::1], uint8[::1], uint8[::1]"


@kernel(f"void(int16[:, :, ::1], {_CLASSES}, intp, int64[:, ::1])")
def by_class(
    symbols: Codes,
    r: npt.NDArray[np.uint8],
    c: npt.NDArray[np.uint8],
    d: npt.NDArray[np.uint8],
    first: int,
    counts: Ints,
) -> None:
    """The twin of `classes.by_class`.

    Args:
        symbols: (rows, columns, kernel).
        r, c, d: the class of each index of the three axes.
        first: as in `classes.Contexts`.
        counts: (classes, alphabet), added to.
    """
    rows, columns, kernel = symbols.shape
    last = len(counts) - 1
    for i in range(rows):
        for j in range(columns):
            for k in range(kernel):
                of = int(r[i]) + int(c[j]) + int(d[k]) - first
                counts[min(max(of, 0), last), symbols[i, j, k]] += 1


@kernel(f"void(int16[:, :, ::1], {_CLASSES}, intp, float64[:, :, ::1])")
def by_index(
    symbols: Codes,
    r: npt.NDArray[np.uint8],
    c: npt.NDArray[np.uint8],
    d: npt.NDArray[np.uint8],
    axis: int,
    counts: Floats,
) -> None:
    """The twin of `classes._by_index`.

    Args:
        symbols: (rows, columns, kernel).
        r, c, d: the class of each index of the three axes.
        axis: whose indices are counted apart.
        counts: (indices, classes of the other two axes together, alphabet), added to.
    """
    rows, columns, kernel = symbols.shape
    for i in range(rows):
        for j in range(columns):
            for k in range(kernel):
                if axis == 0:
                    index, others = i, int(c[j]) + int(d[k])
                elif axis == 1:
                    index, others = j, int(r[i]) + int(d[k])
                else:
                    index, others = k, int(r[i]) + int(c[j])
                counts[index, others, symbols[i, j, k]] += 1
