"""The header of a safetensors file, written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from opq.base.dtypes import DTYPES, torch_dtype
from opq.errors import (
    CorruptFileError,
    ForeignFileError,
    NewerFormatError,
    TruncatedFileError,
)
from opq.plan import Plan

VERSION = 1
"""The format version that this package writes, and the newest that it reads."""

COMMON = "opq"
"""The entry that holds the index and all small payloads."""

LARGEST_HEADER = 100_000_000
"""Bytes: the limit of safetensors."""


class Entry:
    """A safetensors entry."""

    def __init__(self, dtype: str, shape: tuple[int, ...], start: int, stop: int):
        self.dtype, self.shape, self.start, self.stop = dtype, shape, start, stop


def read_entries(data: memoryview, label: str) -> tuple[dict[str, Entry], int]:
    """The entries of a safetensors file by name, and where their bytes begin."""
    if len(data) < 8:
        raise TruncatedFileError(f"{label} has no header", got=f"{len(data)} bytes", wanted="at least 8")
    length = int.from_bytes(data[:8], "little")
    if length > LARGEST_HEADER or length < 2 or (len(data) > 8 and data[8] != ord("{")):
        raise ForeignFileError(f"{label} is not a safetensors file")
    if len(data) < 8 + length:
        raise TruncatedFileError(f"{label} ends in its header", got=f"{len(data)} bytes", wanted=8 + length)
    try:
        header = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=no_twins)
    except (ValueError, RecursionError) as error:
        raise ForeignFileError(f"{label} has no JSON header", got=error) from error
    check_version(header.pop("__metadata__", None), label)
    entries = {name: _entry(name, fields) for name, fields in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise CorruptFileError(f"{label}: entries overlap or leave a gap", got=f"{name!r} at {entry.start}")
        end = entry.stop
    if 8 + length + end > len(data):
        raise TruncatedFileError(f"{label} is cut off", got=f"{len(data)} bytes", wanted=8 + length + end)
    if 8 + length + end < len(data):
        raise CorruptFileError(f"{label} goes on after its end", got=f"{len(data)} bytes", wanted=8 + length + end)
    if COMMON not in entries:
        raise CorruptFileError(f"{label} has no index", wanted=f"an entry {COMMON!r}")
    return entries, 8 + length


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""
    if len({k for k, _ in pairs}) < len(pairs):
        raise CorruptFileError("a name stands twice in the header")
    return dict(pairs)


def check_version(metadata: object, label: str) -> None:
    """Raises unless the metadata of a file or of an index name a version that this package reads."""
    version = metadata.get(COMMON) if isinstance(metadata, dict) else None
    if version is None:
        raise ForeignFileError(f"{label} was not written by opq")
    if not (isinstance(version, str) and version.isdecimal() and version.isascii() and len(version) < 9):
        raise CorruptFileError(f"{label} has no version", got=repr(version))
    if int(version) > VERSION:
        raise NewerFormatError(f"{label} is of a newer format", got=version, wanted=f"at most {VERSION}")
    if int(version) < 1:
        raise CorruptFileError(f"{label} has no version", got=version, wanted="at least 1")


def _entry(name: str, fields: object) -> Entry:
    wrong = CorruptFileError(f"the header describes {name!r} wrongly", got=str(fields)[:200])
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) or len(offsets) != 2:
        raise wrong
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise wrong
    return Entry(dtype, tuple(shape), *offsets)


def entries_header(entries: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """The safetensors header, padded so that what follows is aligned to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {COMMON: str(VERSION)}}
    start = 0
    for name, dtype, shape, length in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + length]}
        start += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def header(plan: Plan) -> bytes:
    """The header of a dense safetensors file of the plan's tensors, in the plan's order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in plan:
        end = position + tensor.size * torch_dtype(tensor.dtype).itemsize
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
