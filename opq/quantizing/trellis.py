"""Trellis-coded quantization: a coarse grid that the codes before a weight shift by half its step, or leave in place.

Which of the two grids a weight is rounded to depends on the parities of the codes above it in its column, so the codes
of a column are chosen together (Viterbi). The points of both grids together lie twice as close as the points that a
code has to tell apart. So at the same entropy the error is more than 1 dB smaller than on one grid, out of the 1.53 dB
that separates every quantizer of single weights from the limit (Marcellin and Fischer 1990; with entropy coding Joshi,
Crump and Fischer 1995).

Letters: `n` a code, the weight is `step n`; `k = floor(n / 2)` what the file holds; `b` whether the grid is shifted, 0
before the first row. Down every column, starting anew every `RUN` rows,

    n_t = 2 k_t + b_t
    b_t = b_(t-1) + b_(t-6) + k_(t-2) + k_(t-4)   mod 2

the 64-state code of Ungerboeck (1987, table I: parity checks 103 and 024). Every sequence of `k` belongs to exactly one
path `n`, so that no file can hold an invalid path. The eight states of JPEG 2000 and VVC gain 0.2 dB less.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from opq.base import compiled
from opq.base.arrays import Codes, Ints, Reals
from opq.base.format_v1 import FROM_PARITY, FROM_SHIFT, LARGEST_PATH, RUN, STATES
from opq.errors import CorruptFileError, MismatchError

LOOPS = compiled.Loops("opq.quantizing.loops")
"""The search, and feedback's steps, in machine code."""

States = npt.NDArray[np.uint8]

_T = TypeVar("_T", bound=np.generic)

_ONE = np.uint8(1)
_FROM_SHIFTS, _FROM_PARITIES = np.uint8(FROM_SHIFT), np.uint8(FROM_PARITY)

PRICE = 0.35
"""The price of a bit at high rates, in squares of the (fine) step of squared error: the slope `-dD/dR = 2 ln 2 D`, with
`D = ERROR`, is 0.36."""

LEAST = 1.25
"""Bits per weight from which on a trellis pays: for Laplacian weights it then gains nothing, for Gaussian ones 0.15
bits; docs/research.md has both."""

ERROR = 0.26
"""Mean squared error at high rates, in squares of the (fine) step."""

SAVED = 0.18
"""Bits per weight by which the codes are shorter than those of a plain grid of the same error. Measured for Gaussian
weights from 2 bits on; others and lower rates save less. It only predicts the size in the first round."""

AT_ONCE = 1 << 11
"""Paths searched together in numpy. A choice that trades the overhead of numpy calls for memory; codes are the same."""

TALLEST = AT_ONCE * RUN
"""Rows searched in one call: with more, even one column would have more than `AT_ONCE` paths."""

_NARROW, _narrow = 1 << 8, threading.Lock()
"""Fewer paths than this are searched by one thread at a time. Their numpy calls are so short that several threads would
mostly wait for the interpreter's lock, and together took a fifth longer (measured when the 64 states came in)."""


def price(rate: float) -> float:
    """The price of a bit at a rate in bits per weight on the trellis; a rate of 0 is one that is not known.

    At low rates zeros should be preferred to the nearest code. Of the prices 0.35, 0.5, 0.7, 1 and 1.4, the best for
    Laplacian and for Gaussian weights are 0.35 at 3 bits, 0.5 at 2, 0.7 at 1.5 and 1 at 1.2.
    """
    return PRICE * (1 + _excess(rate)) if rate else PRICE


def error(rate: float) -> float:
    """Mean squared error in squares of the (fine) step, at that price.

    Measured for Laplacian and Gaussian weights: 0.26 at 3 bits, 0.29 at 2, 0.33 at 1.5 and 0.37 at 1.2.
    """
    return ERROR + 0.2 * PRICE * _excess(rate)


def _excess(rate: float) -> float:
    return float(4 ** (1.5 - max(rate, 0.75)))


def step(rate: float, distortion: float, largest: float) -> float | None:
    """The (fine) step at which a trellis has the error of a plain grid, in fewer bits; None where it has none.

    The allocation trades errors, so with equal errors a tensor on a trellis can stand in for one on a plain grid.

    Args:
        rate: bits per weight on the plain grid.
        distortion: mean squared error on the plain grid.
        largest: the largest magnitude, for which there must be a code.
    """
    fine = math.sqrt(distortion / error(rate - SAVED))
    return fine if largest < fine * (2 * LARGEST_PATH - 1) else None


def numpy_seconds(weights: int) -> float:
    """About how many seconds the search takes in numpy for so many weights."""
    return 3e-7 * weights


def paths(n: Codes) -> Codes:
    """`k`, which the file holds, for codes `n` (rows, ...): int16, same shape.

    Raises:
        MismatchError: the codes are not a path of the trellis.
    """
    k = n >> 1
    if k.size and not np.array_equal(n & 1, _shifts(k)):
        raise MismatchError("the codes follow no path of the trellis", wanted="what the search `nearest` found")
    return k


def numbers(k: Codes, out: Codes | None = None) -> Codes:
    """The inverse of `paths`: `n`, int16, same shape.

    Args:
        k: what the file holds.
        out: where `n` is written, contiguous; `k` itself may be, which saves a copy.

    Raises:
        CorruptFileError: the `n` of a `k` does not fit 16 bits.
    """
    _check_size(k)
    out = np.empty(k.shape, k.dtype) if out is None else out
    out[...] = k
    n = out.reshape(len(k) if k.ndim else 1, -1) if k.size else out
    down, across = _piece(n.shape)
    for row in range(0, len(n) if k.size else 0, down):
        for column in range(0, n.shape[1], across):
            some = n[row : row + down, column : column + across]
            some[:] = 2 * some + _shifts(some)
    return out


def _check_size(k: Codes) -> None:
    if k.size and not -LARGEST_PATH <= int(k.min()) <= int(k.max()) <= LARGEST_PATH:
        raise CorruptFileError("a path beyond 16 bits", got=(int(k.min()), int(k.max())), wanted=f"+-{LARGEST_PATH}")


class Follower:
    """`numbers` of rows that come in pieces, from the first row of a tensor on."""

    def __init__(self) -> None:
        self._row = 0
        self._before: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = []
        """Parities and shifts of up to six rows of the present run, the latest first, eight columns to a byte."""

    def __call__(self, k: Codes) -> Codes:
        """`n` of the next rows (rows, columns), in the place of `k`; raises as `numbers` does."""
        _check_size(k)
        for row in k:
            if self._row % RUN == 0:
                self._before = []
            shift = np.zeros(-(-len(row) // 8), np.uint8)
            for behind, what in ((1, 1), (6, 1), (2, 0), (4, 0)):
                if behind <= len(self._before):
                    shift ^= self._before[behind - 1][what]
            self._before = [(np.packbits((row & 1).astype(np.uint8)), shift), *self._before[:5]]
            self._row += 1
            row *= 2
            row += np.unpackbits(shift, count=len(row))
        return k


def _piece(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows, in whole runs, and columns whose shifts are found at once, so that temporaries stay small."""
    across = max(1, min(shape[-1] if shape else 1, AT_ONCE))
    return RUN * max(1, AT_ONCE // across), across


def _shifts(k: Codes) -> Codes:
    """`b_t` of every code, whether its grid is shifted: int16, shaped like `k`. Eight columns are packed in a byte."""
    odd = (k & 1).astype(np.uint8).reshape(k.shape[0] if k.ndim else 1, -1)  # (rows, columns)
    parities = _runs(np.packbits(odd, axis=1))  # (runs, rows of a run, columns / 8)
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
    """A table (rows, columns) cut into runs, (runs, rows of a run, columns); the last run is padded with zeros."""
    rows, columns = table.shape
    number, length = -(-rows // RUN), min(rows, RUN)
    padded = np.zeros((number * length, columns), table.dtype)
    padded[:rows] = table
    return padded.reshape(number, length, columns)


def _next(state: States, parity: States) -> States:
    """The state after a code of this parity; arrays of one shape."""
    after: States = state >> _ONE ^ (state & _ONE) * _FROM_SHIFTS ^ parity * _FROM_PARITIES
    return after


# --- the search ------------------------------------------------------------------------------


def _machine() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """For every state, its two predecessors and the kinds of code, `2 shift + parity`, that lead here: (2, S) each."""
    states = np.arange(STATES, dtype=np.uint8)
    before: list[list[tuple[int, int]]] = [[] for _ in range(STATES)]
    for parity in (0, 1):
        for state, after in zip(states, _next(states, np.full_like(states, parity)), strict=True):
            before[after].append((int(state), 2 * int(state & 1) + parity))
    table = np.array(before).transpose(1, 0, 2)
    return np.ascontiguousarray(table[:, :, 0]), np.ascontiguousarray(table[:, :, 1])


_BEFORE, _KIND = _machine()


def _registers() -> npt.NDArray[np.intp]:
    """(S,) The number that `loops.search` gives to every state: the content of its shift register."""
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
"""For every kind, whether the coarse grid is shifted, and the parity of `k`: (4, 1) each."""


def nearest(x: Reals, bits: Reals, *, price: float = PRICE, at_once: int = AT_ONCE) -> Codes:
    """The codes `n` of numbers `x` that minimise the sum of `(x - n)^2 + price bits[k]`: int16, (rows, columns).

    Args:
        x: numbers in units of the step, (rows, columns); paths run down the columns.
        bits: the bits of each `k` from `-len(bits) / 2` on, as `costs` gives them. No other `k` is used.
        price: of a bit.
        at_once: paths that numpy searches together; the codes do not depend on it.
    """
    rows, columns = x.shape
    if rows > (most := at_once * RUN):
        parts = np.split(x, range(most, rows, most))
        return np.concatenate([nearest(some, bits, price=price, at_once=at_once) for some in parts])
    n, across = np.empty((rows, columns), np.int16), max(1, at_once // max(-(-rows // RUN), 1))
    loops = LOOPS(numpy_seconds(x.size)) if x.dtype == np.float32 else None
    if loops is not None:
        loops.search(np.ascontiguousarray(x), bits, np.float32(price), REGISTERS, n)
        return n
    for start in range(0, columns if rows else 0, across):
        part = slice(start, start + across)
        runs = _runs(x[:, part])  # paths end in rows of zeros
        number, length, width = runs.shape
        down = runs.transpose(1, 0, 2).reshape(length, number * width)
        with _narrow if down.shape[1] < _NARROW else contextlib.nullcontext():
            found = _viterbi(down, bits, np.float32(price)).reshape(length, number, width).transpose(1, 0, 2)
        n[:, part] = found.reshape(-1, width)[:rows]
    return n


def _viterbi(x: Reals, bits: Reals, price: np.float32) -> Codes:
    """The best path down each column of `x` (length, paths): codes of the same shape.

    Shapes: `k`, `n` and `prices` are (length, 4 kinds, paths), `cost` is (S, paths).
    """
    length, width = x.shape
    middle = len(bits) // 2
    k = 2 * np.rint((x[:, None] - _SHIFT) / 4 - _PARITY / 2) + _PARITY  # the best of each kind
    reach = min(middle, LARGEST_PATH) // 2 * 2  # even, so that clipping keeps parities
    np.clip(k, _PARITY - reach, _PARITY + reach - 2, out=k)
    n = 2 * k + _SHIFT
    prices = (x[:, None] - n) ** 2 + price * bits[k.astype(np.intp) + middle]
    cost = np.full((STATES, width), np.float32(1e30))
    cost[0] = 0
    second, both = np.empty((length, STATES, width), np.bool_), np.empty((2, STATES, width), np.float32)
    piece = max(1, AT_ONCE // width)  # rows whose prices are laid out by state at once
    for t in range(length):
        if t % piece == 0:
            steps = prices[t : t + piece].take(_KIND, 1)  # (rows of the piece, 2, S, paths)
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
    """Bits of each `k` from `-middle` to `middle - 1`, (2 middle,), by how often numbers are rounded to it on either
    grid.

    Args:
        x: numbers in units of the step, of any shape.
    """
    return prices([counted(x)])


def prices(parts: Iterable[Ints]) -> Reals:
    """`costs` of numbers that are counted in several parts, whatever their order."""
    total = np.zeros(0, np.int64)
    for counts in parts:
        wide, narrow = (total, counts) if len(total) > len(counts) else (counts.copy(), total)
        around = (len(wide) - len(narrow)) // 2
        wide[around : around + len(narrow)] += narrow
        total = wide
    smooth = total + 0.5
    bits: Reals = -np.log2(smooth / smooth.sum()).astype(np.float32)
    return bits


def counted(x: Reals) -> Ints:
    """How often numbers, of any shape, are rounded to each `k` from `-middle` to `middle - 1` on either grid."""
    flat = x.reshape(-1)
    middle = int(np.abs(flat).max(initial=0)) + 2  # twice the largest `k` met: error feedback leads further out
    counts = np.zeros(2 * middle, np.int64)
    loops = LOOPS(numpy_seconds(flat.size)) if flat.dtype == np.float32 else None
    if loops is not None:
        loops.counted(np.ascontiguousarray(flat), middle, counts)
    for shift in (0, 1) if loops is None else ():
        counts += np.bincount(np.rint((flat - shift) / 2).astype(np.int64) + middle, minlength=2 * middle)
    return counts
