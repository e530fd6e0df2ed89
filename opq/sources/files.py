"""Weights in one file, safetensors or a PyTorch checkpoint, mapped into memory and read tensor by tensor."""

from __future__ import annotations

import dataclasses
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opq.base.dtypes import torch_dtype
from opq.base.extras import brief
from opq.base.process_state import silenced
from opq.errors import CorruptSourceError, SourceError, UnsafeCheckpointError
from opq.sources.base import Source, TensorSpec, guess_kinds, not_empty
from opq.sources.memory import tensors_of, unnest

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

MAPPED_BYTES = 1 << 28
"""A checkpoint that was mapped into memory is mapped anew after this many bytes, so that its pages can go."""


def from_file(path: Path) -> Source:
    """One `.safetensors` file or PyTorch checkpoint.

    Raises:
        CorruptSourceError: the file is truncated or damaged.
        UnsafeCheckpointError: it is a pickle of more than tensors.
        SourceError: its suffix is unknown, or it is already compressed by this package.
    """
    source = from_files({path: specs_of(path)}, label=path.name)
    return dataclasses.replace(source, origin="file")


def from_files(shards: Mapping[Path, tuple[TensorSpec, ...]], *, label: str, folder: Path | None = None) -> Source:
    """The tensors of several files as one source.

    Raises:
        CorruptSourceError: a name stands in two files.
        EmptyModelError: no file holds a floating-point tensor.
    """
    files: dict[str, Path] = {}
    for path, specs in shards.items():
        for spec in specs:
            if (other := files.setdefault(spec.name, path)) != path:
                got = f"{other.name} and {path.name}"
                remedy = "Keep one of the files, or add the index that tells them apart."
                raise CorruptSourceError(f"tensor {spec.name!r} stands in two files", got=got, remedy=remedy)
    specs = tuple(spec for shard in shards.values() for spec in shard)
    kinds = guess_kinds(specs)
    return not_empty(Source(label=label, origin="folder", specs=kinds, read=Reader(files), files=files, folder=folder))


def specs_of(path: Path) -> tuple[TensorSpec, ...]:
    """The tensors of one file in the order on disk, from its header or its pickle alone."""
    if path.suffix == ".safetensors":
        return _safetensors_specs(path)
    if path.suffix in TORCH_SUFFIXES:
        return tensors_of(load_checkpoint(path), label=str(path)).specs
    raise SourceError(f"{path} is of an unknown kind", got=repr(path.suffix), wanted=f"one of {', '.join(SUFFIXES)}")


class Reader:
    """Reads tensors by name from the files that hold them; between calls it keeps at most one checkpoint mapped."""

    def __init__(self, files: Mapping[str, Path]):
        self._files = files
        self._mapped: tuple[Path, Mapping[str, Tensor], int] | None = None

    def __call__(self, name: str) -> Tensor:
        path = self._files[name]
        if path.suffix == ".safetensors":
            return read_safetensors(path, name)
        return self._from_checkpoint(path, name)

    def _from_checkpoint(self, path: Path, name: str) -> Tensor:
        mapped = self._mapped
        if mapped is None or mapped[0] != path or mapped[2] > MAPPED_BYTES:
            mapped = (path, tensors_of(load_checkpoint(path), label=str(path)).tensors, 0)
        self._mapped = (path, mapped[1], mapped[2] + mapped[1][name].nbytes)
        return mapped[1][name]


# --- safetensors -----------------------------------------------------------------------------


def _safetensors_specs(path: Path) -> tuple[TensorSpec, ...]:
    """The header's tensors, and as ties the aliases that `safetensors.torch.save_model` noted in the metadata."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
        if "opq" in metadata:
            remedy = "Pass the original weights, or decompress it first: opq decompress."
            raise SourceError(f"{path} is already compressed", got="an opq file", remedy=remedy)
        specs = [_spec(name, file.get_slice(name), path) for name in file.offset_keys()]
    by_name = {spec.name: spec for spec in specs}
    notes = {alias: name for alias, name in metadata.items() if alias != "format" and alias not in by_name}
    tied = {alias: name for alias, name in notes.items() if name in by_name}
    return (*specs, *(dataclasses.replace(by_name[name], name=alias, like=name) for alias, name in tied.items()))


def _spec(name: str, view: Any, path: Path) -> TensorSpec:
    try:
        dtype = torch_dtype(view.get_dtype())
    except KeyError:
        got = view.get_dtype()
        raise SourceError(f"{path}: tensor {name!r} has an element type that torch lacks", got=got) from None
    return TensorSpec(name, tuple(view.get_shape()), dtype)


def read_safetensors(path: Path, name: str) -> Tensor:
    """One tensor, mapped into memory. The file is opened anew, so that the pages go when the tensor goes."""
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """`safe_open` with this package's errors."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
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
    struct.error,
)
"""What torch's unpickler raises when the bytes make no sense."""


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """The state dict in a PyTorch checkpoint, mapped into memory where its format allows; runs no code of the file.

    Raises:
        UnsafeCheckpointError: the file is a pickle of a module or of other objects, or a TorchScript archive.
        CorruptSourceError: the file is truncated or damaged.
        SourceError: it holds tensors, but not as a mapping.
    """
    try:
        with silenced(UserWarning):  # about pickle protocols and TorchScript; errors say more
            # the format before torch 1.6 is no zip archive and cannot be mapped
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error):
            raise _unsafe(path, error) from error
        raise _unreadable(path, error) from error
    except DAMAGED as error:
        if "weights_only" in str(error):
            raise _unsafe(path, error) from error
        raise _unreadable(path, error) from error
    if not isinstance(loaded, Mapping):
        got = type(loaded).__name__
        raise SourceError(f"{path} holds no state dict", got=got, wanted="a mapping of names to tensors")
    return unnest(loaded)


def _unsafe(path: Path, error: Exception) -> UnsafeCheckpointError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    what = f"a pickle that asks for {named[1]}" if named else "a pickle of Python objects"
    return UnsafeCheckpointError(f"{path} is not a state dict", got=what, wanted="tensors only")
