"""Plan + stored tensors <-> one `.opq.safetensors` file. docs/format.md is the specification."""

from __future__ import annotations

import dataclasses
import json
import lzma
import os
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from opq import entropy
from opq.errors import CorruptFileError, ForeignFileError, MismatchError, NewerFormatError, WriteError
from opq.plan import Plan
from opq.quantize import dequantize

VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Grid:
    """A tensor as integer multiples of its plan's step."""

    name: str
    codes: npt.NDArray[np.int16]


@dataclasses.dataclass(frozen=True, slots=True)
class Raw:
    """A tensor kept bit by bit."""

    name: str
    tensor: torch.Tensor


Stored = Grid | Raw
"""What a file holds of one tensor; a shared tensor stands in the plan only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A file in memory."""

    parts: tuple[bytes, ...]
    sizes: dict[str, int]
    """Bytes of each stored tensor's payload, without header."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(map(len, self.parts))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes aside, verifies by decoding, renames; on failure nothing is left behind.

        Raises:
            WriteError: the file could not be written, or does not decode to what it was made from.
        """
        path = Path(path)
        try:
            handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        except OSError as error:
            raise WriteError(f"cannot write {path}", got=error) from error
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(self.parts)
                file.flush()
                os.fsync(file.fileno())
            with Reader(aside) as reader:
                for name in reader.names:
                    reader.tensor(name)
            os.replace(aside, path)
        except OSError as error:
            raise WriteError(f"cannot write {path}", got=error) from error
        finally:
            Path(aside).unlink(missing_ok=True)


def pack(plan: Plan, items: Iterable[Stored]) -> Packed:
    """The file of `plan` and its stored tensors."""
    by_name = {item.name: item for item in items}
    payloads: dict[str, bytes] = {}
    for tensor in plan:
        if tensor.action != "share":
            item = by_name.pop(tensor.name)
            payloads[tensor.name] = entropy.encode(item.codes) if isinstance(item, Grid) else _raw(item.tensor)
    if by_name:
        raise MismatchError("stored tensors that the plan does not name", got=", ".join(by_name))
    index = {"plan": json.loads(plan.to_json()), "payloads": [[n, len(p), zlib.crc32(p)] for n, p in payloads.items()]}
    squeezed = lzma.compress(json.dumps(index, separators=(",", ":")).encode(), lzma.FORMAT_ALONE)
    body = b"".join(payloads.values())
    header: dict[str, Any] = {"__metadata__": {"format": "opq", "version": str(VERSION)}}
    header["opq.plan"] = {"dtype": "U8", "shape": [len(squeezed)], "data_offsets": [0, len(squeezed)]}
    end = len(squeezed) + len(body)
    header["opq.pack"] = {"dtype": "U8", "shape": [len(body)], "data_offsets": [len(squeezed), end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return Packed((len(head).to_bytes(8, "little"), head, squeezed, body), {n: len(p) for n, p in payloads.items()})


def write_file(path: str | os.PathLike[str], plan: Plan, items: Iterable[Stored]) -> int:
    """Packs and writes; returns the size of the file in bytes."""
    packed = pack(plan, items)
    packed.write(path)
    return packed.size


def size_of(plan: Plan, items: Iterable[Stored]) -> int:
    """The exact size of the file in bytes."""
    return pack(plan, items).size


class Reader:
    """Lazy access to the tensors of a file."""

    plan: Plan

    def __init__(self, path: str | os.PathLike[str]):
        self._data = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(self._data[:8].tobytes(), "little")
        header = json.loads(self._data[8 : 8 + length].tobytes())
        if header.get("__metadata__", {}).get("format") != "opq":
            raise ForeignFileError(f"{path} is not an opq file")
        if header["__metadata__"]["version"] != str(VERSION):
            raise NewerFormatError(f"{path} is of a newer format")
        base = 8 + length
        start, end = header["opq.plan"]["data_offsets"]
        index = json.loads(lzma.decompress(self._data[base + start : base + end].tobytes()))
        self.plan = Plan.from_json(json.dumps(index["plan"]))
        self._places: dict[str, tuple[int, int, int]] = {}
        position = base + header["opq.pack"]["data_offsets"][0]
        for name, size, crc in index["payloads"]:
            self._places[name] = (position, size, crc)
            position += size

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, in the source's order."""
        return tuple(t.name for t in self.plan)

    def codes(self, name: str) -> npt.NDArray[np.int16]:
        """The integer codes of a compressed tensor."""
        return entropy.decode(self._payload(name), self.plan[name].shape)

    def tensor(self, name: str) -> torch.Tensor:
        """The dense tensor, in the source's dtype."""
        plan = self.plan[name]
        if plan.like is not None:
            return self.tensor(plan.like)
        dtype = DTYPES[plan.dtype]
        if plan.action == "compress":
            return dequantize(torch.from_numpy(self.codes(name)), plan, dtype)
        data = bytearray(self._payload(name))
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(plan.shape)

    def _payload(self, name: str) -> bytes:
        position, size, crc = self._places[name]
        data = self._data[position : position + size].tobytes()
        if zlib.crc32(data) != crc:
            raise CorruptFileError(f"tensor {name!r}: wrong checksum")
        return data

    def close(self) -> None:
        """Releases the file."""
        self._data = np.empty(0, np.uint8)  # type: ignore[assignment]

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Element types as safetensors spells them."""


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
