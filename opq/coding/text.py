"""Text in the stack: the names of tensors resemble each other, so most of a name is a copy of an earlier piece.

A greedy Lempel-Ziv parse with adaptive integer models. No general compressor is used, because its output could change
with its version.
"""

from __future__ import annotations

from opq.base.format_v1 import BYTE_WEIGHTS, COPY_LENGTH_WEIGHTS, DISTANCE_WEIGHTS, REMEMBERED, STEP_WEIGHTS
from opq.coding.adaptive import Adaptive, AdaptiveNumber
from opq.coding.stack import StackReader, StackWriter
from opq.errors import CorruptFileError

_SHORTEST = 3
"""Bytes of the shortest copy from a new distance. A choice: a shorter one costs about as much as its bytes."""
_TRIED = 8
"""How many earlier places are searched for the longest copy: the latest ones. A choice: time for a shorter text."""
_LITERAL, _COPY, _AGAIN = 0, 1, 2
"""Kinds of step: a byte; a copy from a new distance; from 2 on, a copy from the latest distance, the one before it, ...
(`REMEMBERED` of them)."""


class _Models:
    """The adaptive models of one text, while it is read or written."""

    def __init__(self) -> None:
        self.kinds = [Adaptive(weights) for weights in STEP_WEIGHTS]
        self.bytes = Adaptive(BYTE_WEIGHTS)
        self.lengths = AdaptiveNumber(COPY_LENGTH_WEIGHTS)
        self.distances = AdaptiveNumber(DISTANCE_WEIGHTS)


def put(writer: StackWriter, text: str) -> None:
    """Writes a text of less than 2^24 bytes of UTF-8."""
    data = text.encode()
    writer.uint(len(data))
    models, last, kind = _Models(), [0] * REMEMBERED, _LITERAL
    seen: dict[bytes, list[int]] = {}
    position = 0
    while position < len(data):
        before, (kind, length, distance) = kind, _step(data, position, last, seen)
        models.kinds[before].put(writer, kind)
        if kind == _LITERAL:
            models.bytes.put(writer, data[position])
        else:
            models.lengths.put(writer, length)
            if kind == _COPY:
                models.distances.put(writer, distance)
            last = _moved(last, distance)
        for k in range(position, position + length):
            seen.setdefault(data[k : k + _SHORTEST], []).append(k)
        position += length


def take(reader: StackReader, longest: int) -> str:
    """The inverse of `put`; raises `CorruptFileError` on more than `longest` bytes, or on bytes that are not UTF-8."""
    size = reader.uint()
    if size > longest:
        raise CorruptFileError("a text is longer than the file can hold", got=size, wanted=f"at most {longest}")
    models, last, kind = _Models(), [0] * REMEMBERED, _LITERAL
    data = bytearray()
    while len(data) < size:
        kind = models.kinds[kind].take(reader)
        if kind == _LITERAL:
            data.append(models.bytes.take(reader))
            continue
        length = models.lengths.take(reader)
        distance = models.distances.take(reader) if kind == _COPY else last[kind - _AGAIN]
        if not 0 < distance <= len(data) or not 0 < length <= size - len(data):
            raise CorruptFileError("a text copies from outside of itself", got=f"{length} bytes from {distance} back")
        start, stop = len(data) - distance, len(data) + length
        while len(data) < stop:
            data += data[start : start + stop - len(data)]
        last = _moved(last, distance)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptFileError("a text is not UTF-8", got=error) from error


def _step(data: bytes, position: int, last: list[int], seen: dict[bytes, list[int]]) -> tuple[int, int, int]:
    """Kind, length and distance of the next step: the longest copy found, with preference for a remembered distance."""
    lengths = [_common(data, position - d, position) if d else 0 for d in last]
    again = max(range(REMEMBERED), key=lambda k: (lengths[k], -k))
    length, distance = 0, 0
    for start in reversed(seen.get(data[position : position + _SHORTEST], [])[-_TRIED:]):
        if (found := _common(data, start, position)) > length:
            length, distance = found, position - start
    if lengths[again] > 1 and lengths[again] + 2 >= length:
        return _AGAIN + again, lengths[again], last[again]
    return (_COPY, length, distance) if length >= _SHORTEST else (_LITERAL, 1, 0)


def _moved(last: list[int], distance: int) -> list[int]:
    """The remembered distances with `distance` moved to the front."""
    return [distance, *(d for d in last if d != distance)][:REMEMBERED]


def _common(data: bytes, start: int, position: int) -> int:
    """How many bytes from `position` on equal those from `start` on."""
    length = 0
    while length < 0xFF00 and _same(data, start + length, position + length):
        length += _STRIDE
    while position + length < len(data) and length < 0xFFFF and data[start + length] == data[position + length]:
        length += 1
    return length


_STRIDE = 16
"""Bytes compared at once. A choice of speed: the result does not depend on it."""


def _same(data: bytes, start: int, position: int) -> bool:
    """Whether at both places `_STRIDE` more bytes follow, and are equal."""
    ahead = data[position : position + _STRIDE]
    return len(ahead) == _STRIDE and data[start : start + _STRIDE] == ahead
