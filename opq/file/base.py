"""A base: the network that a file's compressed tensors are differences to.

The file names it by the SHA-256 of its tensors and by their bytes, not by a file of it: the same weights in one
file, in shards, as a module or decoded from an opq file are the same base.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from opq.base.dtypes import dtype_name, torch_dtype
from opq.errors import CorruptFileError, ForeignFileError, WrongBaseError
from opq.file import stored

MEMBER = "opq_base"
"""The member of the metadata that names the base."""
VERSION = 2
"""The format version of files that have one."""
RELATIVE = ("grid", "fine", "trellis")
"""Kinds of payload whose weights are added to those of the base."""
_PIECE = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class BaseName:
    """How a file names its base."""

    digest: str
    """SHA-256 of its tensors, in hexadecimal."""
    size: int
    """Bytes of its tensors."""

    def __str__(self) -> str:
        return f"{self.digest} {self.size}"

    @classmethod
    def of(cls, metadata: Any) -> BaseName | None:
        """The base that the metadata of a file name, None where the file has none.

        Raises:
            CorruptFileError: it is not named in this way.
        """
        if not is_based(metadata):
            return None
        text = metadata[MEMBER]
        if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64} (0|[1-9][0-9]{0,17})", text, re.ASCII):
            raise CorruptFileError("the file does not name its base", got=repr(text)[:100])
        return cls(text[:64], int(text[65:]))


def is_based(metadata: Any) -> bool:
    """Whether metadata are those of a file of version 2 that names a base; without one that version is not known."""
    return isinstance(metadata, dict) and metadata.get("opq") == str(VERSION) and MEMBER in metadata


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """The tensors of a network, read one at a time."""

    label: str
    specs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    """Shape and element type by name."""
    read: Callable[[str], torch.Tensor]
    source: Any = None
    """The `opq.sources.base.Source` behind it, whose tensors can be read in pieces; None for opq files."""

    def __reduce__(self) -> tuple[Callable[..., Base], tuple[str, dict[str, torch.Tensor]]]:
        """Elsewhere it is its tensors: what it was read from need not be there."""
        return in_memory, (self.label, {name: self.read(name) for name in self.specs})

    @functools.cached_property
    def name(self) -> BaseName:
        """What it is known by; reads all of it."""
        digest, size = hashlib.sha256(), 0
        for name in sorted(self.specs, key=str.encode):
            shape, dtype = self.specs[name]
            digest.update(f"{name}\0{dtype_name(dtype)}\0{' '.join(map(str, shape))}\0".encode())
            data = stored.raw_view(self.read(name))
            digest.update(data)
            size += len(data)
        return BaseName(digest.hexdigest(), size)

    def fits(self, name: str, shape: Iterable[int]) -> bool:
        """Whether it has a floating-point tensor of this name and shape, which differences can be added to."""
        found = self.specs.get(name)
        return found is not None and found[0] == tuple(shape) and found[1].is_floating_point

    def check(self, wanted: BaseName, label: str) -> None:
        """Raises `WrongBaseError` unless this is the base that a file names."""
        if self.name != wanted:
            got = f"{self.name.size} bytes of tensors, SHA-256 {self.name.digest}"
            raise WrongBaseError(
                f"{self.label} is not the base of {label}", got=got, wanted=f"{wanted.size} bytes, {wanted.digest}"
            )


def in_memory(label: str, tensors: Mapping[str, torch.Tensor]) -> Base:
    """A base of tensors that are there already."""
    return Base(label, {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}, tensors.__getitem__)


def open_base(source: Any) -> Base:
    """A base from whatever holds weights: as `open_source` takes it, or an opq file or folder, decoded.

    Raises:
        OpqError: it cannot be read.
    """
    from opq.sources import open_source

    if isinstance(source, Base):
        return source
    if isinstance(source, str | os.PathLike) and (found := _compressed(source)) is not None:
        return found
    opened = open_source(source)
    return Base(opened.label, {s.name: (s.shape, s.dtype) for s in opened.specs}, opened.tensor, opened)


def _compressed(path: str | os.PathLike[str]) -> Base | None:
    """An opq file or a folder of them as a base; None where the path is something else."""
    from opq.base.paths import what_is
    from opq.file.folder_reader import INDEX, open_reader

    what = what_is(path)
    if what not in ("a file", "a folder") or (what == "a folder" and what_is(Path(path) / INDEX) == "nothing"):
        return None
    if what == "a file" and not os.fspath(path).endswith((".safetensors", ".json")):
        return None
    try:
        reader = open_reader(path)  # stays open for as long as the base is read
    except ForeignFileError:
        return None
    return Base(os.fspath(path), {t.name: (t.shape, torch_dtype(t.dtype)) for t in reader.plan}, reader.tensor)


def added(base: torch.Tensor, codes: torch.Tensor, step: float, dtype: torch.dtype) -> torch.Tensor:
    """`base + step codes`: in float64, and from there as every weight (docs/format.md). Piece by piece."""
    from opq.quantizing.grid import saturated

    dense = torch.empty(codes.shape, dtype=dtype)
    parts = (torch.split(t.reshape(-1), _PIECE) for t in (dense, base, codes))
    for out, old, q in zip(*parts, strict=True) if codes.numel() else ():
        out.copy_(saturated(old.double() + q.double() * step, dtype))
    return dense
