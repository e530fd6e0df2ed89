"""The header of a safetensors file, written and read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opq.base.dtypes import DTYPES
from opq.base.format_v1 import COMMON as COMMON
from opq.base.format_v1 import LARGEST_HEADER
from opq.base.format_v1 import VERSION as VERSION
from opq.errors import (
    CorruptFileError,
    ForeignFileError,
    NewerFormatError,
    TruncatedFileError,
    WriteError,
)
from opq.file.base import VERSION as BASED
from opq.file.base import BaseName, is_based
from opq.plan import Plan

METADATA = "__metadata__"
"""The member of a safetensors header that is not a tensor."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A safetensors entry: element type, shape, and the range of its bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_entries(data: memoryview, label: str) -> tuple[dict[str, Entry], int, BaseName | None]:
    """The entries of a safetensors file by name, where their bytes begin, and the base that the file names.

    Nothing in the file is trusted.
    """
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
    metadata = header.pop(METADATA, None)
    check_version(metadata, label, newest=BASED if is_based(metadata) else VERSION)
    named = BaseName.of(metadata)
    entries = {name: entry_of(name, fields) for name, fields in header.items()}
    end = filled(entries, f"{label}: ")
    if 8 + length + end > len(data):
        raise TruncatedFileError(f"{label} is cut off", got=f"{len(data)} bytes", wanted=8 + length + end)
    if 8 + length + end < len(data):
        raise CorruptFileError(f"{label} goes on after its end", got=f"{len(data)} bytes", wanted=8 + length + end)
    if COMMON not in entries:
        raise CorruptFileError(f"{label} has no index", wanted=f"an entry {COMMON!r}")
    return entries, 8 + length, named


def payload_starts(path: Path) -> dict[str, int]:
    """Where the bytes of each tensor begin in a safetensors file that the safetensors library has opened before."""
    with open(path, "rb") as file:
        base = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(base - 8))
    return {name: base + entry["data_offsets"][0] for name, entry in header.items() if name != METADATA}


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its members; raises `CorruptFileError` if a name occurs twice."""
    if len({k for k, _ in pairs}) < len(pairs):
        raise CorruptFileError("a name stands twice in the header")
    return dict(pairs)


def check_version(metadata: object, label: str, *, newest: int = VERSION) -> None:
    """Raises an error unless the metadata of a file or of an index give a version that this package reads."""
    version = metadata.get(COMMON) if isinstance(metadata, dict) else None
    if isinstance(metadata, dict) and "opq_update" in metadata:
        remedy = "Make the network of it and of the old one first: opq apply."
        raise ForeignFileError(f"{label} is an update, not a network", remedy=remedy)
    if version is None:
        raise ForeignFileError(f"{label} was not written by opq")
    if not (isinstance(version, str) and version.isdecimal() and version.isascii() and len(version) < 9):
        raise CorruptFileError(f"{label} has no version", got=repr(version))
    if int(version) > newest:
        raise NewerFormatError(f"{label} is of a newer format", got=version, wanted=f"at most {newest}")
    if int(version) < 1:
        raise CorruptFileError(f"{label} has no version", got=version, wanted="at least 1")


def entry_of(name: str, fields: object, *, foreign: bool = False) -> Entry:
    """One member of a header; raises `CorruptFileError` where it cannot be an entry.

    Args:
        foreign: whether other programs may have written it: then it may have more fields, and a type that is not known
            here.
    """
    wrong = CorruptFileError(f"the header describes {name!r} wrongly", got=str(fields)[:200])
    wanted = {"dtype", "shape", "data_offsets"}
    if not isinstance(fields, dict) or not (wanted <= set(fields) if foreign else wanted == set(fields)):
        raise wrong
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) or len(offsets) != 2:
        raise wrong
    if not isinstance(dtype, str) or not (foreign or dtype in DTYPES) or offsets[0] > offsets[1]:
        raise wrong
    if dtype in DTYPES and offsets[1] - offsets[0] != _product(shape) * DTYPES[dtype].itemsize:
        raise wrong
    return Entry(dtype, tuple(shape), *offsets)


def _product(shape: list[int]) -> int:
    """The number of elements, or some number above 2^63 in its place: a hostile shape shall not cost time."""
    product = 1
    for n in shape:
        product = min(product * n, 1 << 64)
    return product


def filled(entries: Mapping[str, Entry], label: str = "") -> int:
    """The number of bytes behind a header; raises `CorruptFileError` unless its entries fill them without overlap."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise CorruptFileError(f"{label}entries overlap or leave a gap", got=f"{name!r} at {entry.start}")
        end = entry.stop
    return end


def entries_header(entries: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file, padded so that the bytes after it are aligned to 8 bytes.

    Args:
        entries: name, element type, shape and number of bytes of each entry, in order.
    """
    header: dict[str, object] = {METADATA: dict(metadata)}
    start = 0
    for name, dtype, shape, length in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + length]}
        start += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def header(plan: Plan) -> bytes:
    """The header of a dense safetensors file of the plan's tensors, in the plan's order.

    Raises:
        WriteError: a tensor is called `__metadata__`, which the format reserves.
    """
    if METADATA in plan:
        remedy = "Read the tensors with opq.load_state_dict."
        raise WriteError(f"a safetensors file cannot hold a tensor called {METADATA!r}", remedy=remedy)
    return entries_header(((t.name, t.dtype, t.shape, t.nbytes) for t in plan), {"format": "pt"})
