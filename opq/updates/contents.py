"""The file of an update: what it says of old and new files, and where the bytes of each difference lie.

docs/format.md, "Updates", is the specification; every number here is part of version 1 of it and fixed for ever.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal

from opq.base.format_v1 import LARGEST_HEADER, most_symbols, most_text
from opq.coding import text
from opq.coding.adaptive import Adaptive, AdaptiveNumber
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError, ForeignFileError, NewerFormatError, TruncatedFileError
from opq.file.header import METADATA, no_twins
from opq.updates.anatomy import Bytes

VERSION = 1
MEMBER = "opq_update"
"""The member of the metadata that holds the version; an opq file has another one."""
ENTRY = "update"
BASE = 256
"""Where the entry begins: behind a header of so many bytes with its length."""
FRONT = 12
"""Bytes of the entry before the index: its checksum and its length, and the checksum of the payloads."""

LONGEST_HEAD = 1 << 22
"""Bytes of a head, with the old one that it copies from, that the text coder takes: a few seconds."""

Method = Literal["same", "raw", "alone", "old", "cast", "codes"]
METHODS: tuple[Method, ...] = ("same", "raw", "alone", "old", "cast", "codes")
"""How the bytes of a tensor are held, by number: those of an old one; as they are; coded for themselves; as the
difference to an old one; to an old one of another type; codes by the old codes."""
WITH_OLD = ("same", "old", "cast", "codes")
WITH_BYTES = ("raw", "alone", "old", "cast", "codes")

HeadMethod = Literal["same", "coded", "raw"]
HEADS: tuple[HeadMethod, ...] = ("same", "coded", "raw")
"""How a head is held: that of an old file; by the text coder, with copies from an old head; as it is."""
MOST_FILES = 1 << 20

METHOD_WEIGHTS = (8,) * 8
NEXT_WEIGHTS = (4, 1)
LENGTH_WEIGHTS = (4,) * 41
_FLAG, _WAYS, _HEADS = uniform(2), uniform(4), uniform(4)


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a file is known by."""

    name: str
    """Relative to its folder; of a checkpoint in one file only for people."""
    size: int
    digest: bytes
    """SHA-256."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """How a new file has the bytes of one of its segments."""

    method: Method
    old: int = 0
    """The number of the old segment, where the method has one."""
    length: int = 0
    """Bytes of the payload."""


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """How a new file has its head."""

    method: HeadMethod
    old: int | None = None
    """The number of the old file whose head is copied from."""
    length: int = 0
    """Bytes of the payload."""


@dataclasses.dataclass(frozen=True, slots=True)
class NewFile:
    """One new file: a copy of an old one, or a head and rows."""

    file: Fingerprint
    copy: int | None = None
    """The number of the old file that it is equal to."""
    whole: bool = False
    """Whether it is no safetensors file: the head is all of it, or it has none and is one segment of bytes."""
    head: Head = Head("same")
    rows: tuple[Row, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """Bytes of its payloads, in order."""
        return [] if self.copy is not None else [self.head.length, *(row.length for row in self.rows)]


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """All that an update says but for the payloads."""

    folders: tuple[bool, bool]
    """Whether the old and the new checkpoint are folders."""
    old: tuple[Fingerprint, ...]
    new: tuple[NewFile, ...]
    pcodec: str
    """The version of pcodec that payloads of pages have to be made again with; empty where none has."""


def encode(contents: Contents) -> bytes:
    """The index of an update."""
    writer = StackWriter()
    for folder in contents.folders:
        writer.put(int(folder), _FLAG)
    writer.uint(len(contents.old))
    writer.uint(len(contents.new))
    names = [contents.pcodec, *(f.name for f in contents.old), *(n.file.name for n in contents.new)]
    text.put(writer, "\n".join(names))
    models = _Models()
    for known in contents.old:
        _put_fingerprint(writer, known)
    for new in contents.new:
        _put_fingerprint(writer, new.file)
        writer.put(1 if new.copy is not None else 2 if new.whole else 0, _WAYS)
        if new.copy is not None:
            writer.uint(new.copy)
            continue
        writer.put(HEADS.index(new.head.method), _HEADS)
        writer.uint(0 if new.head.old is None else new.head.old + 1)
        writer.uint(new.head.length)
        writer.uint(len(new.rows))
        for row in new.rows:
            models.put(writer, row)
    return writer.finish()


def decode(data: bytes) -> Contents:
    """The inverse of `encode`.

    Raises:
        CorruptFileError: the bytes are no such index.
        NewerFormatError: a way that this version does not know.
    """
    reader = StackReader(data, most=most_symbols(len(data)))
    folders = (bool(reader.take(_FLAG)), bool(reader.take(_FLAG)))
    olds, news = reader.uint(), reader.uint()
    if olds + news > min(MOST_FILES, 8 + len(data)) or not news:
        raise CorruptFileError("a number of files that cannot be", got=f"{olds} and {news}")
    pcodec, *names = text.take(reader, most_text(len(data))).split("\n")
    if len(names) != olds + news or not all(map(is_inside, names)):
        raise CorruptFileError("names that no files can have", got=", ".join(map(repr, names[:3])))
    for of in (names[:olds], names[olds:]):
        if len(set(of)) < len(of):
            raise CorruptFileError("a file is named twice")
    if (not folders[0] and olds > 1) or (not folders[1] and news > 1):
        raise CorruptFileError("a file that is several", got=f"{olds} and {news}")
    old = tuple(_take_fingerprint(reader, name) for name in names[:olds])
    models = _Models()
    new = tuple(_take_new(reader, name, olds, models, len(data)) for name in names[olds:])
    reader.finish()
    return Contents(folders, old, new, pcodec)


def _take_new(reader: StackReader, name: str, olds: int, models: _Models, size: int) -> NewFile:
    file = _take_fingerprint(reader, name)
    way = reader.take(_WAYS)
    if way == 1:
        return NewFile(file, copy=_below(reader.uint(), olds, "an old file"))
    if way > 2:
        raise NewerFormatError("an unknown way to hold a file", got=way)
    held = reader.take(_HEADS)
    if held >= len(HEADS):
        raise NewerFormatError("an unknown way to hold a head", got=held)
    known = reader.uint()
    old = None if not known else _below(known - 1, olds, "an old file")
    head = Head(HEADS[held], old, reader.uint())
    if head.method == "same" and (old is None or head.length):
        raise CorruptFileError("a head that is the same as none")
    rows = _below(reader.uint(), most_symbols(size) + 1, "a row")
    return NewFile(file, whole=way == 2, head=head, rows=tuple(models.take(reader) for _ in range(rows)))


def _below(number: int, most: int, what: str) -> int:
    if number >= most:
        raise CorruptFileError(f"the number of {what} is too large", got=number, wanted=f"below {most}")
    return number


class _Models:
    """All that adapts from row to row."""

    def __init__(self) -> None:
        self.methods = [Adaptive(METHOD_WEIGHTS) for _ in METHOD_WEIGHTS]
        self.next = Adaptive(NEXT_WEIGHTS)
        self.lengths = AdaptiveNumber(LENGTH_WEIGHTS)
        self.method, self.old = 0, -1

    def put(self, writer: StackWriter, row: Row) -> None:
        number = METHODS.index(row.method)
        self.methods[self.method].put(writer, number)
        self.method = number
        if row.method in WITH_OLD:
            self.next.put(writer, int(row.old != self.old + 1))
            if row.old != self.old + 1:
                writer.uint(row.old)
            self.old = row.old
        if row.method in WITH_BYTES:
            self.lengths.put(writer, row.length)

    def take(self, reader: StackReader) -> Row:
        self.method = self.methods[self.method].take(reader)
        if self.method >= len(METHODS):
            raise NewerFormatError("an unknown way to hold a tensor", got=self.method)
        method = METHODS[self.method]
        if method in WITH_OLD:
            self.old = reader.uint() if self.next.take(reader) else self.old + 1
        return Row(method, max(self.old, 0), self.lengths.take(reader) if method in WITH_BYTES else 0)


def _put_fingerprint(writer: StackWriter, file: Fingerprint) -> None:
    writer.uint(file.size)
    for k in range(0, 32, 4):
        writer.number(int.from_bytes(file.digest[k : k + 4], "little"), 32)


def _take_fingerprint(reader: StackReader, name: str) -> Fingerprint:
    size = reader.uint()
    return Fingerprint(name, size, b"".join(reader.number(32).to_bytes(4, "little") for _ in range(8)))


def is_inside(name: str) -> bool:
    """Whether a name, perhaps with slashes, is that of a file below a folder, on every system."""
    parts = name.split("/")
    return name.isprintable() and all(p and not p.startswith(".") and not set(p) & set("\\:") for p in parts)


# --- the file --------------------------------------------------------------------------------


def reserve(out: BinaryIO) -> None:
    """The place of the header; payloads follow."""
    out.write(bytes(BASE))


def complete(out: BinaryIO, contents: Contents, payloads: int, checksum: int) -> int:
    """Writes the index behind the payloads, and the header before them; returns the size of the file."""
    data = encode(contents)
    front = len(data).to_bytes(4, "little") + checksum.to_bytes(4, "little")
    front = zlib.crc32(front + data).to_bytes(4, "little") + front
    out.write(front + data)
    entries = {
        "payloads": {"dtype": "U8", "shape": [payloads], "data_offsets": [0, payloads]},
        ENTRY: {
            "dtype": "U8",
            "shape": [FRONT + len(data)],
            "data_offsets": [payloads, payloads + FRONT + len(data)],
        },
    }
    header = json.dumps({METADATA: {MEMBER: str(VERSION)}, **entries}, separators=(",", ":")).encode()
    size = out.tell()
    out.seek(0)
    out.write((BASE - 8).to_bytes(8, "little") + header.ljust(BASE - 8))
    out.seek(size)
    return size


def opened(file: Bytes) -> tuple[Contents, int]:
    """What an update says, and where its payloads begin; every checksum is looked at.

    Raises:
        FileFormatError: the file is no update, newer, cut off or damaged (one subclass each).
    """
    base, payloads, stop = _places(file)
    front = file.read(base + payloads, base + payloads + FRONT)
    checksum, length, of_payloads = (int.from_bytes(front[k : k + 4], "little") for k in (0, 4, 8))
    if base + payloads + FRONT + length != stop:
        raise CorruptFileError(f"{file.path}: the index is not as long as its entry", got=length)
    data = file.read(stop - length, stop)
    if zlib.crc32(front[4:] + data) != checksum:
        raise CorruptFileError(f"{file.path}: the index has a wrong checksum", remedy="Fetch the file again.")
    contents = decode(data)
    if sum(sum(new.lengths) for new in contents.new) != payloads:
        raise CorruptFileError(f"{file.path}: the payloads do not fill their entry")
    found = 0
    for start in range(base, base + payloads, 1 << 22):
        found = zlib.crc32(file.read(start, min(start + (1 << 22), base + payloads)), found)
    if found != of_payloads:
        raise CorruptFileError(f"{file.path}: the payloads have a wrong checksum", remedy="Fetch the file again.")
    return contents, base


def _places(file: Bytes) -> tuple[int, int, int]:
    """Where the payloads begin, how many bytes they have, and where the file ends."""
    remedy = "Pass a file that `opq delta` wrote."
    if file.size < 8:
        raise TruncatedFileError(f"{file.path} has no header", got=f"{file.size} bytes", wanted="at least 8")
    length = int.from_bytes(file.read(0, 8), "little")
    if not 2 <= length <= LARGEST_HEADER or (file.size > 8 and file.read(8, 9) != b"{"):
        raise ForeignFileError(f"{file.path} is no update", remedy=remedy)
    if file.size < 8 + length:
        raise TruncatedFileError(f"{file.path} ends in its header", got=f"{file.size} bytes", wanted=8 + length)
    try:
        header = json.loads(file.read(8, 8 + length), object_pairs_hook=no_twins)
    except (ValueError, RecursionError) as error:
        raise ForeignFileError(f"{file.path} has no JSON header", got=error, remedy=remedy) from error
    metadata = header.get(METADATA)
    version = metadata.get(MEMBER) if isinstance(metadata, dict) else None
    if version is None:
        raise ForeignFileError(f"{file.path} is no update", remedy=remedy)
    if not (isinstance(version, str) and version.isdecimal() and version.isascii() and int(version[:9]) > 0):
        raise CorruptFileError(f"{file.path} has no version", got=repr(version)[:50])
    if version != str(VERSION):
        raise NewerFormatError(f"{file.path} is of a newer format", got=version[:50], wanted=f"at most {VERSION}")
    payloads = _span(header.get("payloads"), file.path)
    index = _span(header.get(ENTRY), file.path)
    if set(header) != {METADATA, "payloads", ENTRY} or payloads[0] != 0 or index[0] != payloads[1]:
        raise CorruptFileError(f"{file.path}: entries that are not those of an update")
    stop = 8 + length + index[1]
    if stop > file.size:
        raise TruncatedFileError(f"{file.path} is cut off", got=f"{file.size} bytes", wanted=stop)
    if stop < file.size or index[1] - index[0] < FRONT:
        raise CorruptFileError(f"{file.path} goes on after its end", got=f"{file.size} bytes", wanted=stop)
    return 8 + length, payloads[1], stop


def _span(fields: object, path: Path) -> tuple[int, int]:
    """Start and stop of an entry of bytes."""
    if isinstance(fields, dict) and set(fields) == {"dtype", "shape", "data_offsets"} and fields["dtype"] == "U8":
        offsets, shape = fields["data_offsets"], fields["shape"]
        numbers = offsets if isinstance(offsets, list) and len(offsets) == 2 else [-1]
        if all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) and shape == [offsets[1] - offsets[0]]:
            return offsets[0], offsets[1]
    raise CorruptFileError(f"{path}: an entry that is not that of an update", got=str(fields)[:100])


def total(files: Iterable[Fingerprint]) -> int:
    """Bytes of files."""
    return sum(file.size for file in files)
