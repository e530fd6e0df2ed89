"""Codes integers as differences to a reference that both sides have, near the entropy of the differences.

A tensor is cut into chunks of whole blocks; a block is usually a row. A chunk says which of its blocks differ from the
reference and leaves out the others. The remaining elements are divided into classes by their reference. Floats are
classed by exponent: a training step changes a weight by an amount that hardly depends on the weight, and the integers
express that amount in units of 2^exponent. Codes are classed by value, since large codes change differently from
zeros. The differences of each class are coded as one stream.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opq.base.format_v1 import LARGEST_CODE
from opq.coding import entropy, pages
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError
from opq.updates.patterns import Element, Patterns, exponents

CHUNK = 1 << 22
"""Elements of a chunk, rounded down to whole blocks."""
SHORTEST, LONGEST, OTHERWISE = 16, 1 << 16, 256
"""A block is a row if it has from `SHORTEST` to `LONGEST` elements; otherwise a block has `OTHERWISE` elements."""
MOST_CLASSES = 16
CODES = 7
"""Each code up to this magnitude has a class of its own; larger ones belong to the class of this magnitude."""
BY_EXPONENT = 8
"""Number of classes by exponent. For MiniLM and ResNet-20, 4 classes cost 2 % more bytes; 12 and 16 save none."""
FEW = 1 << 13
"""A chunk with fewer elements that differ has only one class."""

Way = Literal["one", "exponent", "value"]
WAYS: tuple[Way, ...] = ("one", "exponent", "value")
_WAYS, _FLAG, _CLASSES, _KINDS = uniform(3), uniform(2), uniform(MOST_CLASSES), uniform(2)
_SMALL, _WIDE = 0, 1
"""Kinds of streams: coded like the codes of a tensor (docs/format.md, "Codes"), or by pcodec in the elements' type."""


@dataclasses.dataclass(frozen=True, slots=True)
class Classes:
    """How elements are divided into classes by their reference."""

    way: Way
    number: int = 1
    """The number of classes."""
    top: int = 0
    """The exponent of class 0, which also takes all larger ones; the next class has the next smaller exponent."""

    def of(self, reference: Patterns, kind: Element) -> npt.NDArray[np.uint8] | None:
        """The class of each element; None if there is only one class."""
        if self.way == "one":
            return None
        if self.way == "value":
            return (np.clip(reference, -CODES, CODES) + CODES).astype(np.uint8)
        return np.clip(self.top - exponents(reference, kind), 0, self.number - 1).astype(np.uint8)


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
    with np.errstate(over="ignore"):
        difference = new - reference
    differs = _blocks(difference, length)
    chosen = np.repeat(differs, length)[: len(new)]
    if not differs.all():
        difference, reference = difference[chosen], reference[chosen]
    classes = _classes(reference, kind, codes)
    found = classes.of(reference, kind)
    parts = [difference] if found is None else [difference[found == k] for k in range(classes.number)]
    writer, body = StackWriter(), []
    writer.put(WAYS.index(classes.way), _WAYS)
    if classes.way == "exponent":
        writer.put(classes.number - 1, _CLASSES)
        writer.uint(classes.top)
    writer.put(int(not differs.all()), _FLAG)
    if not differs.all():
        body.append(entropy.encode(differs.astype(np.int16)))
        writer.uint(len(body[-1]))
    for part in (part for part in parts if len(part)):
        small = int(part.min()) >= -LARGEST_CODE and int(part.max()) <= LARGEST_CODE
        writer.put(_SMALL if small else _WIDE, _KINDS)
        body.append(entropy.encode(part.astype(np.int16)) if small else pages.encode(part))
        writer.uint(len(body[-1]))
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
    classes = _taken(reader, kind)
    blocks = -(-len(reference) // length)
    differs = np.ones(blocks, bool)
    if reader.take(_FLAG):
        flags = entropy.decode(body.take(reader.uint()), (blocks,))
        if int(flags.min()) < 0 or int(flags.max()) > 1:
            raise CorruptFileError("a block that neither differs nor does not")
        differs = flags.astype(bool)
    chosen = np.repeat(differs, length)[: len(reference)]
    some = reference if differs.all() else reference[chosen]
    found = classes.of(some, kind)
    difference = np.empty_like(some)
    for k in range(classes.number):
        which: Any = slice(None) if found is None else found == k
        amount = len(some) if found is None else int(np.count_nonzero(which))
        if amount:
            difference[which] = _stream(reader, body, amount, some.dtype)
    reader.finish()
    body.finish()
    with np.errstate(over="ignore"):
        if differs.all():
            return reference + difference
        whole = reference.copy()
        whole[chosen] = some + difference
        return whole


def _classes(reference: Patterns, kind: Element, codes: bool) -> Classes:
    """The classes for a chunk."""
    if codes:
        return Classes("value", 2 * CODES + 1)
    if not kind.fraction or len(reference) < FEW or not reference.any():
        return Classes("one")
    counts = np.bincount(exponents(reference, kind))
    beyond = np.cumsum(counts[::-1])[::-1]
    top = int(np.flatnonzero(beyond * 1000 >= len(reference))[-1])
    return Classes("exponent", BY_EXPONENT, top)


def _taken(reader: StackReader, kind: Element) -> Classes:
    way = WAYS[reader.take(_WAYS)]
    if way == "exponent":
        if not kind.fraction:
            raise CorruptFileError("classes by exponent of what has none")
        return Classes(way, reader.take(_CLASSES) + 1, reader.uint())
    return Classes(way, 2 * CODES + 1 if way == "value" else 1)


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
