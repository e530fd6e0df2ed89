"""Writes new files from old ones and the payloads of an update."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from opq.base.format_v1 import most_symbols
from opq.coding import text
from opq.coding.stack import StackReader
from opq.errors import CorruptFileError
from opq.updates import differences, patterns
from opq.updates.anatomy import Bytes, Segment
from opq.updates.checkpoint import Part, anatomy_of, segments
from opq.updates.contents import LONGEST_HEAD, Head, NewFile, Row
from opq.updates.elements import Old, Reference, castable, comparable
from opq.updates.recoded import Recoded, taken

PIECE = 1 << 22
"""Bytes that are copied at one time."""


class Payloads:
    """The payloads of one new file, read one after the other."""

    def __init__(self, file: Bytes, start: int):
        self._file, self._at = file, start

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        self._at += length
        return self._file.read(self._at - length, self._at)

    def pieces(self, length: int) -> Iterator[bytes]:
        """The next `length` bytes, in pieces."""
        for start in range(0, length, PIECE):
            yield self.take(min(PIECE, length - start))

    def framed(self, length: int, number: int) -> Iterator[memoryview]:
        """The next `length` bytes as `number` chunks, which follow the lengths of all but the last."""
        lengths = _lengths(self.take(min(4 * (number - 1), length)), number, length)
        for of_chunk in lengths:
            yield memoryview(self.take(of_chunk))


def _lengths(front: bytes, number: int, length: int) -> list[int]:
    """The lengths of `number` chunks from the bytes before them; both together take `length` bytes."""
    found = [int.from_bytes(front[k : k + 4], "little") for k in range(0, len(front), 4)]
    last = length - 4 * (number - 1) - sum(found)
    if len(front) != 4 * (number - 1) or last < 0:
        raise CorruptFileError("a payload is shorter than its chunks", got=f"{length} bytes")
    return [*found, last]


class Renewer:
    """Writes new files from old ones and payloads."""

    def __init__(self, olds: Sequence[Part]):
        self._olds = olds

    @functools.cached_property
    def _segments(self) -> list[Old]:
        return segments(self._olds)

    def write(self, new: NewFile, payloads: Payloads, out: BinaryIO) -> None:
        """Writes one new file.

        Raises:
            CorruptFileError: the update contradicts itself.
        """
        if new.copy is not None:
            for piece in self._olds[new.copy].file.pieces():
                out.write(piece)
            return
        head = self._head(new.head, payloads)
        anatomy = anatomy_of(head, new.file.size, whole=new.whole)
        if len(anatomy.segments) != len(new.rows):
            got = f"{len(new.rows)} of {new.file.name!r}"
            raise CorruptFileError("rows for other tensors than there are", got=got, wanted=len(anatomy.segments))
        at = 0
        for start, stop in anatomy.head:
            out.seek(start)
            out.write(head[at : at + stop - start])
            at += stop - start
        for segment, row in zip(anatomy.segments, new.rows, strict=True):
            out.seek(segment.start)
            try:
                for piece in self._pieces(segment, row, payloads):
                    out.write(piece)
            except CorruptFileError as error:
                fact = f"tensor {segment.name!r}: {error.fact}"
                raise CorruptFileError(fact, got=error.got, wanted=error.wanted, remedy=error.remedy) from error
            if out.tell() != segment.stop:
                raise CorruptFileError(f"tensor {segment.name!r} has another length", wanted=segment.length)

    def _head(self, head: Head, payloads: Payloads) -> bytes:
        if head.method == "raw":
            return payloads.take(head.length)
        before = b"" if head.old is None else self._olds[head.old].head
        if head.method == "same":
            return before
        data = payloads.take(head.length)
        reader = StackReader(data, most=most_symbols(len(data)))
        found = text.take_bytes(reader, LONGEST_HEAD, before=before)
        reader.finish()
        return found

    def _pieces(self, segment: Segment, row: Row, payloads: Payloads) -> Iterator[bytes]:
        """The bytes of a segment, in order."""
        if row.method == "raw":
            yield from payloads.pieces(row.length)
        elif row.method == "same":
            part, old = self._old(row)
            if old.length != segment.length:
                raise CorruptFileError("an old tensor of another length", got=old.length, wanted=segment.length)
            for start in range(old.start, old.stop, PIECE):
                yield part.file.read(start, min(start + PIECE, old.stop))
        elif row.method == "codes":
            yield self._coded_codes(segment, row, payloads)
        else:
            yield from self._numbers(segment, row, payloads)

    def _old(self, row: Row) -> Old:
        if row.old >= len(self._segments):
            raise CorruptFileError("the number of an old tensor is too large", got=row.old)
        return self._segments[row.old]

    def _numbers(self, segment: Segment, row: Row, payloads: Payloads) -> Iterator[bytes]:
        """Elements that are given as differences to those of an old tensor, or to zeros."""
        old = None if row.method == "alone" else self._old(row)
        fits = comparable if row.method == "old" else castable
        if segment.codes is not None or (old is not None and not fits(segment, old[1])):
            raise CorruptFileError("an old tensor of another kind", got=None if old is None else old[1].dtype)
        kind = patterns.element(segment.dtype)
        reference, length = Reference(kind, segment.dtype, old), differences.block(segment.shape)
        places = differences.chunks(segment.length // kind.width, length)
        for (start, stop), data in zip(places, payloads.framed(row.length, len(places)), strict=True):
            yield patterns.out_of_order(differences.decode(data, reference(start, stop), kind, length), kind)

    def _coded_codes(self, segment: Segment, row: Row, payloads: Payloads) -> bytes:
        """A payload of codes that are given as differences to the codes of an old tensor."""
        part, old = self._old(row)
        if segment.codes is None or old.codes is None:
            raise CorruptFileError("codes of a tensor that has none")
        before = Recoded.of(part.file.read(old.start, old.stop), *old.codes).codes
        book, coding, shape, data = taken(memoryview(payloads.take(row.length)), *segment.codes)
        if shape != before.shape:
            raise CorruptFileError("old codes of another shape", got=before.shape, wanted=shape)
        kind, length = patterns.element("I16"), differences.block(shape)
        places = differences.chunks(before.size, length)
        reference, codes, at = before.reshape(-1), np.empty(before.size, np.int16), 4 * (len(places) - 1)
        for (start, stop), size in zip(places, _lengths(bytes(data[:at]), len(places), len(data)), strict=True):
            codes[start:stop] = differences.decode(data[at : at + size], reference[start:stop], kind, length)
            at += size
        return Recoded(book, coding, codes.reshape(shape)).payload()
