"""Makes the update between two checkpoints."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from opq.base.atomic import refuse_inputs, written_aside
from opq.base.calls import checked_names
from opq.base.format_v1 import most_symbols
from opq.base.progress import Progress, shown
from opq.coding import text
from opq.coding.stack import StackWriter
from opq.errors import CorruptFileError
from opq.updates import differences, envelope, patterns
from opq.updates.anatomy import Segment
from opq.updates.checkpoint import Part, opened, segments
from opq.updates.contents import LONGEST_HEAD, Contents, Head, Method, NewFile, Row
from opq.updates.elements import Old, Reference, castable, comparable
from opq.updates.recoded import Recoded

DOUBTFUL = 0.75
"""Differences that take more than this fraction of a tensor's bytes are compared with coding the tensor by itself."""
PIECE = 1 << 22
"""Bytes that are compared or copied at one time."""


@checked_names
def delta(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    portable: bool = False,
    progress: Progress | bool | None = None,
) -> int:
    """Writes the update from one checkpoint to another, from which `opq.apply` makes the new one again, byte for byte.

    Tensors that have not changed take almost no bytes. For the others the differences are coded; in opq files, those
    of the codes. Both checkpoints may be safetensors files, opq files, or folders of them; all other files of a folder
    are part of the update too. Memory is bounded by the largest tensor.

    Args:
        old: the checkpoint that the receiver has, a file or a folder.
        new: the checkpoint that the receiver is to have, a file or a folder.
        output: the update to write.
        portable: whether large payloads of codes are sent as they are. By default only their changes are sent, and the
            receiver codes the new codes again. That needs the same version of pcodec on both sides; the update names
            the version, and `opq.apply` asks for it.
        progress: called with (stage, done, total); True for a bar, False for none.

    Returns:
        The size of the update in bytes.

    Raises:
        FileFormatError: a file does not exist, or is not a complete safetensors file.
        OptionError: the output is one of the checkpoints, or a folder holds something that an update cannot hold.
        WriteError: the output cannot be written; nothing is left behind.

    Example:
        >>> import pathlib, tempfile, opq, torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     old, new, update, again = (f"{folder}/{n}.safetensors" for n in ("old", "new", "update", "again"))
        ...     weights = torch.randn(64, 64)
        ...     save_file({"w": weights}, old)
        ...     save_file({"w": weights * 1.001}, new)
        ...     opq.delta(old, new, update) < 0.6 * pathlib.Path(new).stat().st_size
        ...     size = opq.apply(old, update, again)
        ...     pathlib.Path(again).read_bytes() == pathlib.Path(new).read_bytes()
        True
        True
    """
    refuse_inputs(output, [old, new])
    with shown(progress) as tell, opened(old) as (one, olds), opened(new) as (other, news):
        maker = Maker(olds, portable=portable)
        amount = sum(part.file.size for part in news.values())
        with written_aside(output) as out:
            envelope.reserve(out)
            sent = Sent(out)
            made: list[NewFile] = []
            done = 0
            for part in news.values():
                made.append(maker.file(part, sent))
                done += part.file.size
                tell("compare", done, amount)
            known = tuple(maker.known[name] for name in olds)
            whole = Contents((one, other), known, tuple(made), maker.pcodec)
            return envelope.complete(out, whole, sent.length, sent.checksum)


class Sent:
    """Writes payloads into the file and keeps their total length and checksum."""

    def __init__(self, out: BinaryIO):
        self._out, self.length, self.checksum = out, 0, 0

    def put(self, data: bytes) -> int:
        """Writes some bytes; returns their number."""
        self._out.write(data)
        self.length += len(data)
        self.checksum = zlib.crc32(data, self.checksum)
        return len(data)


@dataclasses.dataclass(frozen=True, slots=True)
class _Coded:
    """One way to give a tensor, with its payload."""

    method: Method
    payload: list[bytes]
    old: int = 0

    @property
    def size(self) -> int:
        return sum(map(len, self.payload))


class Maker:
    """Describes new files by means of the old ones."""

    def __init__(self, olds: Mapping[str, Part], *, portable: bool):
        self.known = {name: part.fingerprint() for name, part in olds.items()}
        self.pcodec = ""
        self._portable = portable
        self._olds = list(olds.values())
        self._names = list(olds)
        self._segments = segments(self._olds)
        self._numbers: dict[str, list[int]] = {}
        for number, (_, segment) in enumerate(self._segments):
            self._numbers.setdefault(segment.name, []).append(number)

    def file(self, part: Part, sent: Sent) -> NewFile:
        """Describes one new file, and writes its payloads."""
        anatomy = part.anatomy  # first, since it raises for a damaged file before all of it is read
        mine = part.fingerprint()
        for number, known in enumerate(self.known.values()):
            if (known.size, known.digest) == (mine.size, mine.digest):
                return NewFile(mine, copy=number)
        counterpart = self._counterpart(part)
        head = self._head(part, counterpart, sent)
        rows = [self._row(part, segment, counterpart, sent) for segment in anatomy.segments]
        return NewFile(mine, whole=part.whole, head=head, rows=tuple(rows))

    def _counterpart(self, part: Part) -> int | None:
        """The number of the old file that a new one most likely comes from.

        It is the file of the same name. If there is none, it is the first safetensors file for a safetensors file, and
        None for any other file.
        """
        if part.name in self._names:
            return self._names.index(part.name)
        alike = [k for k, old in enumerate(self._olds) if old.whole == part.whole]
        return alike[0] if alike and not part.whole else None

    def _head(self, part: Part, counterpart: int | None, sent: Sent) -> Head:
        before = b"" if counterpart is None else self._olds[counterpart].head
        if counterpart is not None and part.head == before:
            return Head("same", counterpart)
        if len(part.head) > LONGEST_HEAD:
            return Head("raw", None, sent.put(part.head))
        if len(part.head) + len(before) > LONGEST_HEAD:
            counterpart, before = None, b""
        writer = StackWriter()
        text.put_bytes(writer, part.head, before=before)
        data = writer.finish()
        if len(writer) > most_symbols(len(data)) or len(data) >= len(part.head):
            return Head("raw", None, sent.put(part.head))
        return Head("coded", counterpart, sent.put(data))

    def _row(self, part: Part, segment: Segment, counterpart: int | None, sent: Sent) -> Row:
        number = self._old_of(segment, counterpart)
        if number is not None and self._same(part, segment, number):
            return Row("same", number)
        best: _Coded | None = None
        for way in self._ways(part, segment, number):
            if best is None or way.size < best.size:
                best = way
        if best is None or best.size >= segment.length:
            return Row("raw", length=_copied(part, segment, sent))
        return Row(best.method, best.old, sum(map(sent.put, best.payload)))

    def _old_of(self, segment: Segment, counterpart: int | None) -> int | None:
        """The number of the old segment of the same name, in the counterpart if it is there."""
        numbers = self._numbers.get(segment.name, [])
        own = [n for n in numbers if counterpart is not None and self._segments[n][0] is self._olds[counterpart]]
        return next(iter(own or numbers), None)

    def _same(self, part: Part, segment: Segment, number: int) -> bool:
        other, old = self._segments[number]
        if old.length != segment.length:
            return False
        for at in range(0, segment.length, PIECE):
            stop = min(at + PIECE, segment.length)
            mine = part.file.read(segment.start + at, segment.start + stop)
            if mine != other.file.read(old.start + at, old.start + stop):
                return False
        return True

    def _ways(self, part: Part, segment: Segment, number: int | None) -> Iterator[_Coded]:
        """The ways that are worth trying, the one that is usually best first."""
        old = None if number is None else self._segments[number]
        if segment.codes is not None:
            if old is not None and number is not None and (made := self._codes(part, segment, old)) is not None:
                yield _Coded("codes", made, number)
            return
        size = segment.length
        if old is not None and number is not None:
            method: Method | None = (
                "old" if comparable(segment, old[1]) else "cast" if castable(segment, old[1]) else None
            )
            if method is not None:
                made = self._coded(part, segment, old)
                size = sum(map(len, made))
                yield _Coded(method, made, number)
        if size > DOUBTFUL * segment.length:
            yield _Coded("alone", self._coded(part, segment, None))

    def _coded(self, part: Part, segment: Segment, old: Old | None) -> list[bytes]:
        """The chunks of a segment as differences to an old one, or to zeros."""
        kind = patterns.element(segment.dtype)
        reference = Reference(kind, segment.dtype, old)
        length = differences.block(segment.shape)

        def chunk(place: tuple[int, int]) -> bytes:
            start, stop = place
            begin = segment.start
            new = patterns.in_order(part.file.read(begin + start * kind.width, begin + stop * kind.width), kind)
            return differences.encode(new, reference(start, stop), kind, length)

        return framed([chunk(place) for place in differences.chunks(segment.length // kind.width, length)])

    def _codes(self, part: Part, segment: Segment, old: Old) -> list[bytes] | None:
        """New codes as differences to old codes; None if the old ones have another shape, or the bytes would change."""
        new, before = recoded(part, segment), recoded(*old)
        if new is None or before is None or new.codes.shape != before.codes.shape:
            return None
        if new.paged and self._portable:
            return None
        if new.payload() != part.file.read(segment.start, segment.stop):
            return None  # the payload was written by another version of this package or of pcodec
        if new.paged:
            self.pcodec = importlib.metadata.version("pcodec")
        length = differences.block(new.codes.shape)
        flat, reference, kind = new.codes.reshape(-1), before.codes.reshape(-1), patterns.element("I16")
        chunks = [
            differences.encode(flat[start:stop], reference[start:stop], kind, length, codes=True)
            for start, stop in differences.chunks(len(flat), length)
        ]
        return [new.head(), *framed(chunks)]


def framed(chunks: Sequence[bytes]) -> list[bytes]:
    """Chunks after a list of their lengths, without that of the last."""
    return [b"".join(len(chunk).to_bytes(4, "little") for chunk in chunks[:-1]), *chunks]


def recoded(part: Part, segment: Segment) -> Recoded | None:
    """A payload of codes, taken apart; None if the segment is not one, or is damaged."""
    if segment.codes is None:
        return None
    try:
        return Recoded.of(part.file.read(segment.start, segment.stop), *segment.codes)
    except CorruptFileError:
        return None


def _copied(part: Part, segment: Segment, sent: Sent) -> int:
    return sum(
        sent.put(part.file.read(start, min(start + PIECE, segment.stop)))
        for start in range(segment.start, segment.stop, PIECE)
    )
