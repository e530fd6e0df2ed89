"""The file of an update, a safetensors file with two entries: payloads, and the index that says what they are.

docs/format.md, "Updates", is the specification; every number here is part of version 1 of it and fixed for ever.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import BinaryIO

from opq.base.format_v1 import LARGEST_HEADER
from opq.errors import CorruptFileError, ForeignFileError, NewerFormatError, TruncatedFileError
from opq.file.header import METADATA, no_twins
from opq.updates.anatomy import Bytes
from opq.updates.contents import Contents, decode, encode

VERSION = 1
MEMBER = "opq_update"
"""The key of the metadata that holds the version; opq files have another one."""
ENTRY = "update"
"""The name of the entry that holds the index; the other entry is called `payloads`."""
BASE = 256
"""Where the payloads begin: after the header and the eight bytes of its length."""
FRONT = 12
"""Bytes before the index: its checksum, its length, and the checksum of the payloads, of four bytes each."""


def reserve(out: BinaryIO) -> None:
    """Leaves room for the header, which `complete` writes; the payloads come next."""
    out.write(bytes(BASE))


def complete(out: BinaryIO, contents: Contents, payloads: int, checksum: int) -> int:
    """Writes the index after the payloads and the header before them.

    Args:
        payloads: the number of their bytes.
        checksum: their CRC-32.

    Returns:
        The size of the file in bytes.
    """
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
    """The index of an update, and where its payloads begin; all checksums are verified.

    Raises:
        FileFormatError: the file is no update, of a newer format, cut off or damaged (one subclass each).
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
    """Where the payloads begin, how many bytes they take, and where the file ends."""
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
