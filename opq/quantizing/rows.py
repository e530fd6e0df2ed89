"""Steps by row and column: a tensor whose rows differ widely in scale has a step for each, in quarter octaves.

Row i of a tensor, along its first axis, has the step `Delta 2^(e_i / 4)`, rounded once to float32, with an integer
`e_i`. So the tensor is quantized as if its rows had been divided by `2^(e_i / 4)` before, with one step for all. In a
matrix column j may have a factor of its own, `2^(f_j / 4)`.
"""

from __future__ import annotations

import numpy as np
import torch

from opq.base.arrays import Codes, Floats, Floats32
from opq.base.format_v1 import FARTHEST_ROW, QUARTERS
from opq.quantizing.grid import saturated

_FINEST = 2.0**-20
"""Rows are scaled as if their mean squares and sensitivities were at least the square of this, as a fraction of the
median row's. A choice: errors of rows that are nearly zero need not be small beside them."""
_PIECE = 1 << 16
"""Weights decoded at once, at least a row. A choice: they fit into a processor's cache."""


def exponents(w: torch.Tensor) -> Codes:
    """`e_i` by the root mean square of each row of `w` (rows, ...), the median row's being 0: int16, (rows,)."""
    return in_quarters(w.detach().reshape(len(w), -1).double().square().mean(1).cpu().numpy(), 0.5)


def in_quarters(values: Floats, power: float) -> Codes:
    """`e_i` of rows whose scales are to be as `values ** power` (rows,), the median row's being 0: int16, (rows,)."""
    middle = float(np.median(values[values > 0])) if bool((values > 0).any()) else 1.0
    quarters = np.rint(4 * power * np.log2(np.maximum(values / middle, _FINEST**2)))
    e: Codes = np.clip(quarters, -FARTHEST_ROW, FARTHEST_ROW).astype(np.int16)
    return e


def spread(w: torch.Tensor) -> float:
    """Bits per weight that one step for all rows of `w` takes beyond steps in proportion to the rows, at high rates.

    It is half the logarithm of the arithmetic over the geometric mean of the rows' mean squares; rows of zeros are
    left out.
    """
    power = w.detach().reshape(len(w), -1).double().square().mean(1)
    power = power[power > 0]
    return float(torch.log2(power.mean()) - torch.log2(power).mean()) / 2 if power.numel() else 0.0


def factors(e: Codes) -> Floats:
    """`2^(e_i / 4)` by row, in float64: one of four numbers, times a power of two."""
    whole = np.asarray(e, np.int64)
    powers: Floats = np.ldexp(np.asarray(QUARTERS)[whole & 3], whole >> 2)
    return powers


def steps(step: float, e: Codes) -> Floats32:
    """The step of each row; infinite or 0 where float32 cannot hold it."""
    with np.errstate(over="ignore", under="ignore"):
        return (step * factors(e)).astype(np.float32)


def divided(w: torch.Tensor, e: Codes, f: Codes | None = None) -> torch.Tensor:
    """The rows of `w` divided by `2^(e_i / 4)`, its columns by `2^(f_j / 4)`: float32, of a float64 tensor float64."""
    by = torch.from_numpy(factors(e)).reshape(-1, *[1] * (w.dim() - 1))
    whole = w.double() / by
    whole = whole if f is None else whole.div_(torch.from_numpy(factors(f)))
    return whole.to(w.dtype if w.dtype == torch.float64 else torch.float32)


def scaled(q: torch.Tensor, steps: Floats32, dtype: torch.dtype, *, across: Codes | None = None) -> torch.Tensor:
    """Codes times the step of their row, in float64 and rounded once to `dtype`; no weight becomes infinite.

    Args:
        across: of a matrix `f_j` of each column, by whose `2^(f_j / 4)` the products are multiplied before.
    """
    dense = torch.empty(q.shape, dtype=dtype)
    if not q.numel():
        return dense
    matrix = q.reshape(len(steps), -1)
    rows = max(1, _PIECE // matrix.shape[1])
    by = torch.from_numpy(steps).double().reshape(-1, 1)
    of_columns = None if across is None else torch.from_numpy(factors(across))
    for out, some, of_rows in zip(*(torch.split(t, rows) for t in (dense.view_as(matrix), matrix, by)), strict=True):
        weights = some.double() * of_rows
        out.copy_(saturated(weights if of_columns is None else weights * of_columns, dtype))
    return dense
