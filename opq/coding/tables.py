"""Integer frequency tables, and how a file holds one in few bits.

A table is sent as `u_t = round(sqrt(count_t / 2))` and read as frequencies in proportion to `u_t^2`. The square root
stabilises the variance: on its scale every count has about the same standard deviation, 1/2, so that uniform rounding
costs the same, about half a bit, for each symbol of the alphabet. Each `u_t` is sent as the difference from what its
neighbours predict.

Letters: `u` roots, `t` a symbol, `P(q)` the probability of a code q. Tables are (alphabet,) int64.
"""

from __future__ import annotations

import functools

import numpy as np

from opq.base.arrays import Ints
from opq.base.format_v1 import LARGEST_ROOT, PRECISION, SCALES, TABLE_WEIGHTS
from opq.coding.stack import TOTAL, Model, StackReader, StackWriter, categorical, zigzag
from opq.errors import CorruptFileError

FRACTION = 16
"""`log2` is in units of 2^-16 bit. A choice: finer than the table of `_MANTISSA` bits would tell nothing more."""

_MANTISSA = 16
"""Bits below the leading one that `log2` looks up: a table of 512 KiB, at most 2^-15 bit too small."""
_LOG2 = np.rint(np.log2(1 + np.arange(1 << _MANTISSA) / (1 << _MANTISSA)) * (1 << FRACTION)).astype(np.int64)


def log2(values: Ints) -> Ints:
    """log2 of positive integers below 2^53 in units of 2^-16 bit, by integers alone; at most 2^-15 bit too small."""
    exponents = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
    mantissas = np.where(exponents >= _MANTISSA, values >> np.maximum(exponents - _MANTISSA, 0), 0)
    mantissas += np.where(exponents < _MANTISSA, values << np.maximum(_MANTISSA - exponents, 0), 0)
    result: Ints = (exponents << FRACTION) + _LOG2[mantissas - (1 << _MANTISSA)]
    return result


def roots(counts: Ints) -> Ints:
    """`u = round(sqrt(count / 2))`, at least 1 where there is a count."""
    u = np.rint(np.sqrt(counts / 2)).astype(np.int64)
    return np.where(counts > 0, np.maximum(u, 1), 0)


def frequencies(u: Ints) -> Ints:
    """The frequencies that the roots `u` stand for; they must not all be 0."""
    return shares(u * u)


def shares(weights: Ints) -> Ints:
    """Positive frequencies that add up to `TOTAL`, in proportion to weights below 2^39, not all 0."""
    shared = weights * (TOTAL - len(weights)) // int(weights.sum()) + 1
    shared[int(weights.argmax())] += TOTAL - int(shared.sum())
    return shared


@functools.cache
def geometric(edges: tuple[int, ...]) -> tuple[Ints, ...]:
    """Two-sided geometric distributions of `SCALES` scales, `P(q)` in proportion to `rho^|q|`, in integer arithmetic.

    Args:
        edges: the smallest magnitude of each symbol 0, 1, ..., n, and then the first magnitude beyond.

    Returns:
        The frequencies of the symbols -n, ..., n for `1 - rho` = 0.7, 0.5, 0.35, 0.25, ...
    """
    found = []
    for k in range(SCALES):
        rho = (1 << 36) - (1 << 36 - k // 2) * (7, 5)[k % 2] // 10
        tails = np.array([_power(rho, edge) for edge in edges], np.int64)
        masses = tails[:-1] - tails[1:]
        found.append(shares(np.concatenate([masses[:0:-1], masses])))
    return tuple(found)


def _power(rho: int, exponent: int) -> int:
    """`rho^exponent` by squaring; fractions in units of 2^-36."""
    result, square = 1 << 36, rho
    while exponent:
        if exponent & 1:
            result = result * square >> 36
        square = square * square >> 36
        exponent >>= 1
    return result


def cost(counts: Ints, table: Ints) -> int:
    """The cost in units of 2^-16 bit of symbols with these counts under these frequencies."""
    return int((counts * ((PRECISION << FRACTION) - log2(table))).sum())


def put(writer: StackWriter, u: Ints, first: int) -> None:
    """Writes the roots `u` of the symbols `first, first + 1, ...`."""
    order = np.array(_order(first, len(u))) - first
    for value, expected in zip(u[order].tolist(), _predictions(u, first)[order].tolist(), strict=True):
        code = zigzag(value - expected) if value < 2 * expected else value
        length = code.bit_length()
        writer.put(length, _lengths()[min(expected.bit_length(), len(TABLE_WEIGHTS) - 1)])
        writer.number(code, max(length - 1, 0))


def take(reader: StackReader, first: int, size: int) -> Ints:
    """The inverse of `put`; raises `CorruptFileError` when a frequency is too large, or all are 0."""
    known: dict[int, int] = {}
    for symbol in _order(first, size):
        predicted = _predict(known, symbol)
        length = reader.take(_lengths()[min(predicted.bit_length(), len(TABLE_WEIGHTS) - 1)])
        code = (1 << length - 1) | reader.number(length - 1) if length else 0
        difference = code >> 1 if not code & 1 else -(code >> 1) - 1
        known[symbol] = predicted + difference if code < 2 * predicted else code
        if known[symbol] > LARGEST_ROOT:
            raise CorruptFileError("a frequency is too large", got=known[symbol], wanted=f"at most {LARGEST_ROOT}")
    u = np.array([known[first + k] for k in range(size)], np.int64)
    if not u.any():
        raise CorruptFileError("a frequency table is empty")
    return u


@functools.cache
def _order(first: int, size: int) -> tuple[int, ...]:
    """Symbols from the middle outwards: 0, 1, -1, 2, -2, ..."""
    return tuple(sorted(range(first, first + size), key=_rank))


def _rank(symbol: int) -> int:
    return 2 * abs(symbol) - (symbol > 0)


def _predict(known: dict[int, int], symbol: int) -> int:
    """The root of the mirror image `-t` where it is known, else the two magnitudes before continued geometrically."""
    if symbol < 0 and -symbol in known:
        return known[-symbol]
    last, before = _magnitude(known, abs(symbol) - 1), _magnitude(known, abs(symbol) - 2)
    return last * last // before if before > last else last


def _magnitude(known: dict[int, int], magnitude: int) -> int:
    """The mean root of `+magnitude` and `-magnitude`, as far as they are known; 0 where neither is."""
    both = [known[s] for s in {magnitude, -magnitude} if magnitude >= 0 and s in known]
    return (sum(both) + len(both) // 2) // len(both) if both else 0


def _predictions(u: Ints, first: int) -> Ints:
    """`_predict` of each symbol from those before it in `_order`, all at once: (alphabet,)."""
    symbols = np.arange(first, first + len(u))
    both, number = np.zeros((2, int(np.abs(symbols).max()) + 3), np.int64)  # by magnitude + 2
    np.add.at(both, np.abs(symbols) + 2, u)
    np.add.at(number, np.abs(symbols) + 2, 1)
    mean = (both + number // 2) // np.maximum(number, 1)
    last, before = mean[np.abs(symbols) + 1], mean[np.abs(symbols)]
    found: Ints = np.where(before > last, last * last // np.maximum(before, 1), last)
    mirrored = (symbols < 0) & (-symbols <= symbols[-1])
    found[mirrored] = u[-symbols[mirrored] - first]
    return found


@functools.cache
def _lengths() -> tuple[Model, ...]:
    return tuple(categorical(shares(np.array(w, np.int64))) for w in TABLE_WEIGHTS)
