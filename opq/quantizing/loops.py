"""The trellis' search and error feedback in machine code. Imported through `trellis.LOOPS` only; see `base.kernels`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Codes, Floats32, Ints
from opq.base.format_v1 import LARGEST_PATH, RUN
from opq.base.kernels import inner, kernel

_F = np.float32
_TILE = 16
"""Columns read together: 16 float32 fill a cache line of 64 bytes."""


# --- the trellis' search ----------------------------------------------------------------------


@inner
def _step(even: float, odd: float, even_up: float, odd_up: float, old: Floats32, new: Floats32, parity: Any) -> None:
    """One row of `search`: the least cost of every state, and whether an odd code led there.

    Args:
        even, odd: what the best code of this parity costs; with `_up`, on the shifted grid.
        old: (64,) cost of each state before the row.
        new: (64,) cost of each state after it; filled.
        parity: (64,) whether the best code that leads to each state is odd; filled.
    """
    for j in range(16):
        shifted = ((j >> 3) ^ (j >> 1)) & 1
        z = even_up if shifted else even
        o = odd_up if shifted else odd
        low, high = old[2 * j], old[2 * j + 1]
        a, b, c, d = low + z, high + o, high + z, low + o
        parity[j] = b < a
        parity[32 + j] = d < c
        new[j] = min(a, b)
        new[32 + j] = min(c, d)
    for j in range(16):
        shifted = ((j >> 3) ^ (j >> 1)) & 1
        z = even_up if shifted else even
        o = odd_up if shifted else odd
        low, high = old[32 + 2 * j], old[33 + 2 * j]
        a, b, c, d = low + z, high + o, high + z, low + o
        parity[16 + j] = d < c
        parity[48 + j] = b < a
        new[16 + j] = min(c, d)
        new[48 + j] = min(a, b)


@inner
def _priced(x: Floats32, length: int, bits: Floats32, price: float, prices: Floats32, codes: Codes, k: Any) -> None:
    """The best code of each kind, `2 shift + parity`, and what it costs, for the first `length` numbers of `x`.

    Args:
        x: (RUN,) numbers in units of the step.
        bits: what each `k` costs; that of `k = 0` is in the middle.
        prices, codes: (4, RUN), filled.
        k: (RUN,) scratch space.
    """
    middle = len(bits) // 2
    reach = min(middle, LARGEST_PATH) // 2 * 2
    for kind in range(4):
        shift, odd = _F(kind >> 1), _F(kind & 1)
        low, high = odd - _F(reach), odd + _F(reach - 2)
        for t in range(length):
            best = _F(2) * np.rint((x[t] - shift) / _F(4) - odd / _F(2)) + odd
            best = best if best > low else low
            best = best if best < high else high
            error = x[t] - (_F(2) * best + shift)
            prices[kind, t] = error * error
            k[t] = np.int32(best)
        for t in range(length):
            prices[kind, t] += price * bits[k[t] + middle]
            codes[kind, t] = 2 * k[t] + (kind >> 1)


@kernel("void(float32[:, ::1], float32[::1], float32, intp[::1], int16[:, ::1])")
def search(x: Floats32, bits: Floats32, price: float, states: npt.NDArray[np.intp], out: Codes) -> None:
    """The twin of `trellis.nearest`.

    Here states are numbered by the content of a shift register, so that the two predecessors of a state have
    neighbouring numbers: with `m_t = p_t + m_(t-1) + m_(t-6)` (mod 2) for parities `p`, a state is the last six `m`,
    the newest one being the highest bit; its shift is `m_(t-2) + m_(t-4)`.

    Args:
        x: (rows, columns).
        bits: as in `trellis.nearest`.
        price: of a bit.
        states: (64,) the number here of each state of `trellis`, whose order decides between equal costs.
        out: (rows, columns), filled with codes.
    """
    rows, columns = x.shape
    length = min(rows, RUN)
    numbers = np.zeros((_TILE, RUN), np.float32)
    prices, codes = np.empty((4, RUN), np.float32), np.empty((4, RUN), np.int16)
    odd, k = np.empty((RUN + 1, 64), np.bool_), np.empty(RUN, np.int32)
    cost, other = np.empty(64, np.float32), np.empty(64, np.float32)
    for top in range(0, rows, RUN):
        inside = min(RUN, rows - top)
        for c in range(_TILE):
            for t in range(inside, length):  # paths end in rows of zeros
                numbers[c, t] = 0
        for left in range(0, columns, _TILE):
            wide = min(_TILE, columns - left)
            for t in range(inside):
                for c in range(wide):
                    numbers[c, t] = x[top + t, left + c]
            for c in range(wide):
                _priced(numbers[c], length, bits, price, prices, codes, k)
                for s in range(64):
                    cost[s] = _F(1e30)
                cost[0] = 0
                for t in range(0, length - 1, 2):
                    _step(prices[0, t], prices[1, t], prices[2, t], prices[3, t], cost, other, odd[t])
                    u = t + 1
                    _step(prices[0, u], prices[1, u], prices[2, u], prices[3, u], other, cost, odd[u])
                if length % 2:
                    t = length - 1
                    _step(prices[0, t], prices[1, t], prices[2, t], prices[3, t], cost, other, odd[t])
                    for s in range(64):
                        cost[s] = other[s]
                state = 0
                for s in range(64):
                    if cost[states[s]] < cost[state]:
                        state = states[s]
                for t in range(length - 1, -1, -1):
                    j, newest, parity = state & 31, state >> 5, int(odd[t, state])
                    if t < inside:
                        out[top + t, left + c] = codes[2 * (((j >> 3) ^ (j >> 1)) & 1) + parity, t]
                    state = 2 * j + (newest ^ (j >> 4) ^ parity)


@kernel("void(float32[::1], intp, int64[::1])")
def counted(x: Floats32, middle: int, counts: Ints) -> None:
    """The counts of `trellis.costs`: how often numbers (n,) are rounded to each `k`, on either grid.

    Args:
        middle: where `k = 0` is counted; no `k` is as large in magnitude.
        counts: (2 middle,), added to.
    """
    for i in range(len(x)):
        counts[np.int64(np.rint(x[i] / _F(2))) + middle] += 1
        counts[np.int64(np.rint((x[i] - _F(1)) / _F(2))) + middle] += 1


# --- error feedback ---------------------------------------------------------------------------


@inner
def _pass_on(j: int, high: int, g: int, values: Floats32, errors: Floats32, n: Floats32) -> None:
    """Passes the error of coordinate j on to the coordinates after it, up to high, in group g."""
    _, _, plans, rows = values.shape
    for i in range(j + 1, high):
        share = n[g, j, i]
        for p in range(plans):
            for r in range(rows):
                values[g, i, p, r] += share * errors[g, j, p, r]


@kernel(
    "void(float32[:, :, :, ::1], float32[:, :, :, ::1], float32[:, :, :, ::1], float32[:, :, ::1],"
    " float32[:, ::1], float32[:, ::1], float32[:, ::1], float32, intp, intp)"
)
def feed_grid(
    target: Floats32,
    values: Floats32,
    errors: Floats32,
    n: Floats32,
    step: Floats32,
    shift: Floats32,
    dead: Floats32,
    largest: float,
    low: int,
    high: int,
) -> None:
    """The twin of `feedback._Sweep._one_by_one` for the grids of several plans; letters and shapes as there.

    Args:
        largest: the largest code.
    """
    groups, _, plans, rows = values.shape
    for j in range(low, high):
        for g in range(groups):
            for p in range(plans):
                of_plan, up, least = step[p, 0], shift[p, 0], dead[p, 0]
                for r in range(rows):
                    x = values[g, j, p, r]
                    scaled = abs(x) / of_plan
                    level = np.floor(scaled + up)
                    level = _F(1) if level < _F(1) else level
                    level = largest if level > largest else level
                    level = math.copysign(level if scaled >= least else _F(0), x)
                    values[g, j, p, r] = level
                    errors[g, j, p, r] = target[g, j, 0, r] - level * of_plan
            _pass_on(j, high, g, values, errors, n)


@kernel(
    "void(float32[:, :, :, ::1], float32[:, :, :, ::1], float32[:, :, :, ::1], float32[:, :, ::1],"
    " float32, float32[::1], float32, intp[::1], intp, intp)"
)
def feed_paths(
    target: Floats32,
    values: Floats32,
    errors: Floats32,
    n: Floats32,
    step: float,
    bits: Floats32,
    price: float,
    states: npt.NDArray[np.intp],
    low: int,
    high: int,
) -> None:
    """The twin of `feedback._Sweep._one_by_one` for the paths of one plan; letters and shapes as in both."""
    groups, _, _, rows = values.shape
    x, codes = np.empty((groups * rows, 1), np.float32), np.empty((groups * rows, 1), np.int16)
    for j in range(low, high):
        for g in range(groups):
            for r in range(rows):
                x[g * rows + r, 0] = values[g, j, 0, r] / step
        search(x, bits, price, states, codes)
        for g in range(groups):
            for r in range(rows):
                code = _F(codes[g * rows + r, 0])
                values[g, j, 0, r] = code
                errors[g, j, 0, r] = target[g, j, 0, r] - code * step
            _pass_on(j, high, g, values, errors, n)
