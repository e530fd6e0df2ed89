"""Trellis-coded quantization: a coarse grid that is shifted by half its step, or not, as the codes before it say.

Which of the two grids a weight is rounded to depends on the parities of the codes above it in its column, so a row of
choices is found together (Viterbi). The points of both grids lie twice as close as the codes need to tell apart: at
the same entropy the error is more than 1 dB smaller than on one grid, of the 1.53 dB that any quantizer of single
weights leaves (Marcellin and Fischer 1990; with entropy coding Joshi, Crump and Fischer 1995).

Letters: `n` a code, the weight is `step n`; `k = floor(n / 2)` what the file holds; `b` whether a grid is shifted, 0
before the first row. Down every column, anew every `RUN` rows,

    n_t = 2 k_t + b_t
    b_t = b_(t-1) + b_(t-6) + k_(t-2) + k_(t-4)   mod 2

the 64-state code of Ungerboeck (1987, table I: parity checks 103 and 024). Every `k` is the path of some `n`, so that a
file can hold none that is not. JPEG 2000's and VVC's eight states leave 0.2 dB more.
"""

from __future__ import annotations

import contextlib
import math
import threading
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Codes, Reals
from opq.base.format_v1 import FROM_PARITY, FROM_SHIFT, LARGEST_PATH, RUN, STATES
from opq.errors import CorruptFileError, MismatchError

States = npt.NDArray[np.uint8]

_T = TypeVar("_T", bound=np.generic)

_ONE = np.uint8(1)
_FROM_SHIFTS, _FROM_PARITIES = np.uint8(FROM_SHIFT), np.uint8(FROM_PARITY)

PRICE = 0.35
"""What a bit may cost in squared errors, in squares of the (fine) step: the slope of the error at high rates."""

LEAST = 1.5
"""Bits a weight from which on it pays: for Laplacian weights half a decibel at 2 bits, nothing here."""

ERROR = 0.26
"""Mean squared error in squares of the (fine) step while codes are not nearly all 0: 0.26 at 4 bits, 0.27 at 2."""

SAVED = 0.2
"""Bits a weight by which codes are shorter than those of a plain grid of that error, classes of weights included."""

_AT_ONCE = 1 << 11
"""Paths searched together: what they need beside the weights stays small."""

_NARROW, _narrow = 1 << 8, threading.Lock()
"""Fewer paths are searched by one thread at a time: their steps are so short that several threads wait for the
interpreter's lock most of the time, and take a fifth longer together."""


def step(rate: float, distortion: float, largest: float) -> float | None:
    """The (fine) step that has the error of a plain grid, in fewer bits; None where a trellis does not pay.

    Errors are what tensors are traded by, so those on a trellis and those on a grid then are worth the same together.

    Args:
        rate: bits a weight on the plain grid.
        distortion: its mean squared error.
        largest: the largest magnitude, which must have a code.
    """
    fine = math.sqrt(distortion / ERROR)
    return fine if rate >= LEAST and largest < fine * (2 * LARGEST_PATH - 1) else None


def paths(n: Codes) -> Codes:
    """`k`, what the file holds, of codes (rows, ...); int16, same shape.

    Raises:
        MismatchError: the codes follow no path.
    """
    k = n >> 1
    if not np.array_equal(n & 1, _shifts(k)):
        raise MismatchError("the codes follow no path of the trellis", wanted="what the search `nearest` found")
    return k


def numbers(k: Codes) -> Codes:
    """The inverse of `paths`: `n`, int16.

    Raises:
        CorruptFileError: a `k` whose `n` 16 bits do not hold.
    """
    if k.size and not -LARGEST_PATH <= int(k.min()) <= int(k.max()) <= LARGEST_PATH:
        raise CorruptFileError("a path beyond 16 bits", got=(int(k.min()), int(k.max())), wanted=f"+-{LARGEST_PATH}")
    return np.asarray(2 * k + _shifts(k))  # also without axes, where a sum is no array


def _shifts(k: Codes) -> Codes:
    """`b_t` of every code: whether its grid is shifted."""
    if not k.size:
        return np.zeros_like(k)
    odd = (k & 1).astype(np.uint8).reshape(k.shape[0] if k.ndim else 1, -1)
    runs = _runs(odd)
    shifts, state = np.empty_like(runs), np.zeros_like(runs[:, 0])
    for t in range(runs.shape[1]):
        shifts[:, t] = state & _ONE
        state = _next(state, runs[:, t])
    return shifts.reshape(-1, odd.shape[1])[: len(odd)].reshape(k.shape).astype(np.int16)


def _runs(table: npt.NDArray[_T]) -> npt.NDArray[_T]:
    """Rows (rows, columns) by run, the last one filled up with zeros: (runs, rows of a run, columns)."""
    rows, columns = table.shape
    number, length = -(-rows // RUN), min(rows, RUN)
    padded = np.zeros((number * length, columns), table.dtype)
    padded[:rows] = table
    return padded.reshape(number, length, columns)


def _next(state: States, parity: States) -> States:
    """The state after a code of this parity."""
    after: States = state >> _ONE ^ (state & _ONE) * _FROM_SHIFTS ^ parity * _FROM_PARITIES
    return after


# --- the search ------------------------------------------------------------------------------


def _machine() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Of every state, the two states before it and the kind of code that leads here, `2 shift + parity`: (2, S)."""
    states = np.arange(STATES, dtype=np.uint8)
    before: list[list[tuple[int, int]]] = [[] for _ in range(STATES)]
    for parity in (0, 1):
        for state, after in zip(states, _next(states, np.full_like(states, parity)), strict=True):
            before[after].append((int(state), 2 * int(state & 1) + parity))
    table = np.array(before).transpose(1, 0, 2)
    return np.ascontiguousarray(table[:, :, 0]), np.ascontiguousarray(table[:, :, 1])


_BEFORE, _KIND = _machine()
_SHIFT, _PARITY = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], np.float32)[:, :, None]
"""Of every kind: whether the coarse grid is shifted, and the parity of `k`."""


def nearest(x: Reals, bits: Reals) -> Codes:
    """The codes `n` of numbers (rows, columns) in units of the step: least `(x - n)^2 + PRICE bits[k]` in sum, int16.

    Args:
        bits: what each `k` costs, by `costs`; the first one is of `-len(bits) / 2`. No other `k` is taken.
    """
    rows, columns = x.shape
    if rows > (most := _AT_ONCE * RUN):
        return np.concatenate([nearest(some, bits) for some in np.split(x, range(most, rows, most))])
    n, at_once = np.empty((rows, columns), np.int16), max(1, _AT_ONCE // max(-(-rows // RUN), 1))
    for start in range(0, columns if rows else 0, at_once):
        part = slice(start, start + at_once)
        runs = _runs(x[:, part])  # paths end in rows of zeros
        number, length, width = runs.shape
        down = runs.transpose(1, 0, 2).reshape(length, number * width)
        with _narrow if down.shape[1] < _NARROW else contextlib.nullcontext():
            found = _viterbi(down, bits).reshape(length, number, width).transpose(1, 0, 2)
        n[:, part] = found.reshape(-1, width)[:rows]
    return n


def _viterbi(x: Reals, bits: Reals) -> Codes:
    """The best path down each column of (length, paths)."""
    length, width = x.shape
    middle = len(bits) // 2
    k = 2 * np.rint((x[:, None] - _SHIFT) / 4 - _PARITY / 2) + _PARITY  # the best of each kind
    reach = min(middle, LARGEST_PATH) // 2 * 2  # even, so that parities stay
    np.clip(k, _PARITY - reach, _PARITY + reach - 2, out=k)
    n = 2 * k + _SHIFT
    prices = (x[:, None] - n) ** 2 + PRICE * bits[k.astype(np.intp) + middle]
    cost = np.full((STATES, width), np.float32(1e30))
    cost[0] = 0
    second, both = np.empty((length, STATES, width), np.bool_), np.empty((2, STATES, width), np.float32)
    piece = max(1, _AT_ONCE // width)  # rows whose prices by state are laid out at once
    for t in range(length):
        if t % piece == 0:
            steps = prices[t : t + piece].take(_KIND, 1)
        np.take(cost, _BEFORE, 0, out=both, mode="clip")
        both += steps[t % piece]
        np.less(both[1], both[0], out=second[t])
        np.minimum(both[0], both[1], out=cost)
    state, columns, ways = cost.argmin(0), np.arange(width), second.reshape(length, -1)
    kinds = np.empty((length, width), np.intp)
    for t in range(length - 1, -1, -1):
        entry = ways[t].take(state * width + columns) * STATES + state
        kinds[t] = _KIND.take(entry)
        state = _BEFORE.take(entry)
    return np.take_along_axis(n, kinds[:, None], 1)[:, 0].astype(np.int16)


def costs(x: Reals) -> Reals:
    """Bits of each `k` around 0, by how often numbers (in units of the step) fall to it on either grid."""
    flat = x.reshape(-1)
    middle = int(np.abs(flat).max(initial=0)) + 2  # twice what is met: fed-back errors lead further out
    counts = np.full(2 * middle, 0.5)
    for shift in (0, 1):
        counts += np.bincount(np.rint((flat - shift) / 2).astype(np.int64) + middle, minlength=2 * middle)
    bits: Reals = -np.log2(counts / counts.sum()).astype(np.float32)
    return bits
