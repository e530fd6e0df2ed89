"""Models that learn from what they have coded, for the few numbers and letters beside the weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opq.base.format_v1 import LEARNING
from opq.coding.stack import Model, StackReader, StackWriter, categorical
from opq.coding.tables import shares


class Adaptive:
    """A model that learns from the symbols it has seen."""

    def __init__(self, weights: Sequence[int]):
        self._weights = np.array(weights, np.int64)

    def model(self) -> Model:
        return categorical(shares(self._weights))

    def put(self, writer: StackWriter, symbol: int) -> None:
        writer.put(symbol, self.model())
        self._weights[symbol] += LEARNING

    def take(self, reader: StackReader) -> int:
        symbol = reader.take(self.model())
        self._weights[symbol] += LEARNING
        return symbol


class AdaptiveNumber:
    """Numbers below 2^24: the number of bits by an adaptive model, then the bits below the leading one as they are."""

    def __init__(self, weights: Sequence[int]):
        self._lengths = Adaptive(weights)

    def put(self, writer: StackWriter, value: int) -> None:
        length = value.bit_length()
        self._lengths.put(writer, length)
        writer.number(value, max(length - 1, 0))

    def take(self, reader: StackReader) -> int:
        length = self._lengths.take(reader)
        return (1 << length - 1) | reader.number(length - 1) if length else 0
