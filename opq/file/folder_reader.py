"""A folder of `.opq.safetensors` shards with an index, read like one file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from opq.base.arrays import Codes
from opq.base.format_v1 import COMMON, LARGEST_FOLDER_INDEX, PARAMETERS, VERSION
from opq.base.format_v1 import FOLDER_INDEX as INDEX
from opq.base.paths import what_is
from opq.base.tables import counted, printable
from opq.errors import CorruptFileError, FileFormatError, MismatchError, MissingFileError, WrongBaseError
from opq.file.base import BaseName, open_base
from opq.file.header import check_version, no_twins
from opq.file.reader import MAX_EXPANSION, Reader
from opq.plan import Plan
from opq.quantizing.turned import Turn

__all__ = ["INDEX", "FolderReader", "check_payloads", "index_bytes", "open_reader", "parts_of", "read_index"]

_PIECE = 1 << 24
"""Bytes of a file that are read at once. A choice: enough for the full speed of a disk, and little memory."""


class FolderReader:
    """Reads the shards that an index names. Use it as a context manager, or close it. It can be used like a `Reader`.

    Args:
        path: the folder, or the index in it.
        max_expansion: as in `Reader`, for every shard.
        base: as in `Reader`; it is looked at once.

    Raises:
        WrongBaseError: as in `Reader`.
        MissingFileError: there is no index, or a shard that it names is missing.
        CorruptFileError: the index is damaged, or the shards do not hold what it says.
        FileFormatError: a shard is incomplete or damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_expansion: float = MAX_EXPANSION, base: Any = None):
        path = Path(path)
        self.index = path / INDEX if what_is(path) == "a folder" else path
        where = read_index(self.index)
        self.shards: dict[str, Reader] = {}
        self._base = None if base is None else open_base(base)
        try:
            for name in dict.fromkeys(where.values()):
                with _naming(name):
                    self.shards[name] = Reader(self.index.parent / name, max_expansion=max_expansion, base=self._base)
            self._where = where
            if len({shard.base for shard in self.shards.values()}) > 1:
                raise CorruptFileError("shards of different bases", remedy="Fetch the folder again.")
            self.plan = _joined(self.shards, where)
        except (FileFormatError, WrongBaseError):
            self.close()
            raise

    def __repr__(self) -> str:
        name, shards = printable(str(self.index.parent)), counted(len(self.shards), "shard")
        return f"<opq.Reader {name}: {shards}, method {self.plan.method!r}, {self.plan.summary}>"

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, in the source's order."""
        return tuple(self._where)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor's payload; 0 for shared tensors."""
        sizes = {name: size for shard in self.shards.values() for name, size in shard.sizes.items()}
        return {name: sizes[name] for name in self._where}

    @property
    def bytes(self) -> int:
        """Bytes of all shards and of the index."""
        return self.index.stat().st_size + sum(shard.bytes for shard in self.shards.values())

    @property
    def basis(self) -> str:
        """As `Reader.basis`; that of the first shard."""
        return self.plan.basis

    def shard(self, name: str) -> Reader:
        """The shard that holds a tensor."""
        if name not in self._where:
            raise MismatchError(
                f"no tensor {name!r} in {self.index.parent}", wanted=f"one of its {len(self._where)} names"
            )
        return self.shards[self._where[name]]

    def kind(self, name: str) -> str:
        """As `Reader.kind`."""
        return self.shard(name).kind(name)

    def codes(self, name: str) -> Codes:
        """As `Reader.codes`."""
        return self.shard(name).codes(name)

    def exponents(self, name: str) -> Codes | None:
        """The exponents of a tensor with a step for each row; see `Reader.exponents`."""
        return self.shard(name).exponents(name)

    def columns(self, name: str) -> Codes | None:
        """The exponents of a tensor with a factor for each column; see `Reader.columns`."""
        return self.shard(name).columns(name)

    def turn(self, name: str) -> Turn | None:
        """How a tensor's codes are those of a matrix (outputs, inputs); see `Reader.turn`."""
        return self.shard(name).turn(name)

    def tensor(self, name: str) -> torch.Tensor:
        """As `Reader.tensor`."""
        return self.shard(name).tensor(name)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors, in the source's order; tied names share one."""
        held = {name: tensor for part in self.parts() for name, tensor in part.state_dict().items()}
        return {name: held[name] for name in self._where}

    def verify(self) -> None:
        """Verifies every checksum, one piece of a file in memory at a time; raises `CorruptFileError`."""
        for name, shard in self.shards.items():
            check_payloads(shard, self.index.parent / name)

    def parts(self) -> Iterator[Reader]:
        """Shard by shard, each opened anew, so that its mapped pages are released before the next shard is mapped."""
        for name in self.shards:
            path = self.index.parent / name
            with Reader(path, max_expansion=float("inf"), base=self._base) as part:
                yield part

    @property
    def base(self) -> BaseName | None:
        """As `Reader.base`; the same of all shards."""
        return next((shard.base for shard in self.shards.values()), None)

    def check_base(self) -> None:
        """As `Reader.check_base`."""
        for shard in self.shards.values():
            shard.check_base()

    def close(self) -> None:
        """Releases the files."""
        for shard in self.shards.values():
            shard.close()

    def __enter__(self) -> FolderReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_reader(
    path: str | os.PathLike[str], *, max_expansion: float = MAX_EXPANSION, base: Any = None
) -> Reader | FolderReader:
    """A reader of a file, of a folder, or of the index in it."""
    if what_is(path) == "a folder" or os.fspath(path).endswith(".index.json"):
        return FolderReader(path, max_expansion=max_expansion, base=base)
    return Reader(path, max_expansion=max_expansion, base=base)


def parts_of(reader: Reader | FolderReader) -> Iterator[Reader]:
    """The files behind a reader, one after the other."""
    return reader.parts() if isinstance(reader, FolderReader) else iter([reader])


def check_payloads(reader: Reader, path: Path) -> None:
    """Raises `CorruptFileError` unless the payloads in a file on disk have the checksums that its index gives.

    The file is read, not mapped, because mapped pages would count as memory of the process.
    """
    with open(path, "rb", buffering=0) as file:
        for name, (start, stop) in reader._spans.items():
            wanted = reader._places[name].checksum
            if wanted is not None and wanted != _crc(file, start, stop):
                raise CorruptFileError(f"{path.name}: tensor {name!r}: wrong checksum", remedy="Fetch the file again.")


def _crc(file: FileIO, start: int, stop: int) -> int:
    """CRC-32 of a range of a file; -1 if the file ends before the range does."""
    file.seek(start)
    found = 0
    while start < stop:
        data = file.read(min(stop - start, _PIECE))
        if not data:
            return -1
        found, start = zlib.crc32(data, found), start + len(data)
    return found


def index_bytes(where: dict[str, str], parameters: int) -> bytes:
    """The index of a folder: how many weights there are, and which shard holds each tensor, in the source's order."""
    metadata = {COMMON: str(VERSION), PARAMETERS: str(parameters)}
    return (json.dumps({"metadata": metadata, "weight_map": where}, indent=0) + "\n").encode()


def read_index(path: Path) -> dict[str, str]:
    """The inverse of `index_bytes`, for a file that is not trusted.

    Raises:
        MissingFileError: there is no index, or it cannot be opened.
        CorruptFileError: it is too large, not JSON, or not an index.
    """
    if (what := what_is(path)) not in ("a file", "nothing"):
        raise MissingFileError(f"cannot open {str(path)!r}", got=what, wanted="an index")
    try:
        if path.stat().st_size > LARGEST_FOLDER_INDEX:
            raise CorruptFileError(f"{path} is too large for an index", wanted=f"at most {LARGEST_FOLDER_INDEX} bytes")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=no_twins)
    except FileNotFoundError as error:
        remedy = "Finish the compression with the same command, or fetch the index."
        raise MissingFileError(f"{path.parent} holds no {INDEX}", remedy=remedy) from error
    except OSError as error:
        raise MissingFileError(f"cannot open {path}", got=error.strerror or error) from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON", got=error) from error
    check_version(content.get("metadata") if isinstance(content, dict) else None, os.fspath(path))
    where = content.get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(f, str) for f in where.values()):
        raise CorruptFileError(f"{path} is no index", wanted='a "weight_map" of tensor names to file names')
    outside = next((f for f in where.values() if not _bare(f)), None)
    if outside is not None:
        raise CorruptFileError(f"{path} names a file outside its folder", got=repr(outside), wanted="bare file names")
    return where


def _bare(file: str) -> bool:
    """Whether a name is that of a file directly in the folder, on every operating system."""
    return file.isprintable() and not file.startswith(".") and not set(file) & set("/\\:") and bool(file)


def _joined(shards: dict[str, Reader], where: dict[str, str]) -> Plan:
    """The plan of all shards, in the index's order."""
    tensors = {}
    for file, shard in shards.items():
        for tensor in shard.plan:
            if where.get(tensor.name) != file:
                raise CorruptFileError(f"{file} holds tensor {tensor.name!r}, which the index does not place there")
            tensors[tensor.name] = tensor
    lacking = next((name for name in where if name not in tensors), None)
    if lacking is not None:
        raise CorruptFileError(f"the index names tensor {lacking!r} in {where[lacking]}, which does not hold it")
    heads = {dataclasses.replace(shard.plan, tensors=()) for shard in shards.values()}
    if len(heads) > 1:
        remedy = "Write the folder again: it holds shards of different compressions."
        raise CorruptFileError("the shards are not of one plan", got=f"{len(heads)} plans", wanted=1, remedy=remedy)
    return heads.pop().replace(tensors=tuple(tensors[name] for name in where))


@contextlib.contextmanager
def _naming(file: str) -> Iterator[None]:
    """Adds the shard's name to an error about it."""
    try:
        yield
    except FileFormatError as error:
        if file in error.fact:
            raise
        raise type(error)(f"{file}: {error.fact}", got=error.got, wanted=error.wanted, remedy=error.remedy) from error
