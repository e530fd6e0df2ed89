"""Weights in files: safetensors or PyTorch checkpoints, one file or many, read tensor by tensor through mmap."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from opq.dtypes import torch_dtype
from opq.errors import CorruptSourceError, SourceError
from opq.sources.base import Source, TensorSpec, guess_kinds, not_empty


def from_safetensors(path: Path) -> Source:
    """One `.safetensors` file, read tensor by tensor; aliases that `safetensors.torch.save_model` notes are ties.

    Raises:
        CorruptSourceError: the file is truncated or damaged.
        SourceError: the file is already compressed by this package.
    """
    specs = safetensors_specs(path)
    read = functools.partial(_read_tied, path, {s.name: s.like or s.name for s in specs})
    files = {spec.name: path for spec in specs}
    return not_empty(Source(label=path.name, origin="file", specs=guess_kinds(specs), read=read, files=files))


def _read_tied(path: Path, held: dict[str, str], name: str) -> Tensor:
    return read_safetensors(path, held[name])


def safetensors_specs(path: Path) -> tuple[TensorSpec, ...]:
    """The tensors of one safetensors file in the order on disk, from its header alone."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") == "opq":
            remedy = "Pass the original weights, or decompress it first: opq decompress."
            raise SourceError(f"{path} is already compressed", got="an opq file", remedy=remedy)
        specs = [_spec(name, file.get_slice(name), path) for name in file.offset_keys()]
    by_name = {spec.name: spec for spec in specs}
    tied = {alias: name for alias, name in metadata.items() if name in by_name and alias not in by_name}
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
        raise CorruptSourceError(
            f"{path} cannot be read", got=f"{type(error).__name__}: {error}", wanted="a whole safetensors file"
        ) from error
