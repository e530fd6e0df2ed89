"""Floats in the stack, in as few bytes as hold them exactly.

Numbers that a plan rounds beforehand (`rounded`) take two or three bytes; any other finite number takes four or eight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from opq.base.rounding import WIDTHS, bits_of, fits, value_of
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError

_CODES = uniform(len(WIDTHS))


def put(writer: StackWriter, values: Sequence[float]) -> None:
    """Writes finite numbers with one width for all."""
    code = next(k for k, width in enumerate(WIDTHS) if all(fits(v, width) for v in values))
    writer.put(code, _CODES)
    for value in values:
        writer.number(bits_of(value, WIDTHS[code]), WIDTHS[code])


def take(reader: StackReader, amount: int) -> list[float]:
    """The inverse of `put`; raises `CorruptFileError` on numbers that are not finite."""
    width = WIDTHS[reader.take(_CODES)]
    values = [value_of(reader.number(width), width) for _ in range(amount)]
    if not all(map(math.isfinite, values)):
        raise CorruptFileError("a number in the index is not finite")
    return values
