"""Weights in one file, safetensors or a PyTorch checkpoint, mapped into memory and read tensor by tensor."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opq.base.dtypes import torch_dtype
from opq.base.extras import brief
from opq.base.process_state import silenced
from opq.errors import CorruptSourceError, SourceError, UnsafeCheckpointError
from opq.sources.base import Source, TensorSpec, checked, guess_kinds
from opq.sources.memory import EXPANSION, SMALL, Held, Nest, plain, tensors_of, unnest
from opq.sources.quantized import marked

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

MAPPED_BYTES = 1 << 28
"""A checkpoint that is mapped into memory is mapped again after so many bytes, so that its pages are released. A
choice: it limits the memory, and each mapping takes about as long as opening the file."""


def from_file(path: Path) -> Source:
    """One `.safetensors` file or PyTorch checkpoint.

    Raises:
        CorruptSourceError: the file is truncated or damaged.
        UnsafeCheckpointError: it is a pickle of more than tensors.
        SourceError: its suffix is unknown, or it is already compressed by this package.
    """
    source = from_files({path: header_of(path)}, label=path.name)
    return dataclasses.replace(source, origin="file")


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """The contents of one file, according to its header."""

    specs: tuple[TensorSpec, ...]
    """The tensors, in the order on disk."""
    notes: tuple[str, ...] = ()
    """What else it contains, but no output will: entries that are not tensors, metadata."""
    spans: Mapping[str, Span] = dataclasses.field(default_factory=dict)
    """For safetensors files: where each tensor's bytes are."""


def from_files(
    headers: Mapping[Path, Header],
    *,
    label: str,
    folder: Path | None = None,
    config: Mapping[str, Any] | None = None,
) -> Source:
    """The tensors of several files as one source.

    Args:
        config: the model's configuration, which may say that the weights are quantized.

    Raises:
        CorruptSourceError: two files contain the same name.
        EmptyModelError: no file holds a floating-point tensor.
    """
    files: dict[str, Path] = {}
    for path, header in headers.items():
        for spec in header.specs:
            if (other := files.setdefault(spec.name, path)) != path:
                got = f"{other.name} and {path.name}"
                remedy = "Keep one of the files, or add the index that tells them apart."
                raise CorruptSourceError(f"tensor {spec.name!r} stands in two files", got=got, remedy=remedy)
    specs = tuple(spec for header in headers.values() for spec in header.specs)
    spans = {name: span for header in headers.values() for name, span in header.spans.items()}
    source = Source(
        label=label,
        origin="folder",
        specs=marked(guess_kinds(specs), config),
        read=TensorFiles(files, spans),
        files=files,
        folder=folder,
        ignored=tuple(dict.fromkeys(note for header in headers.values() for note in header.notes)),
        inputs=(*headers, *(() if folder is None else (folder,))),
    )
    return checked(source)


def header_of(path: Path) -> Header:
    """The contents of one file, from its header or its pickle alone."""
    if path.suffix == ".safetensors":
        return _safetensors_header(path)
    if path.suffix in TORCH_SUFFIXES:
        nest = load_checkpoint(path)
        held = _held(nest, path)
        return Header(held.specs, (*nest.beside, *held.ignored))
    raise SourceError(f"{path} is of an unknown kind", got=repr(path.suffix), wanted=f"one of {', '.join(SUFFIXES)}")


def _held(nest: Nest, path: Path) -> Held:
    """The tensors of a checkpoint; raises `CorruptSourceError` if they are too large for the size of the file."""
    held = tensors_of(nest.mapping, label=str(path))
    total = sum(spec.nbytes for spec in held.specs if spec.like is None)
    _check_expansion(path, total, "tensors")
    return held


def _check_expansion(path: Path, total: int, what: str) -> None:
    limit = max(SMALL, EXPANSION * path.stat().st_size)
    if total > limit:
        got = f"{what} of {total:,} bytes"
        raise CorruptSourceError(f"{path} expands beyond its size", got=got, wanted=f"at most {limit:,}")


class TensorFiles:
    """Reads tensors by name from their files; between two calls at most one checkpoint stays mapped."""

    def __init__(self, files: Mapping[str, Path], spans: Mapping[str, Span]):
        self._files, self._spans = files, spans
        self._mapped: tuple[Path, Mapping[str, Tensor], int] | None = None

    def __call__(self, name: str) -> Tensor:
        path = self._files[name]
        if path.suffix == ".safetensors":
            return self._spans[name].read(path)
        return plain(self._from_checkpoint(path, name))

    def _from_checkpoint(self, path: Path, name: str) -> Tensor:
        mapped = self._mapped
        if mapped is None or mapped[0] != path or mapped[2] > MAPPED_BYTES:
            mapped = (path, _held(load_checkpoint(path), path).tensors, 0)
        if name not in mapped[1]:
            raise CorruptSourceError(f"{path} has changed since it was opened", got=f"no tensor {name!r}")
        self._mapped = (path, mapped[1], mapped[2] + mapped[1][name].nbytes)
        return mapped[1][name]


# --- safetensors -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Where the bytes of one tensor are, in a safetensors file whose header was read before."""

    start: int
    """The position of the first byte in the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    known: tuple[int, int, int]
    """Inode, size and time of change of the file when its header was read."""

    def read(self, path: Path) -> Tensor:
        """The tensor in a memory map of its own, so that its pages are released together with it."""
        size = math.prod(self.shape) * self.dtype.itemsize
        try:
            with open(path, "rb") as file:
                if _known(os.fstat(file.fileno())) != self.known:
                    raise CorruptSourceError(f"{path} has changed since it was opened", remedy="Open the source again.")
                if not size:
                    return torch.empty(self.shape, dtype=self.dtype)
                data = np.memmap(file, np.uint8, mode="c", offset=self.start, shape=(size,))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        return torch.from_numpy(data).view(self.dtype).reshape(self.shape)


def _known(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _safetensors_header(path: Path) -> Header:
    """The tensors of the header; names that `safetensors.torch.save_model` noted as aliases become ties."""
    with _opened(path) as file:  # checks the header and the length
        metadata = file.metadata() or {}
        if "opq" in metadata:
            remedy = "Pass the original weights, or decompress it first: opq decompress."
            raise SourceError(f"{path} is already compressed", got="an opq file", remedy=remedy)
        specs = [_spec(name, file.get_slice(name), path) for name in file.offset_keys()]
        spans = _spans(path, specs)
    by_name = {spec.name: spec for spec in specs}
    tied = {
        alias: name
        for alias, name in metadata.items()
        if alias != "format" and alias not in by_name and name in by_name
    }
    notes = tuple(f"metadata {key!r}" for key in sorted(metadata) if key != "format" and key not in tied)
    aliases = (dataclasses.replace(by_name[name], name=alias, like=name) for alias, name in tied.items())
    return Header((*specs, *aliases), notes, spans | {alias: spans[name] for alias, name in tied.items()})


def _spans(path: Path, specs: Sequence[TensorSpec]) -> dict[str, Span]:
    """Where the tensors' bytes are: one after the other, without gaps, in the order of the specs."""
    found: dict[str, Span] = {}
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        known = _known(os.fstat(file.fileno()))
    for spec in specs:
        found[spec.name] = Span(start, spec.shape, spec.dtype, known)
        start += spec.nbytes
    if start != known[1]:
        raise CorruptSourceError(f"{path} cannot be read", got=f"{known[1]} bytes", wanted=f"{start} by its header")
    return found


def _spec(name: str, view: Any, path: Path) -> TensorSpec:
    try:
        dtype = torch_dtype(view.get_dtype())
    except KeyError:
        got = view.get_dtype()
        raise SourceError(f"{path}: tensor {name!r} has an element type that torch lacks", got=got) from None
    return TensorSpec(name, tuple(view.get_shape()), dtype)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """`safe_open` with this package's errors."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CorruptSourceError:
    return CorruptSourceError(f"{path} cannot be read", got=brief(error), wanted=f"a whole {path.suffix} file")


# --- PyTorch checkpoints ---------------------------------------------------------------------

DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    struct.error,
)
"""The errors that torch's unpickler raises on damaged files."""


def load_checkpoint(path: Path) -> Nest:
    """The state dict in a PyTorch checkpoint, mapped into memory if its format allows; no code in the file is run.

    Raises:
        UnsafeCheckpointError: the file is a pickle of a module or of other objects, or a TorchScript archive.
        CorruptSourceError: the file is truncated or damaged.
        SourceError: it holds tensors, but not as a mapping.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                _check_expansion(path, sum(entry.file_size for entry in archive.infolist()), "entries")
        with silenced(UserWarning):  # about pickle protocols and TorchScript; errors say more
            # the format before torch 1.6 is not a zip archive and cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error):
            raise _unsafe(path, error) from error
        raise _unreadable(path, error) from error
    except SourceError:
        raise
    except DAMAGED as error:
        if "weights_only" in str(error):
            raise _unsafe(path, error) from error
        raise _unreadable(path, error) from error
    if not isinstance(loaded, Mapping):
        got = type(loaded).__name__
        raise SourceError(f"{path} holds no state dict", got=got, wanted="a mapping of names to tensors")
    return unnest(loaded, label=str(path))


def _unsafe(path: Path, error: Exception) -> UnsafeCheckpointError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    what = f"a pickle that asks for {named[1]}" if named else "a pickle of Python objects"
    return UnsafeCheckpointError(f"{path} is not a state dict", got=what, wanted="tensors only")
