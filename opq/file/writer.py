"""A plan and stored tensors -> one `.opq.safetensors` file. docs/format.md is the specification."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable, Mapping

from opq.base.atomic import written_aside
from opq.base.dtypes import torch_dtype
from opq.base.format_v1 import COMMON, PARAMETERS, VERSION
from opq.base.pool import torch_threads
from opq.errors import MismatchError, WriteError
from opq.file import base as bases
from opq.file import index, stored
from opq.file.base import BaseName
from opq.file.basis import BY
from opq.file.header import METADATA, entries_header
from opq.file.payload import Place, Stored
from opq.file.reader import Reader
from opq.file.stored import Fine, Grid, Log, Product, Raw, Table, Trellis
from opq.plan import Plan, TensorPlan

OWN_ENTRY = 1 << 16
"""Bytes from which on a payload has a safetensors entry of its own, under the tensor's name. A choice: an entry and its
checksum take about a hundred bytes of the file, and can be read alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A file in memory."""

    parts: tuple[bytes, ...]
    sizes: Mapping[str, int]
    """Bytes of each stored tensor's payload, without header."""
    digests: Mapping[str, int]
    """CRC-32 of the integer codes of each tensor that has codes, for the verification."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(map(len, self.parts))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a temporary file, verifies it by decoding, and renames it; until then an existing file stays.

        Raises:
            WriteError: the file could not be written, or does not decode to what it was made from. It is removed.
        """
        with written_aside(path) as file:
            file.writelines(self.parts)
            file.flush()
            self.verify(file.name)

    def verify(self, path: str | os.PathLike[str]) -> None:
        """Reads a file back and compares every code and every kept tensor with what was packed.

        Raises:
            WriteError: something differs.
        """
        with Reader(path, max_expansion=float("inf")) as reader, torch_threads() as threads:
            same = threads.ordered(lambda name: self._same(reader, name), self.digests)
            for name, right in zip(self.digests, same, strict=True):
                if not right:
                    raise WriteError(f"tensor {name!r} does not decode to what was written", remedy="Write it again.")

    def _same(self, reader: Reader, name: str) -> bool:
        if reader.kind(name) == Raw.kind:
            return zlib.crc32(stored.raw_bytes(reader.stored(name))) == self.digests[name]
        digest = zlib.crc32(reader.codes(name).data)
        for exponents in (reader.exponents(name), reader.columns(name)):
            digest = digest if exponents is None else zlib.crc32(exponents.data, digest)
        return digest == self.digests[name]


def pack(plan: Plan, items: Iterable[Stored], *, note: str = "", base: BaseName | None = None) -> Packed:
    """The file of `plan` and its stored tensors: the same bytes for the same arguments, on every machine.

    Args:
        items: one for each tensor that is not shared, in any order.
        note: what the codes rest on, one of `opq.file.basis.NOTES`; nothing where that is the weights alone.
        base: the network to which the tensors are differences, if they are.

    Raises:
        MismatchError: items are missing, too many, or do not fit the plan.
    """
    by_name = _by_name(plan, items)
    own = plan.own
    with torch_threads() as threads:
        made = dict(
            zip((t.name for t in own), threads.ordered(lambda t: encoded(by_name[t.name], t), own), strict=True)
        )
    large = own_entries(plan, {name: m.place for name, m in made.items()})
    own_entry = set(large)
    places = [_place(made.get(t.name), t.name in own_entry) for t in plan]
    small = b"".join(m.payload for n, m in made.items() if n not in own_entry)
    header, common = frame(plan, places, large, small, note=note, base=base)
    parts = (header, *(made[name].payload for name in large), common)
    return Packed(
        parts,
        {name: len(m.payload) for name, m in made.items()},
        {name: m.digest for name, m in made.items() if m.digest is not None},
    )


def own_entries(plan: Plan, places: Mapping[str, Place]) -> list[str]:
    """The tensors whose payloads have their own entries, in the file's order; `places` has no shared tensors."""
    large = [name for name, p in places.items() if p.length >= OWN_ENTRY and name not in (COMMON, METADATA)]
    return sorted(large, key=lambda name: (-_alignment(plan[name], places[name]), name))


def frame(
    plan: Plan,
    places: Iterable[Place],
    large: Iterable[str],
    small: bytes,
    *,
    note: str = "",
    base: BaseName | None = None,
) -> tuple[bytes, bytes]:
    """The header and the common entry of a file: what precedes and what follows the payloads of `large`.

    Args:
        places: of all tensors of the plan, in its order; those of `large` with their checksums.
        small: the other payloads, in the plan's order, as one.
        note: as in `pack`.
        base: as in `pack`.

    Raises:
        WriteError: a file cannot hold a name or a shape, or there are too many tensors or too long names.
    """
    listed = list(places)
    placed = {t.name: (t, p) for t, p in zip(plan, listed, strict=True)}
    head = index.encode_whole(plan, listed)
    body = len(head).to_bytes(4, "little") + head + small
    common = zlib.crc32(body).to_bytes(4, "little") + body
    entries = [_entry(*placed[name]) for name in large]
    metadata = {COMMON: str(VERSION), PARAMETERS: str(sum(t.size for t in plan.own))} | ({BY: note} if note else {})
    if base is not None:
        metadata |= {COMMON: str(bases.VERSION), bases.MEMBER: str(base)}
    return entries_header([*entries, (COMMON, "U8", (len(common),), len(common))], metadata), common


def write_file(path: str | os.PathLike[str], plan: Plan, items: Iterable[Stored]) -> int:
    """Packs and writes; returns the size of the file in bytes."""
    packed = pack(plan, items)
    packed.write(path)
    return packed.size


def size_of(plan: Plan, items: Iterable[Stored]) -> int:
    """The exact size of the file in bytes."""
    return pack(plan, items).size


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """A payload, its place, and a digest of what it decodes to."""

    payload: bytes
    place: Place
    digest: int | None
    """See `Stored.digest`."""


def _by_name(plan: Plan, items: Iterable[Stored]) -> dict[str, Stored]:
    listed = list(items)
    by_name = {item.name: item for item in listed}
    wanted = {t.name for t in plan.own}
    if len(by_name) != len(listed) or set(by_name) != wanted:
        wrong = sorted({item.name for item in listed} ^ wanted) or [i.name for i in listed]
        raise MismatchError("the stored tensors are not those of the plan", got=", ".join(wrong[:5]))
    for tensor in plan:
        other = tensor if tensor.like is None or tensor.like not in plan else plan[tensor.like]
        if other.like is not None or (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            raise MismatchError(f"tensor {tensor.name!r} shares what is not like it", got=other.name)
    return by_name


def encoded(item: Stored, tensor: TensorPlan) -> Encoded:
    """The payload of one tensor; raises `MismatchError` if the tensor does not fit its plan."""
    item = stored.smallest(item)
    payload = item.payload(tensor).bytes()
    return Encoded(payload, Place(item.kind, len(payload), number=item.number), item.digest(payload))


def foreseen(item: Stored, tensor: TensorPlan) -> Place:
    """The place that one tensor will have, its length to within a few bytes; nothing is encoded."""
    item = stored.smallest(item)
    return Place(item.kind, item.payload(tensor).size, number=item.number)


def _place(made: Encoded | None, own: bool) -> Place:
    if made is None:
        return Place("share", 0)
    return dataclasses.replace(made.place, checksum=zlib.crc32(made.payload) if own else None)


def _alignment(tensor: TensorPlan, place: Place) -> int:
    return torch_dtype(tensor.dtype).itemsize if place.kind == "raw" else 1


def _entry(tensor: TensorPlan, place: Place) -> tuple[str, str, tuple[int, ...], int]:
    """Name, element type, shape and length of an entry: a raw tensor has its own type and shape, other payloads U8."""
    raw = place.kind == "raw"
    return tensor.name, tensor.dtype if raw else "U8", tensor.shape if raw else (place.length,), place.length


__all__ = [
    "Fine",
    "Grid",
    "Log",
    "Packed",
    "Product",
    "Raw",
    "Reader",
    "Stored",
    "Table",
    "Trellis",
    "pack",
    "size_of",
    "write_file",
]
