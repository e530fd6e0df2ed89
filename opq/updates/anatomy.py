"""Takes a file apart into its head and its segments, each of which holds the bytes of one tensor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from opq.base.dtypes import DTYPES
from opq.base.format_v1 import COMMON, LARGEST_HEADER
from opq.base.paths import what_is
from opq.errors import CorruptFileError, MissingFileError
from opq.file import index
from opq.file.base import VERSION as BASED
from opq.file.base import is_based
from opq.file.header import METADATA, VERSION, Entry, check_version, entry_of, filled, no_twins
from opq.file.payload import Coded
from opq.file.stored import PAYLOADS
from opq.plan import TensorPlan


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """The bytes of one tensor in a file."""

    name: str
    start: int
    """Where its bytes begin in the file."""
    stop: int
    """Where they end."""
    dtype: str
    """The type of its elements by its safetensors name; `U8` for payloads of codes and for unknown types."""
    shape: tuple[int, ...]
    codes: tuple[str, TensorPlan] | None = None
    """For a payload of integer codes, its kind and the tensor's plan."""

    @property
    def length(self) -> int:
        """Size in bytes."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of a file: the pieces of its head and its segments together are all its bytes."""

    head: tuple[tuple[int, int], ...]
    """Start and stop of each piece of the head: the header with its length, and in an opq file also the index."""
    segments: tuple[Segment, ...]
    """In the order of their bytes, without empty ones."""


class Bytes:
    """A file on disk, read piece by piece. It is not mapped, since mapped pages would count as used memory.

    Raises:
        MissingFileError: there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path):
        if (what := what_is(path)) != "a file":
            raise MissingFileError(f"cannot open {str(path)!r}", got=what, wanted="a file")
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
            self.size = path.stat().st_size
        except OSError as error:
            raise MissingFileError(f"cannot open {path}", got=error.strerror or error) from error

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`; raises `CorruptFileError` if the file ends before."""
        try:
            self._file.seek(start)
            parts = []
            while start < stop and (part := self._file.read(stop - start)):
                parts.append(part)
                start += len(part)
        except OSError as error:
            raise MissingFileError(f"cannot read {self.path}", got=error.strerror or error) from error
        if start < stop:
            raise CorruptFileError(f"{self.path} has become shorter")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self, step: int = 1 << 22) -> Iterator[bytes]:
        """The whole file in pieces of `step` bytes, in order."""
        for start in range(0, self.size, step):
            yield self.read(start, min(start + step, self.size))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def head_of(file: Bytes) -> bytes:
    """The bytes of a safetensors file's head, its pieces joined.

    Raises:
        CorruptFileError: the file is no safetensors file.
    """
    if file.size < 8:
        raise CorruptFileError(f"{file.path} is no safetensors file", got=f"{file.size} bytes", wanted="at least 8")
    length = int.from_bytes(file.read(0, 8), "little")
    if not 2 <= length <= min(LARGEST_HEADER, file.size - 8):
        raise CorruptFileError(f"{file.path} is no safetensors file", got=f"a header of {length} bytes")
    head = file.read(0, 8 + length)
    common = _common(*_entries(head))
    if common is None:
        return head
    start, stop = 8 + length + common[0], 8 + length + common[1]
    number = int.from_bytes(file.read(start + 4, start + 8), "little") if stop - start >= 8 else 0
    if not 8 + number <= stop - start <= file.size - start:
        raise CorruptFileError(f"{file.path}: the index is longer than its entry")
    return head + file.read(start, start + 8 + number)


def taken_apart(head: bytes, size: int) -> Anatomy:
    """The anatomy of a file of `size` bytes, from its head alone.

    Raises:
        CorruptFileError: the bytes are not a head, or the head is that of a file of another size.
    """
    base = 8 + int.from_bytes(head[:8], "little")
    if len(head) < 10 or base > len(head):
        raise CorruptFileError("a head ends in its header", got=f"{len(head)} bytes")
    metadata, entries = _entries(head[:base])
    common = _common(metadata, entries)
    end = filled(entries)
    if base + end != size:
        raise CorruptFileError("the header is that of a file of another size", got=base + end, wanted=size)
    if common is None:
        if len(head) != base:
            raise CorruptFileError("a head goes on after its header", got=len(head), wanted=base)
        pieces: tuple[tuple[int, int], ...] = ((0, base),)
        found = [
            Segment(name, base + e.start, base + e.stop, e.dtype if e.dtype in DTYPES else "U8", e.shape)
            for name, e in entries.items()
        ]
    else:
        check_version(metadata, "the file", newest=BASED if is_based(metadata) else VERSION)
        start, stop = base + common[0], base + common[1]
        if (
            start + len(head) - base > stop
            or int.from_bytes(head[base + 4 : base + 8], "little") != len(head) - base - 8
        ):
            raise CorruptFileError("the index is longer than its entry")
        pieces = ((0, base), (start, start + len(head) - base))
        own = {name: (base + e.start, base + e.stop) for name, e in entries.items() if name != COMMON}
        found = _payloads(head[base + 8 :], own, start + len(head) - base, stop)
    return Anatomy(pieces, tuple(sorted((s for s in found if s.length), key=lambda s: s.start)))


def _payloads(data: bytes, own: dict[str, tuple[int, int]], start: int, end: int) -> list[Segment]:
    """The payloads that an index names. Some have an entry of their own; the others fill `start` to `end` in order."""
    found = []
    plan, places = index.decode(data)
    for tensor, place in zip(plan, places, strict=True):
        if place.checksum is None:
            span = (start, start + place.length)
            start += place.length
        else:
            span = own.pop(tensor.name, (0, -1))
        if span[1] - span[0] != place.length:
            raise CorruptFileError(f"tensor {tensor.name!r}: no entry like the index says")
        kind = PAYLOADS.get(place.kind)
        coded = kind is not None and issubclass(kind, Coded)
        dtype, shape = (tensor.dtype, tensor.shape) if place.kind == "raw" else ("U8", (place.length,))
        found.append(Segment(tensor.name, *span, dtype, shape, (place.kind, tensor) if coded else None))
    if start != end or own:
        raise CorruptFileError("the payloads do not fill their entry", got=start, wanted=end)
    return found


def _entries(head: bytes) -> tuple[Any, dict[str, Entry]]:
    """The metadata, and the entries by name."""
    try:
        header = json.loads(head[8:], object_pairs_hook=no_twins)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError("a header that is no JSON", got=error) from error
    if not isinstance(header, dict):
        raise CorruptFileError("a header that is no object", got=type(header).__name__)
    metadata = header.pop(METADATA, None)
    return metadata, {name: entry_of(name, fields, foreign=True) for name, fields in header.items()}


def _common(metadata: Any, entries: dict[str, Entry]) -> tuple[int, int] | None:
    """Start and stop of the common entry of an opq file; None for any other file."""
    if not isinstance(metadata, dict) or COMMON not in metadata or COMMON not in entries:
        return None
    return entries[COMMON].start, entries[COMMON].stop
