"""How the elements of a chunk fall into classes, and which classes pay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from opq.updates.patterns import Element, Patterns, exponents

MOST_CLASSES = 16
"""By exponent."""
MOST_SCALES = 16
"""Scales of blocks, an octave each."""
CODES = 7
"""Codes of larger magnitude are of one class."""
VALUES = 2 * CODES + 1
"""Classes by value."""
EXPONENTS = (1, 4, 8, 16)
"""Classes by exponent that are tried. A choice: of MiniLM and ResNet-20 8 and 16 are within 1 % of each other."""
FEW = 128
"""Fewer elements are of one class, a choice: so few hardly pay for a second table."""
TABLE, BIN = 60.0, 5.0
"""Bits that a class and each of its symbols are taken to cost; a choice, near what they do."""

Way = Literal["one", "scale", "value"]
WAYS: tuple[Way, ...] = ("one", "scale", "value")
Scales = npt.NDArray[np.int16]


def _no_scales() -> Scales:
    return np.zeros(0, np.int16)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """How elements fall into classes by their reference and their block."""

    way: Way
    number: int = 1
    """Classes by exponent or by value."""
    top: int = 0
    """Of exponents: that of class 0 and all above."""
    scales: Scales = dataclasses.field(default_factory=_no_scales)
    """Of the blocks that are there, from the widest changes on, in octaves."""

    def of(self, reference: Patterns, kind: Element, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8] | None:
        """The class of each element, None where there is one; `lengths` are those of the blocks that are there."""
        if self.way == "one":
            return None
        if self.way == "value":
            return (np.clip(reference, -CODES, CODES) + CODES).astype(np.uint8)
        found = np.repeat((self.scales * self.number).astype(np.uint8), lengths)
        if self.number > 1:
            found += np.clip(self.top - exponents(reference, kind), 0, self.number - 1).astype(np.uint8)
        return found


def chosen_classes(difference: Patterns, reference: Patterns, kind: Element, lengths: npt.NDArray[np.int64]) -> Classes:
    """The classes by which differences take the fewest bits, as nearly as their counts tell."""
    best = Classes("one")
    if len(difference) < FEW:
        return best
    symbols = _folded(difference)
    least = _cost(symbols, None)
    for classes in _candidates(difference, reference, kind, lengths):
        cost = _cost(symbols, classes.of(reference, kind, lengths)) + _cost(classes.scales, None)
        if cost < least:
            best, least = classes, cost
    return best


def _candidates(
    difference: Patterns, reference: Patterns, kind: Element, lengths: npt.NDArray[np.int64]
) -> Iterator[Classes]:
    by_exponent = bool(kind.fraction) and bool(reference.any())
    top = _top(exponents(reference, kind)) if by_exponent else 0
    size = np.abs(difference.astype(np.float64))
    if by_exponent:
        size *= np.exp2(np.clip(exponents(reference, kind) - top, -60, 60).astype(np.float64))
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    mean = np.log2(np.maximum(np.add.reduceat(size, starts) / lengths, 2.0**-60))
    scales = np.clip(np.rint(mean.max() - mean), 0, MOST_SCALES - 1).astype(np.int16)
    for number in EXPONENTS if by_exponent else (1,):
        yield Classes("scale", number, top, np.zeros_like(scales))
        if scales.any():
            yield Classes("scale", number, top, scales)


def _top(found: npt.NDArray[np.int64]) -> int:
    """The largest exponent of all but a thousandth of the elements."""
    beyond = np.cumsum(np.bincount(found)[::-1])[::-1]
    return int(np.flatnonzero(beyond * 1000 >= len(found))[-1])


def _folded(difference: Patterns) -> npt.NDArray[np.int64]:
    """A number from 0 on for each difference: magnitudes in eighths of an octave, exact below 16, and the sign."""
    mantissa, exponent = np.frexp(np.abs(difference.astype(np.float64)))
    size = np.where(difference == 0, 0, 8 * exponent + (16 * mantissa).astype(np.int64) - 8 + 1)
    return np.asarray(2 * size + (difference < 0), np.int64)


def _cost(symbols: npt.NDArray[np.integer], classes: npt.NDArray[np.uint8] | None) -> float:
    """Bits of symbols by the counts of their classes, tables included; bits below a symbol are left out."""
    width = int(symbols.max()) + 1
    key = symbols if classes is None else symbols + classes.astype(np.int64) * width
    counts = np.bincount(key)
    counts = np.pad(counts, (0, -len(counts) % width)).reshape(-1, width)
    totals, found = counts.sum(1), counts[counts > 0].astype(np.float64)
    rows = totals[totals > 0].astype(np.float64)
    bits = float((rows * np.log2(rows)).sum() - (found * np.log2(found)).sum())
    return bits + TABLE * len(rows) + BIN * len(found)
