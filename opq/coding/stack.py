"""One stack of symbols: what is put first is taken first, and bits are rounded up once, at the end of the whole.

A thin layer over constriction's asymmetric numeral system (Duda 2013; Bamler 2022): 24-bit integer frequencies,
32-bit words. No probability is computed in floating point, neither here nor in what this rests on.
"""

from __future__ import annotations

import math
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from opq.base.arrays import Ints, Symbols
from opq.base.format_v1 import LONGEST_NUMBER, PIECE, PRECISION
from opq.errors import CorruptFileError

TOTAL = 1 << PRECISION
"""What the integer frequencies of one table add up to."""
Model = Any
"""A constriction model; the package has no types."""


def categorical(frequencies: Ints) -> Model:
    """The model of two or more positive integer frequencies that add up to `TOTAL`.

    constriction gives every symbol weight 1 and shares the other `TOTAL - n` in proportion to the float32 values
    that it is handed. Handing it `frequency - 1`, which float32 holds exactly and which add up to `TOTAL - n`, makes
    its scale exactly 1: the frequencies that it uses are these integers, on every machine.
    """
    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float32), perfect=False)


def uniform(size: int) -> Model:
    """`size` equally likely symbols, 2 <= size <= 2^24."""
    return constriction.stream.model.Uniform(size)


_PIECE = 1 << 17
"""Symbols decoded in one call: with their int32 temporaries they fit into a processor's cache. A choice; it changes no
byte."""

_LENGTHS = uniform(LONGEST_NUMBER + 1)
_EACH_ITS_OWN = constriction.stream.model.Uniform()
"""Uniform distributions whose sizes are given symbol by symbol."""


class StackWriter:
    """Collects symbols in the order in which they will be read; `finish` then fills the stack in reverse."""

    def __init__(self) -> None:
        self._steps: list[tuple[Any, ...]] = []

    def put(self, symbols: int | Symbols, model: Model) -> None:
        """One symbol, or an int32 array of them, of one model."""
        self._steps.append((symbols, model))

    def tails(self, values: Symbols, lengths: Symbols) -> None:
        """Numbers `values[i] < 2^lengths[i]`, lengths from 1 to 24 bits."""
        self._steps.append((values, _EACH_ITS_OWN, np.left_shift(np.int32(1), lengths)))

    def number(self, value: int, length: int) -> None:
        """The lowest `length` bits, at most 40, of a number that is not negative."""
        for shift in range(0, length, PIECE):
            part = min(PIECE, length - shift)
            self.put(value >> shift & (1 << part) - 1, uniform(1 << part))

    def uint(self, value: int) -> None:
        """A number from 0 to 2^40 - 1: its length in bits, then the bits below the leading one."""
        length = value.bit_length()
        self.put(length, _LENGTHS)
        self.number(value, max(length - 1, 0))

    def sint(self, value: int) -> None:
        """A number of either sign."""
        self.uint(zigzag(value))

    def __len__(self) -> int:
        """The number of calls that put something."""
        return len(self._steps)

    def extend(self, other: StackWriter) -> None:
        """Appends what `other` holds: it is read after what is here already."""
        self._steps += other._steps

    def finish(self) -> bytes:
        """The words, little-endian, without the zero bytes at their end."""
        coder = constriction.stream.stack.AnsCoder()
        for step in reversed(self._steps):
            coder.encode_reverse(*step)
        return bytes(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


class StackReader:
    """The symbols of a `StackWriter`, in the order in which they were put.

    Any bytes decode to some symbols of the models asked for, so damage is noticed only at the end, by `finish`.
    """

    def __init__(self, data: bytes | memoryview, *, most: float = math.inf):
        """Opens the stack.

        Args:
            most: how many symbols `take` may give. A symbol that the model is almost sure of takes almost no bits, so
                that without a limit a few bytes could keep the reader busy for ever.
        """
        self._left = most
        if len(data) and not data[-1]:
            raise CorruptFileError("a coded stream ends in a zero byte", remedy="Fetch the file again.")
        words = np.zeros(-(-len(data) // 4), "<u4")
        words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        self._coder = constriction.stream.stack.AnsCoder(words.astype(np.uint32, copy=False))

    def take(self, model: Model) -> int:
        """One symbol; raises `CorruptFileError` when there were `most` of them."""
        self._left -= 1
        if self._left < 0:
            raise CorruptFileError("a coded stream goes on for longer than its bytes can mean")
        return int(self._coder.decode(model))

    def many(self, model: Model, amount: int) -> Symbols:
        """`amount` symbols of one model."""
        symbols: Symbols = self._coder.decode(model, amount)
        return symbols

    def fill(self, model: Model, out: npt.NDArray[np.integer]) -> None:
        """Symbols of one model into a flat array, in pieces, so that no temporary array is as long as `out`."""
        for start in range(0, len(out), _PIECE):
            part = out[start : start + _PIECE]
            part[:] = self.many(model, len(part))

    def tails(self, lengths: Symbols) -> Symbols:
        """Numbers below `2^lengths[i]`, lengths from 1 to 24 bits."""
        values: Symbols = self._coder.decode(_EACH_ITS_OWN, np.left_shift(np.int32(1), lengths))
        return values

    def number(self, length: int) -> int:
        """A number below `2^length`."""
        return sum(self.take(uniform(1 << min(PIECE, length - s))) << s for s in range(0, length, PIECE))

    def uint(self) -> int:
        """A number from 0 to 2^40 - 1."""
        length = self.take(_LENGTHS)
        return (1 << length - 1) | self.number(length - 1) if length else 0

    def sint(self) -> int:
        """A number of either sign."""
        value = self.uint()
        return value >> 1 if not value & 1 else -(value >> 1) - 1

    def finish(self) -> None:
        """Raises `CorruptFileError` unless all symbols of the stack have been taken."""
        if not self._coder.is_empty():
            raise CorruptFileError("a coded stream is longer than its symbols")


def zigzag(value: int) -> int:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    return 2 * value if value >= 0 else -2 * value - 1
