"""Integers against a reference that both sides have: the differences, by class, near their entropy.

A tensor is cut into chunks of whole blocks (rows, as a rule). A chunk says which of its blocks differ at all; the
others are left out. What is left falls into classes (`opq.updates.scales`): by the exponents of floats, since what
training adds does not depend on them and counts in units of 2^exponent, and by the scale of the changes in a block,
since the rows of words that were not in the texts hardly move; by the values of codes, since a large code moves
otherwise than a zero. Each class is one stream of integers. Of floats the difference counts away from zero, since
weight decay goes towards it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from opq.base.format_v1 import LARGEST_CODE
from opq.coding import entropy, pages
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.coding.symbols import DIRECT
from opq.errors import CorruptFileError
from opq.updates.patterns import Element, Patterns
from opq.updates.scales import MOST_CLASSES, MOST_SCALES, VALUES, WAYS, Classes, chosen_classes

CHUNK = 1 << 22
"""Elements of a chunk, rounded down to whole blocks."""
SHORTEST, LONGEST, OTHERWISE = 16, 1 << 16, 256
"""Elements of a block: those of a row, where they are not fewer or more than this; else so many."""
_WAYS, _FLAG, _CLASSES, _KINDS = uniform(len(WAYS)), uniform(2), uniform(MOST_CLASSES), uniform(2)
_SMALL, _WIDE = 0, 1
"""Kinds of streams: coded like the codes of a tensor (docs/format.md, "Codes"), or by pcodec in the elements' type."""


def block(shape: tuple[int, ...]) -> int:
    """The number of elements in a block of a tensor of this shape."""
    row = math.prod(shape[1:])
    return row if len(shape) > 1 and SHORTEST <= row <= LONGEST else OTHERWISE


def chunks(size: int, length: int) -> list[tuple[int, int]]:
    """Start and stop of each chunk of `size` elements; `length` is the number of elements in a block."""
    step = max(1, CHUNK // length) * length
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def encode(new: Patterns, reference: Patterns, kind: Element, length: int, *, codes: bool = False) -> bytes:
    """Codes a chunk of integers as differences to a reference.

    Args:
        new: the integers, flat.
        reference: as many integers of the same type.
        kind: what the integers stand for.
        length: the number of elements in a block.
        codes: whether they are codes, which are classed by value.
    """
    difference = _outward(new, reference, kind)
    differs = _blocks(difference, length)
    lengths = _lengths(len(new), length, differs)
    if not differs.all():
        chosen = np.repeat(differs, length)[: len(new)]
        difference, reference = difference[chosen], reference[chosen]
    classes = Classes("value", VALUES) if codes else chosen_classes(difference, reference, kind, lengths)
    writer, body = StackWriter(), []

    def put(stream: bytes) -> None:
        body.append(stream)
        writer.uint(len(stream))

    writer.put(WAYS.index(classes.way), _WAYS)
    if classes.way == "scale":
        writer.put(classes.number - 1, _CLASSES)
        writer.uint(classes.top)
    writer.put(int(not differs.all()), _FLAG)
    if not differs.all():
        put(entropy.encode(differs.astype(np.int16)))
    if classes.way == "scale" and len(lengths):
        put(entropy.encode(classes.scales))
    for part in _sorted(difference, classes.of(reference, kind, lengths)):
        stream, which = _coded(part)
        writer.put(which, _KINDS)
        put(stream)
    head = writer.finish()
    return b"".join([len(head).to_bytes(4, "little"), head, *body])


def decode(data: memoryview, reference: Patterns, kind: Element, length: int) -> Patterns:
    """The inverse of `encode`.

    Raises:
        CorruptFileError: the bytes are not those of `len(reference)` integers.
    """
    stop = 4 + int.from_bytes(data[:4], "little")
    if len(data) < stop:
        raise CorruptFileError("a chunk ends in its head", got=f"{len(data)} bytes", wanted=stop)
    reader, body = StackReader(data[4:stop]), _Body(data[stop:])
    way = WAYS[reader.take(_WAYS)]
    number, top = (reader.take(_CLASSES) + 1, reader.uint()) if way == "scale" else (1, 0)
    if number > 1 and not kind.fraction:
        raise CorruptFileError("classes by exponent of what has none")
    differs = np.ones(-(-len(reference) // length), bool)
    if reader.take(_FLAG):
        differs = _below(2, body.take(reader.uint()), len(differs)).astype(bool)
    lengths = _lengths(len(reference), length, differs)
    if way == "scale" and len(lengths):
        scales = _below(MOST_SCALES, body.take(reader.uint()), len(lengths))
        classes = Classes(way, number, top, scales)
    else:
        classes = Classes(way, VALUES if way == "value" else 1)
    chosen: Any = slice(None) if differs.all() else np.repeat(differs, length)[: len(reference)]
    some = reference[chosen]
    difference = _streams(reader, body, some, classes.of(some, kind, lengths))
    reader.finish()
    body.finish()
    whole = reference.copy()
    with np.errstate(over="ignore"):
        whole[chosen] += _turned(difference, some, kind)
    return whole


def _coded(part: Patterns) -> tuple[bytes, int]:
    """One stream and its kind, the shorter one where both can hold it.

    Codes spend all low bits of large values; pcodec finds the few that decay by a fixed factor leaves in float32.
    """
    low, high = int(part.min()), int(part.max())
    if low < -LARGEST_CODE or high > LARGEST_CODE:
        return pages.encode(part), _WIDE
    small = entropy.encode(part.astype(np.int16))
    if low > -DIRECT and high < DIRECT:
        return small, _SMALL
    wide = pages.encode(part)
    return (small, _SMALL) if len(small) <= len(wide) else (wide, _WIDE)


def _outward(new: Patterns, reference: Patterns, kind: Element) -> Patterns:
    """The differences; of floats below zero their negatives."""
    with np.errstate(over="ignore"):
        return _turned(new - reference, reference, kind)


def _turned(difference: Patterns, reference: Patterns, kind: Element) -> Patterns:
    """Its own inverse."""
    if not kind.floating:
        return difference
    with np.errstate(over="ignore"):
        found: Patterns = np.where(reference < 0, -difference, difference)
    return found


def _lengths(size: int, length: int, differs: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Elements of each block that is there."""
    found = np.full(len(differs), length, np.int64)
    found[-1:] = size - length * (len(differs) - 1)
    return found[differs]


def _sorted(difference: Patterns, classes: npt.NDArray[np.uint8] | None) -> list[Patterns]:
    """The differences of each class that has any."""
    if classes is None:
        return [difference] if len(difference) else []
    ends = np.cumsum(np.bincount(classes))[:-1] if len(classes) else np.zeros(0, np.int64)
    return [part for part in np.split(difference[np.argsort(classes, kind="stable")], ends) if len(part)]


def _streams(reader: StackReader, body: _Body, like: Patterns, classes: npt.NDArray[np.uint8] | None) -> Patterns:
    """The differences of all classes, in the order of their elements."""
    counts = [len(like)] if classes is None else np.bincount(classes).tolist()
    parts = [_stream(reader, body, amount, like.dtype) for amount in counts if amount]
    if classes is None or not parts:
        return parts[0] if parts else like[:0]
    found = np.empty_like(like)
    found[np.argsort(classes, kind="stable")] = np.concatenate(parts)
    return found


def _below(most: int, data: memoryview, amount: int) -> npt.NDArray[np.int16]:
    """So many codes from 0 to `most - 1`."""
    found = entropy.decode(data, (amount,))
    if amount and (int(found.min()) < 0 or int(found.max()) >= most):
        raise CorruptFileError("a block of no class", got=int(found.max()), wanted=f"0 to {most - 1}")
    return found


def _blocks(difference: Patterns, length: int) -> npt.NDArray[np.bool_]:
    """For each block, whether it holds anything but zeros."""
    whole = len(difference) // length * length
    found: npt.NDArray[np.bool_] = np.any(difference[:whole].reshape(-1, length), axis=1)
    return found if whole == len(difference) else np.append(found, difference[whole:].any())


class _Body:
    """Bytes that are read from the front."""

    def __init__(self, data: memoryview):
        self._left = data

    def take(self, length: int) -> memoryview:
        if length > len(self._left):
            raise CorruptFileError("a chunk ends in a stream", got=len(self._left), wanted=length)
        found, self._left = self._left[:length], self._left[length:]
        return found

    def finish(self) -> None:
        if len(self._left):
            raise CorruptFileError("a chunk goes on after its streams", got=f"{len(self._left)} bytes", wanted=0)


def _stream(reader: StackReader, body: _Body, amount: int, dtype: np.dtype[Any]) -> Patterns:
    kind = reader.take(_KINDS)
    data = body.take(reader.uint())
    if kind == _SMALL:
        found = entropy.decode(data, (amount,))
        if dtype.itemsize == 1 and (int(found.min()) < -128 or int(found.max()) > 127):
            raise CorruptFileError("a difference beyond its type", got=int(np.abs(found).max()))
        return found.astype(dtype)
    out = np.empty(amount, dtype)
    pages.decode(data, out)
    return out
