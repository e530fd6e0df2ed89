"""The index of an update: what it says about old and new files, and how each new tensor is made from old ones.

docs/format.md, "Updates", is the specification; every number here is part of version 1 of it and fixed for ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

from opq.base.format_v1 import most_symbols, most_text
from opq.coding import text
from opq.coding.adaptive import Adaptive, AdaptiveNumber
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError, NewerFormatError

LONGEST_HEAD = 1 << 22
"""The most bytes of a head and the old head together that the text coder is given: they take it a few seconds."""

Method = Literal["same", "raw", "alone", "old", "cast", "codes"]
METHODS: tuple[Method, ...] = ("same", "raw", "alone", "old", "cast", "codes")
"""How the bytes of a new tensor are given, by number: `same`, equal to an old tensor; `raw`, as they are; `alone`,
coded without reference; `old`, as differences to an old tensor of the same type; `cast`, to one of another type;
`codes`, integer codes as differences to old codes."""
WITH_OLD = ("same", "old", "cast", "codes")
"""The methods that refer to an old tensor."""
WITH_BYTES = ("raw", "alone", "old", "cast", "codes")
"""The methods that have a payload."""

HeadMethod = Literal["same", "coded", "raw"]
HEADS: tuple[HeadMethod, ...] = ("same", "coded", "raw")
"""How a head is given, by number: `same`, equal to an old file's head; `coded`, by the text coder, which copies from an
old head; `raw`, as it is."""
MOST_FILES = 1 << 20
"""The most files of the old and the new checkpoint together."""

# initial weights of adaptive models: of a row's method, of whether its old tensor is the next one, of payloads' lengths
METHOD_WEIGHTS = (8,) * 8
NEXT_WEIGHTS = (4, 1)
LENGTH_WEIGHTS = (4,) * 41
_FLAG, _WAYS, _HEADS = uniform(2), uniform(4), uniform(4)


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """What identifies a file."""

    name: str
    """Relative to its folder. If the checkpoint is one file, the name is only for people."""
    size: int
    """In bytes."""
    digest: bytes
    """The SHA-256 of its bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """How the bytes of one segment of a new file are given."""

    method: Method
    old: int = 0
    """The number of the old segment that the method refers to, if it does."""
    length: int = 0
    """Bytes of the payload."""


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """How the head of a new file is given."""

    method: HeadMethod
    old: int | None = None
    """The number of the old file whose head is used, if one is."""
    length: int = 0
    """Bytes of the payload."""


@dataclasses.dataclass(frozen=True, slots=True)
class NewFile:
    """One new file: a copy of an old one, or a head and rows."""

    file: Fingerprint
    copy: int | None = None
    """The number of the old file that it is equal to."""
    whole: bool = False
    """Whether it is no safetensors file. It is then either only a head, or a single segment of bytes without a head."""
    head: Head = Head("same")
    rows: tuple[Row, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """Bytes of its payloads, in order."""
        return [] if self.copy is not None else [self.head.length, *(row.length for row in self.rows)]


@dataclasses.dataclass(frozen=True, slots=True)
class Contents:
    """All that an update holds except the payloads."""

    folders: tuple[bool, bool]
    """Whether the old and the new checkpoint are folders."""
    old: tuple[Fingerprint, ...]
    new: tuple[NewFile, ...]
    pcodec: str
    """The version of pcodec that is needed to encode codes again; empty if any version will do."""


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
        CorruptFileError: the bytes are not an index.
        NewerFormatError: the index uses a method that this version does not know.
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
    """What adapts from row to row: the adaptive models, the last method, and the number of the last old segment."""

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
    """Whether a name, perhaps with slashes, leads to a file inside a folder on every operating system."""
    parts = name.split("/")
    return name.isprintable() and all(p and not p.startswith(".") and not set(p) & set("\\:") for p in parts)


def total(files: Iterable[Fingerprint]) -> int:
    """The sizes of files in bytes, summed."""
    return sum(file.size for file in files)
