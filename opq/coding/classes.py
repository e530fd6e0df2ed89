"""Classes of weights by the scale of their row, column and kernel position.

Channels share the codebook but not the distribution: the expected |q| at (i, j, k) is about r_i c_j d_k. Every index of
every axis is given a class, a small integer that stands for its log-scale; the class of a weight is the sum of the
three, and every class has its own frequency table. All decisions are made in integers, so that the same codes give the
same bytes on every machine.

Shapes: codes and symbols are (rows, columns, kernel), as `view` gives them; an axis is (its length,) uint8.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from opq.base import compiled
from opq.base.arrays import Floats, Ints
from opq.coding.tables import FRACTION, cost, frequencies, log2, roots

LOOPS = compiled.Loops("opq.coding.loops")
"""Counting of symbols in machine code."""

Classes = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
"""One class for every index of the three axes."""

_T = TypeVar("_T", bound=np.generic)

_FEWEST = 256
"""Weights of the smallest tensor that may have classes. A choice: so few codes hardly pay for a second table."""
_MOST = 1 << 19
"""Weights of the largest tensor whose classes are refined. A choice: in larger ones it gains less, and takes longer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Contexts:
    """The class of a weight is `min(max(r_i + c_j + d_k, first) - first, number - 1)`."""

    axes: Classes
    first: int
    number: int

    def blocks(self, start: int, stop: int) -> Blocks:
        """How the weights of the rows from `start` to `stop` fall into classes."""
        r, c, d = self.axes
        return Blocks.of(r[start:stop], (c[:, None] + d).reshape(-1), self.first, self.number)


Block = tuple[slice, slice]


@dataclasses.dataclass(frozen=True, slots=True)
class Blocks:
    """Rows and columns stably sorted by class: in the sorted matrix every class is a list of rectangles."""

    rows: npt.NDArray[np.intp]
    """(rows,) The row at each place of the sorted matrix."""
    by_column: npt.NDArray[np.uint8]
    """(columns,) The class of each column, in the original order."""
    classes: tuple[tuple[Block, ...], ...]
    """The rectangles of each class in the sorted matrix, ordered by row and then by column."""

    @classmethod
    def of(cls, rows: npt.NDArray[np.uint8], columns: npt.NDArray[np.uint8], first: int, number: int) -> Blocks:
        """The class of (i, j) is `min(max(rows[i] + columns[j], first) - first, number - 1)`."""
        classes: list[list[Block]] = [[] for _ in range(number)]
        for i, down in _runs(rows):
            for j, across in _runs(columns):
                classes[min(max(i + j, first) - first, number - 1)].append((down, across))
        return cls(np.argsort(rows, kind="stable"), columns, tuple(map(tuple, classes)))

    @property
    def columns(self) -> npt.NDArray[np.intp]:
        """(columns,) The column at each place of the sorted matrix."""
        return np.argsort(self.by_column, kind="stable")

    def split(self, flat: npt.NDArray[_T]) -> Iterator[npt.NDArray[_T]]:
        """The weights of each class as a flat array; `flat` is (rows x columns,)."""
        table = flat.reshape(len(self.rows), len(self.by_column)).take(self.rows, 0).take(self.columns, 1)
        for blocks in self.classes:
            yield np.concatenate([table[b].reshape(-1) for b in blocks] or [flat[:0]])

    def amounts(self) -> list[int]:
        """How many weights each class has."""
        return [sum((d.stop - d.start) * (a.stop - a.start) for d, a in blocks) for blocks in self.classes]

    def join(self, parts: Iterable[npt.NDArray[np.integer]], out: npt.NDArray[_T]) -> None:
        """The inverse of `split`, into the flat `out`. Each part is released before the next one is taken."""
        if len(self.by_column) > _WIDE:
            self._join_wide(parts, out)
            return
        table = out.reshape(len(self.rows), len(self.by_column))  # rows in their places, columns sorted
        for blocks, part in zip(self.classes, parts, strict=True):
            position = 0
            for down, across in blocks:
                height, width = down.stop - down.start, across.stop - across.start
                table[self.rows[down], across] = part[position : position + height * width].reshape(height, width)
                position += height * width
            del part
        back = np.argsort(self.columns)
        step = max(1, _AT_ONCE // len(back))
        for row in range(0, len(table), step):
            table[row : row + step] = table[row : row + step].take(back, 1)

    def _join_wide(self, parts: Iterable[npt.NDArray[np.integer]], out: npt.NDArray[_T]) -> None:
        """`join` for few, long rows. The columns of a class are searched for piece by piece, since the order of all
        columns would take more memory than the weights."""
        table, width = out.reshape(len(self.rows), len(self.by_column)), len(self.by_column)
        class_at = {across.start: k for k, across in _runs(self.by_column)}
        for blocks, part in zip(self.classes, parts, strict=True):
            position = 0
            for down, across in blocks:
                for row, start in itertools.product(self.rows[down], range(0, width, _AT_ONCE)):
                    found = np.flatnonzero(self.by_column[start : start + _AT_ONCE] == class_at[across.start])
                    table[row, start + found] = part[position : position + len(found)]
                    position += len(found)
            del part


_AT_ONCE = 1 << 17
"""Weights of one piece of work. A choice: with its temporary arrays a piece fits into a processor's second-level cache.
It trades the overhead of a numpy call for the speed of the cache, and changes no byte of a file."""

_WIDE = 1 << 18
"""Columns from which on the order of all of them (8 bytes each) is not made: up to here it takes 2 MiB, less than the
codes of one chunk. Decoding then takes at most four bytes a weight beside the tensor (tests/file/test_limits.py)."""


def _runs(classes: npt.NDArray[np.uint8]) -> list[tuple[int, slice]]:
    """Each class that occurs, and the range of places that it has when sorted."""
    counts = np.zeros(1 << 8, np.int64)
    for start in range(0, len(classes), _AT_ONCE):  # bincount turns each uint8 into eight bytes
        counts += np.bincount(classes[start : start + _AT_ONCE], minlength=len(counts))
    ends = np.cumsum(counts)
    starts = np.concatenate([[0], ends[:-1]])
    return [(k, slice(int(a), int(b))) for k, (a, b) in enumerate(zip(starts, ends, strict=True)) if b > a]


def view(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A tensor's shape without leading ones as three axes: rows, columns, and all others as one (kernel positions)."""
    first = next((k for k, n in enumerate(shape) if n != 1), len(shape))
    padded = (*shape[first:], 1, 1)
    return padded[0], padded[1], math.prod(padded[2:])


def choose(symbols: npt.NDArray[np.integer], codes: npt.NDArray[np.integer], plain: Ints) -> list[Contexts]:
    """The candidates whose cost is worth computing; none when the scales differ no more than by chance.

    Args:
        symbols: (rows, columns, kernel), the smallest one being 0.
        codes: those that the symbols stand for, same shape.
        plain: (alphabet,) how often each symbol occurs.
    """
    if symbols.size < _FEWEST or symbols.shape[0] == symbols.size or symbols.shape[1] == symbols.size:
        return []
    found = sums(codes)
    fine = of_sums(found, plain)
    if fine is None:
        return []
    if symbols.size > _MOST or sum(symbols.shape) * 1000 < cost(plain, frequencies(roots(plain))) >> FRACTION:
        return [fine]
    return [_refined(symbols, start, len(plain)) for start in (fine, _by_scale(found, 2, 3))]


def by_class(symbols: npt.NDArray[np.int16], chosen: Contexts, rows: tuple[int, int], alphabet: int) -> Ints:
    """How often each symbol occurs in each class, in some rows: (classes, alphabet).

    Args:
        symbols: of the rows from the first to the second number of `rows`, flat.
    """
    counts = np.zeros((chosen.number, alphabet), np.int64)
    if (loops := LOOPS(_numpy_seconds(symbols.size))) is not None:
        r, c, d = chosen.axes
        table = np.ascontiguousarray(symbols).reshape(rows[1] - rows[0], len(c), len(d))
        loops.by_class(table, r[slice(*rows)], c, d, chosen.first, counts)
        return counts
    for of_class, count in zip(chosen.blocks(*rows).split(symbols), counts, strict=True):
        count += np.bincount(of_class, minlength=alphabet)
    return counts


def numpy_seconds(sizes: Iterable[int]) -> float:
    """About how many seconds numpy takes to count the symbols of tensors of these sizes, each coded once."""
    return sum(_numpy_seconds(n) * (_PASSES if n <= _MOST else 1) for n in sizes)


_PASSES = 16
"""How often the symbols of a tensor are counted while its classes are refined, about."""


def _numpy_seconds(weights: int) -> float:
    """About how many seconds numpy takes to count so many symbols once."""
    return 2e-8 * weights


def of_sums(found: list[Ints], plain: Ints) -> Contexts | None:
    """The classes of a large tensor, from what `sums` gives; None where they do not pay."""
    lengths = [len(s) for s in found]
    if math.prod(lengths) in lengths[:2] or not _promising(found, plain):
        return None
    return _by_scale(found, 1, 4)


def sums(codes: npt.NDArray[np.integer]) -> list[Ints]:
    """For each axis, the sum of |q| at each of its indices: (rows,), (columns,), (kernel,).

    float64 holds these integers exactly.
    """
    rows, columns, kernel = codes.shape
    by_row = np.zeros(rows, np.int64)
    by_rest = np.zeros((columns, kernel), np.int64)
    for i in range(0, rows, step := max(1, (1 << 18) // (columns * kernel))):
        part = codes[i : i + step].astype(np.float32)
        np.abs(part, out=part)
        by_row[i : i + step] = part.sum((1, 2), dtype=np.float64)
        by_rest += part.sum(0, dtype=np.float64).astype(np.int64)
    return [by_row, by_rest.sum(1), by_rest.sum(0)]


def _promising(found: list[Ints], plain: Ints) -> bool:
    """Whether the spread of the log-scales saves more than 1/500 of the bits, chance not counted.

    To second order, an index whose log-scale differs from the mean by x saves about x^2 / 2 nats for each unit of |q|
    in it; chance alone accounts for 1/2 nat an index.
    """
    total = log2(np.maximum(found[0].sum(keepdims=True), 1))
    twice = 0
    for s in (s for s in found if len(s) > 1):
        x = np.clip(log2(np.maximum(s, 1) * len(s)) - total, -3 << FRACTION, 3 << FRACTION)
        squares = (x * x >> FRACTION) * _LN2_SQUARED >> FRACTION
        twice += int((s * squares >> FRACTION).sum()) - len(s)
    return twice * 250 > cost(plain, frequencies(roots(plain))) >> FRACTION


_LN2_SQUARED = 31487
"""(ln 2)^2 in units of 2^-16."""


def _by_scale(found: list[Ints], step: int, widest: int) -> Contexts:
    """Classes by rounding the log2 of the scales to multiples of `step / 2`, at most `widest` of them from the mean."""
    total = max(int(found[0].sum()), 1)
    axes = []
    for s in found:
        x = log2(np.maximum(s, 1) * len(s)) - int(log2(np.array([total]))[0])
        unit = step << FRACTION - 1
        k = np.clip((x + unit // 2) // unit, -widest, widest)
        axes.append((k - k.min()).astype(np.uint8))
    return _trimmed((axes[0], axes[1], axes[2]))


def _trimmed(axes: Classes) -> Contexts:
    """The outermost classes merged inwards until each holds at least 64 weights and 1/256 of all weights."""
    counts = np.array([1])
    for a in axes:
        counts = np.convolve(counts, np.bincount(a))
    least = max(64, int(counts.sum()) >> 8)
    low = int(np.searchsorted(np.cumsum(counts), least))
    high = len(counts) - 1 - int(np.searchsorted(np.cumsum(counts[::-1]), least))
    low, high = min(low, high), max(low, high)
    return Contexts(axes, low, high - low + 1)


def _refined(symbols: npt.NDArray[np.integer], start: Contexts, alphabet: int) -> Contexts:
    """Coordinate descent: each index moves to the class that costs the fewest bits, the class itself included.

    At most four sweeps, or until nothing changes. The four are a choice that trades time for bytes.
    """
    axes = list(start.axes)
    for _ in range(4):
        before = list(axes)
        for axis in range(3):
            if len(axes[axis]) > 1:
                axes[axis] = _reassigned(symbols, axes, axis, alphabet)
        if all(map(np.array_equal, axes, before)):
            break
    return _trimmed((axes[0], axes[1], axes[2]))


def _reassigned(
    symbols: npt.NDArray[np.integer], axes: list[npt.NDArray[np.uint8]], axis: int, alphabet: int
) -> npt.NDArray[np.uint8]:
    """One axis with every index in the class that is cheapest for it under the present tables.

    Letters of the shapes: `n` indices of the axis, `w` classes of the other two axes together, `a` symbols of the
    alphabet, `o` classes of this axis. Products of matrices are exact, whatever the order of summation: every partial
    sum is an integer below 2^53.
    """
    number = sum(int(a.max()) for a in axes) + 1
    width = sum(int(a.max()) for i, a in enumerate(axes) if i != axis) + 1
    own = int(axes[axis].max()) + 1
    counts = _by_index(symbols, axes, axis, (width, alphabet)).reshape(len(axes[axis]), -1)  # (n, w a)
    of_own = (axes[axis] == np.arange(own)[:, None]).astype(np.float64) @ counts  # (o, w a)
    found = np.zeros((number, alphabet), np.int64)
    for k, some in enumerate(of_own.reshape(own, width, alphabet)):
        found[k : k + width] += some.astype(np.int64)
    lengths = _lengths(found).astype(np.float64)
    windows = np.stack([lengths[k : k + width].reshape(-1) for k in range(own)], 1)  # (w a, o)
    names = np.bincount(axes[axis], minlength=own)
    best = (counts @ windows + _lengths(names[None])[0]).argmin(1)  # of (n, o)
    classes: npt.NDArray[np.uint8] = np.subtract(best, best.min()).astype(np.uint8)
    return classes


def _by_index(
    symbols: npt.NDArray[np.integer], axes: list[npt.NDArray[np.uint8]], axis: int, shape: tuple[int, int]
) -> Floats:
    """How often each symbol occurs at each index of one axis, by the classes of the others: (n, w, a).

    Args:
        shape: (w, a).
    """
    length, (width, alphabet) = len(axes[axis]), shape
    if (loops := LOOPS(_numpy_seconds(symbols.size))) is not None:
        counts = np.zeros((length, width, alphabet))
        loops.by_index(np.ascontiguousarray(symbols, np.int16), *axes, axis, counts)
        return counts
    others = [axes[i] for i in range(3) if i != axis]
    rows = np.moveaxis(symbols, axis, 0).reshape(length, -1)  # (n, weights of an index)
    keys = (others[0][:, None] + others[1]).reshape(-1).astype(np.int64) * alphabet + rows
    keys += (np.arange(length) * (width * alphabet))[:, None]
    found = np.bincount(keys.reshape(-1), minlength=length * width * alphabet)
    return found.reshape(length, width, alphabet).astype(np.float64)


def _lengths(counts: Ints) -> Ints:
    """Code lengths by smoothed counts (classes, alphabet), row by row, in units of 2^-16 bit; same shape."""
    total = counts.sum(0)
    smooth = 4 * counts + 1 + 8 * total // max(int(total.sum()), 1)
    return log2(smooth.sum(1, keepdims=True)) - log2(smooth)
