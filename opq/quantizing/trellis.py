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

from opq.base import compiled
from opq.base.arrays import Codes, Reals
from opq.base.format_v1 import FROM_PARITY, FROM_SHIFT, LARGEST_PATH, RUN, STATES
from opq.errors import CorruptFileError, MismatchError

LOOPS = compiled.Loops("opq.quantizing.loops")
"""The search, and feedback's steps, in machine code."""

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

TALLEST = _AT_ONCE * RUN
"""Rows searched in one go."""

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


def numpy_seconds(weights: int) -> float:
    """About how long the search for so many weights takes in numpy."""
    return 3e-7 * weights


def paths(n: Codes) -> Codes:
    """`k`, what the file holds, of codes (rows, ...); int16, same shape.

    Raises:
        MismatchError: the codes follow no path.
    """
    k = n >> 1
    if k.size and not np.array_equal(n & 1, _shifts(k)):
        raise MismatchError("the codes follow no path of the trellis", wanted="what the search `nearest` found")
    return k


def numbers(k: Codes) -> Codes:
    """The inverse of `paths`: `n`, int16.

    Raises:
        CorruptFileError: a `k` whose `n` 16 bits do not hold.
    """
    if k.size and not -LARGEST_PATH <= int(k.min()) <= int(k.max()) <= LARGEST_PATH:
        raise CorruptFileError("a path beyond 16 bits", got=(int(k.min()), int(k.max())), wanted=f"+-{LARGEST_PATH}")
    n = k.reshape(len(k) if k.ndim else 1, -1).copy() if k.size else k
    down, across = _piece(n.shape)
    for row in range(0, len(n) if k.size else 0, down):
        for column in range(0, n.shape[1], across):
            some = n[row : row + down, column : column + across]
            some[:] = 2 * some + _shifts(some)
    return n.reshape(k.shape)


def _piece(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows, whole runs of them, and columns whose shifts are found at once: what they need beside stays small."""
    across = max(1, min(shape[-1] if shape else 1, _AT_ONCE))
    return RUN * max(1, _AT_ONCE // across), across


def _shifts(k: Codes) -> Codes:
    """`b_t` of every code: whether its grid is shifted; some codes, and eight columns at a time, a bit each."""
    odd = (k & 1).astype(np.uint8).reshape(k.shape[0] if k.ndim else 1, -1)
    parities = _runs(np.packbits(odd, axis=1))
    shifts = np.zeros_like(parities)
    for t in range(1, parities.shape[1]):
        row = shifts[:, t]
        row ^= shifts[:, t - 1]
        for behind, before in ((6, shifts), (2, parities), (4, parities)):
            if t >= behind:
                row ^= before[:, t - behind]
    rows, columns = odd.shape
    flat = np.unpackbits(shifts.reshape(-1, shifts.shape[2])[:rows], axis=1, count=columns)
    return flat.reshape(k.shape).astype(np.int16)


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


def _registers() -> npt.NDArray[np.intp]:
    """The name that `loops.search` has for every state: a shift register's content."""
    names, found = np.zeros(STATES, np.intp), [(0, 0)]
    for state, register in found:
        for parity in (0, 1):
            newest = parity ^ register >> 5 ^ register & 1
            following = _next(np.array(state, np.uint8), np.array(parity, np.uint8))
            after = int(following), register >> 1 | newest << 5
            if after not in found:
                found.append(after)
        names[state] = register
    return names


REGISTERS = _registers()
_SHIFT, _PARITY = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], np.float32)[:, :, None]
"""Of every kind: whether the coarse grid is shifted, and the parity of `k`."""


def nearest(x: Reals, bits: Reals) -> Codes:
    """The codes `n` of numbers (rows, columns) in units of the step: least `(x - n)^2 + PRICE bits[k]` in sum, int16.

    Args:
        bits: what each `k` costs, by `costs`; the first one is of `-len(bits) / 2`. No other `k` is taken.
    """
    rows, columns = x.shape
    if rows > TALLEST:
        return np.concatenate([nearest(some, bits) for some in np.split(x, range(TALLEST, rows, TALLEST))])
    n, at_once = np.empty((rows, columns), np.int16), max(1, _AT_ONCE // max(-(-rows // RUN), 1))
    loops = LOOPS(numpy_seconds(x.size)) if x.dtype == np.float32 else None
    if loops is not None:
        loops.search(np.ascontiguousarray(x), bits, np.float32(PRICE), REGISTERS, n)
        return n
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
    counts = np.zeros(2 * middle, np.int64)
    loops = LOOPS(numpy_seconds(flat.size)) if flat.dtype == np.float32 else None
    if loops is not None:
        loops.counted(np.ascontiguousarray(flat), middle, counts)
    for shift in (0, 1) if loops is None else ():
        counts += np.bincount(np.rint((flat - shift) / 2).astype(np.int64) + middle, minlength=2 * middle)
    smooth = counts + 0.5
    bits: Reals = -np.log2(smooth / smooth.sum()).astype(np.float32)
    return bits
