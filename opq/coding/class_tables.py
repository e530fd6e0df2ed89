"""The classes of rows, columns and kernel positions in the stack: the side information of context coding.

Neighbouring indices are often alike (the pixels of an image, the heads of an attention layer). So the classes of an
axis are coded either with one frequency table, or with one table for each possible class of the index before,
whichever is shorter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opq.base.format_v1 import LONGEST_CHAIN, MOST_CLASSES, MOST_CLASSES_PER_AXIS
from opq.coding import tables
from opq.coding.classes import Contexts
from opq.coding.stack import Model, StackReader, StackWriter, categorical, uniform
from opq.errors import CorruptFileError

_ALONE, _AFTER = 0, 1
"""The two orders: one table for all indices of an axis; one table for each class of the index before."""

_ORDERS = uniform(2)
_NUMBERS = uniform(MOST_CLASSES + 1)
_PER_AXIS = uniform(MOST_CLASSES_PER_AXIS)


def put(writer: StackWriter, chosen: Contexts | None) -> None:
    """Writes the classes; None means that all weights are in one class."""
    writer.put(0 if chosen is None else chosen.number, _NUMBERS)
    if chosen is None:
        return
    writer.put(chosen.first, _NUMBERS)
    for axis in chosen.axes:
        if len(axis) > 1:
            size = int(axis.max()) + 1
            writer.put(size - 1, _PER_AXIS)
            if size > 1:
                ways = [_alone(axis, size), *([_after(axis, size)] if len(axis) <= LONGEST_CHAIN else [])]
                writer.extend(min(ways, key=lambda way: len(way.finish())))


def take(reader: StackReader, shape: tuple[int, int, int]) -> Contexts | None:
    """The inverse of `put`; raises `CorruptFileError` on classes that no encoder writes."""
    number = reader.take(_NUMBERS)
    if number == 0:
        return None
    first = reader.take(_NUMBERS)
    if first + number > MOST_CLASSES:
        raise CorruptFileError("more classes than there can be", got=first + number, wanted=f"at most {MOST_CLASSES}")
    r, c, d = (_take_axis(reader, length) for length in shape)
    return Contexts((r, c, d), first, number)


def _alone(axis: npt.NDArray[np.uint8], size: int) -> StackWriter:
    """All classes of an axis with one table."""
    writer = StackWriter()
    writer.put(_ALONE, _ORDERS)
    writer.put(axis.astype(np.int32), _put_table(writer, np.bincount(axis, minlength=size)))
    return writer


def _after(axis: npt.NDArray[np.uint8], size: int) -> StackWriter:
    """Each class is coded with the table of the class before it; the first one as if class 0 came before it."""
    writer = StackWriter()
    writer.put(_AFTER, _ORDERS)
    before = np.concatenate([np.zeros(1, np.uint8), axis[:-1]])
    counts = np.bincount(before.astype(np.int64) * size + axis, minlength=size * size).reshape(size, size)
    models = [_put_table(writer, np.maximum(row, not row.any())) for row in counts]
    for k, previous in zip(axis.tolist(), before.tolist(), strict=True):
        writer.put(k, models[previous])
    return writer


def _put_table(writer: StackWriter, counts: npt.NDArray[np.int64]) -> Model:
    u = tables.roots(counts)
    tables.put(writer, u, 0)
    return categorical(tables.frequencies(u))


def _take_axis(reader: StackReader, length: int) -> npt.NDArray[np.uint8]:
    axis = np.zeros(length, np.uint8)
    size = reader.take(_PER_AXIS) + 1 if length > 1 else 1
    if size == 1:
        return axis
    if reader.take(_ORDERS) == _ALONE:
        reader.fill(_take_table(reader, size), axis)
        return axis
    if length > LONGEST_CHAIN:
        raise CorruptFileError("a chain of classes on a long axis", got=length, wanted=f"at most {LONGEST_CHAIN}")
    models = [_take_table(reader, size) for _ in range(size)]
    k = 0
    for i in range(length):
        axis[i] = k = reader.take(models[k])
    return axis


def _take_table(reader: StackReader, size: int) -> Model:
    return categorical(tables.frequencies(tables.take(reader, 0, size)))
