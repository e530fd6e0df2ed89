"""Integers against a reference that both sides have: the differences, by class of the reference, near their entropy.

A tensor is cut into chunks of whole blocks (rows, as a rule). A chunk says which of its blocks differ at all; the
others are left out. What is left falls into classes by the reference: by the exponents of floats, since what training
adds does not depend on them and counts in units of 2^exponent; by the values of codes, since a large code moves
otherwise than a zero. Each class is one stream of integers.
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
"""Elements of a block: those of a row, where they are not fewer or more than this; else so many."""
MOST_CLASSES = 16
CODES = 7
"""Codes of larger magnitude are of one class."""
BY_EXPONENT = 8
"""Classes by exponent. Of MiniLM and ResNet-20 4 cost 2 % more bytes, 12 and 16 no fewer."""
FEW = 1 << 13
"""Fewer elements are of one class."""

Way = Literal["one", "exponent", "value"]
WAYS: tuple[Way, ...] = ("one", "exponent", "value")
_WAYS, _FLAG, _CLASSES, _KINDS = uniform(3), uniform(2), uniform(MOST_CLASSES), uniform(2)
_SMALL, _WIDE = 0, 1
"""Kinds of stream: the codes of docs/format.md, and pcodec on the elements' own type."""


@dataclasses.dataclass(frozen=True, slots=True)
class Classes:
    """How elements fall into classes by their reference."""

    way: Way
    number: int = 1
    top: int = 0
    """Of exponents: that of class 0 and all above."""

    def of(self, reference: Patterns, kind: Element) -> npt.NDArray[np.uint8] | None:
        """The class of each element; None where there is one."""
        if self.way == "one":
            return None
        if self.way == "value":
            return (np.clip(reference, -CODES, CODES) + CODES).astype(np.uint8)
        return np.clip(self.top - exponents(reference, kind), 0, self.number - 1).astype(np.uint8)


def block(shape: tuple[int, ...]) -> int:
    """Elements of a block of a tensor."""
    row = math.prod(shape[1:])
    return row if len(shape) > 1 and SHORTEST <= row <= LONGEST else OTHERWISE


def chunks(size: int, length: int) -> list[tuple[int, int]]:
    """First elements of chunks and those beyond; `length` is that of a block."""
    step = max(1, CHUNK // length) * length
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def encode(new: Patterns, reference: Patterns, kind: Element, length: int, *, codes: bool = False) -> bytes:
    """A chunk of integers against as many others, in blocks of `length`.

    Args:
        codes: whether these are codes, whose values make classes.
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
        CorruptFileError: these are not the bytes of so many integers.
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
    """Those of a chunk."""
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
    """Whether each block holds anything but zeros."""
    whole = len(difference) // length * length
    found: npt.NDArray[np.bool_] = np.any(difference[:whole].reshape(-1, length), axis=1)
    return found if whole == len(difference) else np.append(found, difference[whole:].any())


class _Body:
    """Bytes, taken from the front."""

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
