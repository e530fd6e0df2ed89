"""Floats in the stack, each exact, all at the smallest sufficient width.

A plan rounds its numbers beforehand (`opq.base.rounding.rounded`), so that two or three bytes are enough for each; any
other finite number takes four or eight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from opq.base.format_v1 import WIDTHS
from opq.base.rounding import fits, pattern_of, value_of
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError

_WIDTH = uniform(len(WIDTHS))


def put(writer: StackWriter, values: Sequence[float]) -> None:
    """Writes finite numbers, all with the same width."""
    code = next(k for k, width in enumerate(WIDTHS) if all(fits(v, width) for v in values))
    writer.put(code, _WIDTH)
    for value in values:
        writer.number(pattern_of(value, WIDTHS[code]), WIDTHS[code])


def take(reader: StackReader, amount: int, name: Callable[[int], str]) -> list[float]:
    """The inverse of `put`; raises `CorruptFileError` on a number k that is not finite, and calls it `name(k)`."""
    width = WIDTHS[reader.take(_WIDTH)]
    values = [value_of(reader.number(width), width) for _ in range(amount)]
    for k, value in enumerate(values):
        if not math.isfinite(value):
            raise CorruptFileError(f"{name(k)} is not finite", got=value)
    return values
