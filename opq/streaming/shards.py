"""Output shards: which tensors are in which file, and writing one file in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from opq.base.arrays import Narrow
from opq.base.atomic import written_aside
from opq.base.pool import Pool
from opq.compression.differences import Differences
from opq.compression.in_file import head, told
from opq.errors import FileFormatError, WriteError
from opq.file import stored, writer
from opq.file.base import BaseName
from opq.file.folder_reader import check_payloads
from opq.file.index import Place
from opq.file.kept import keep
from opq.file.reader import Reader
from opq.plan import Plan, TensorPlan
from opq.sources.base import Source, TensorSpec
from opq.streaming import encode
from opq.streaming.block_feedback import fed_codes
from opq.streaming.block_probe import Carried
from opq.streaming.chunks import Tensors
from opq.streaming.clock import Clock
from opq.streaming.encode import Coded
from opq.streaming.limits import LIMITS, Limits
from opq.streaming.paths import Map
from opq.streaming.work_folder import Work

STREAMED = 1 << 22
"""Kept tensors with more elements than this are copied piece by piece. A choice that limits the memory."""
_BUFFER = 1 << 24
"""Bytes copied at once. A choice: enough for the full speed of a disk."""


def partition(specs: Sequence[TensorSpec], compressed: set[str], rate: float, shard_size: int) -> list[list[str]]:
    """The names in each output shard, in the source's order; tied names are in the shard of the tensor they share.

    Args:
        compressed: the tensors that take `rate` bits per weight; the others keep their bytes.
        shard_size: bytes of a shard, as nearly as whole tensors allow.
    """
    shards: list[list[str]] = [[]]
    filled, where = 0.0, {}
    for spec in (s for s in specs if s.like is None):
        weight = spec.size * rate / 8 if spec.name in compressed else spec.nbytes
        if shards[-1] and filled + weight > shard_size:
            shards.append([])
            filled = 0.0
        shards[-1].append(spec.name)
        filled += weight
        where[spec.name] = len(shards) - 1
    for spec in (s for s in specs if s.like is not None):
        shards[where[str(spec.like)]].append(spec.name)
    order = {spec.name: k for k, spec in enumerate(specs)}
    return [sorted(names, key=order.__getitem__) for names in shards]


def part_of(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan of one shard."""
    chosen = set(names)
    return plan.replace(tensors=tuple(t for t in plan if t.name in chosen))


def kept_items(source: Source, part: Plan, whole: Plan) -> tuple[list[stored.Stored], list[str]]:
    """Stored forms of the kept tensors of a shard, and the names of those that are copied piece by piece."""
    large = [t.name for t in part if t.action == "keep" and t.size > STREAMED and not t.vector]
    small = part.replace(tensors=tuple(t for t in part if t.name not in large))
    names = {t.name for t in small}
    mine = dataclasses.replace(source, specs=tuple(s for s in source.specs if s.name in names))
    items = keep(mine, small, {}, whole=whole)
    return [source.finished(i) for i in items] if isinstance(source, Differences) else items, large


@dataclasses.dataclass(frozen=True)
class Shards:
    """Writes the shards of a plan."""

    source: Source
    tensors: Tensors
    pool: Pool
    clock: Clock
    work: Work
    carried: Carried | None = None
    """The inputs of the matrices of each block, if errors are fed back."""
    limits: Limits = LIMITS
    note: str = ""
    """What the codes rest on, one of `opq.file.basis.NOTES`."""

    def write(self, path: Path, part: Plan, whole: Plan) -> int:
        """Writes one file as `opq.file.writer.pack` would: to a temporary name, read back, renamed. Returns its size.

        Raises:
            WriteError: the file cannot be written or verified; it is removed.
        """
        inner, written = self.work.inner, told(self.source, part)
        try:
            with tempfile.TemporaryFile(dir=inner) as spool, written_aside(path, within=inner) as out:
                places, offsets, small = self._payloads(part, whole, spool)
                large = writer.own_entries(part, {n: p for n, p in places.items() if p.kind != "share"})
                header, common = writer.frame(
                    written, [places[t.name] for t in part], large, small, note=self.note, base=base_name(self.source)
                )
                with self.clock("write"):
                    out.write(header)
                    for name in large:
                        _copy(spool, offsets[name], places[name].length, out)
                    out.write(common)
                    out.flush()
                with self.clock("verify"):
                    _check(Path(out.name), written)
                return out.tell()
        except OSError as error:
            raise WriteError(f"cannot write {path}", got=error.strerror or error) from error

    def _payloads(self, part: Plan, whole: Plan, spool: BinaryIO) -> tuple[dict[str, Place], dict[str, int], bytes]:
        """Writes large payloads into the spool; returns all places, the offsets of these, and the small payloads."""
        places: dict[str, Place] = {}
        offsets: dict[str, int] = {}
        small: dict[str, bytes] = {}
        for name, kind, number, coded in self._coded(part, whole):
            own = coded.length >= writer.OWN_ENTRY
            if own:
                offsets[name] = spool.tell()
                with self.clock("write"):
                    spool.writelines(coded.parts)
            else:
                small[name] = b"".join(coded.parts)
            places[name] = Place(kind, coded.length, coded.checksum if own else None, number)
        for tensor in part:
            if tensor.like is not None:
                places[tensor.name] = Place("share", 0)
        return places, offsets, b"".join(small[t.name] for t in part if t.name in small)

    def _coded(self, part: Plan, whole: Plan) -> Iterator[tuple[str, str, float, Coded]]:
        """Name, kind, number and payload of every tensor that is not shared."""
        items, large = kept_items(self.source, part, whole)
        for item in items:
            made = writer.encoded(item, part[item.name])
            yield item.name, made.place.kind, made.place.number, Coded.of([made.payload])
        for name in large:
            yield name, "raw", 0, self._raw(name)
        kinds = {tensor.name: tensor.codebook for tensor in told(self.source, part).compressed}
        for group, codes in self._grouped(part):
            ordinary = [t for t in group if t.size <= self.limits.alone]
            one = functools.partial(self._one, codes)
            for tensor, coded in zip(ordinary, self.pool.weighed(one, ordinary, lambda t: t.size), strict=True):
                yield tensor.name, kinds[tensor.name], 0, coded
            for tensor in (t for t in group if t.size > self.limits.alone):
                found = codes.get(tensor.name)
                yield tensor.name, kinds[tensor.name], 0, self._encoded(tensor, found, self.pool.ordered)

    def _grouped(self, part: Plan) -> Iterator[tuple[list[TensorPlan], dict[str, Narrow]]]:
        """The compressed tensors; those of one block together, with their codes by error feedback."""
        groups: dict[int | None, list[TensorPlan]] = {}
        for tensor in part.compressed:
            groups.setdefault(self._block(tensor.name), []).append(tensor)
        for block, group in groups.items():
            if self.carried is None or block is None:
                yield group, {}
                continue
            inputs = self.carried.inputs(block)
            fed = [t for t in group if t.name in inputs]
            yield group, fed_codes(fed, inputs, self.tensors, self.pool, self.clock, slab=self.limits.slab)

    def _block(self, name: str) -> int | None:
        return None if self.carried is None else self.carried.blocks.block_of(name)

    def _one(self, codes: dict[str, Narrow], tensor: TensorPlan) -> Coded:
        return self._encoded(tensor, codes.get(tensor.name), map)

    def _encoded(self, tensor: TensorPlan, codes: Narrow | None, run: Map) -> Coded:
        """The payload of a compressed tensor; `codes` are those by error feedback, if any."""
        limit, inner = self.limits.cached, self.work.inner
        coded = encode.encode(
            tensor,
            lambda start, stop: self.tensors.read(tensor.name, start, stop),
            self.clock,
            run,
            codes,
            cached=limit,
            spool=inner,
        )
        before = head(self.source, tensor.name)
        return Coded.of([before, *coded.parts]) if before else coded

    def _raw(self, name: str) -> Coded:
        """A kept tensor in lazy parts: one sweep for length and checksum, another for the bytes."""
        size = self.source.by_name[name].size
        bounds = [(s, min(s + STREAMED, size)) for s in range(0, size, STREAMED)]
        length, checksum = 0, 0
        for start, stop in bounds:
            data = self._bytes(name, start, stop)
            length, checksum = length + len(data), zlib.crc32(data, checksum)
        return Coded(_Parts(self, name, bounds), length, checksum)  # type: ignore[arg-type]

    def _bytes(self, name: str, start: int, stop: int) -> bytes:
        with self.clock("read"):
            return self.tensors.whole.read(name, start, stop).view(torch.uint8).numpy().tobytes()


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The bytes of a kept tensor, which are read only when they are written."""

    shards: Shards
    name: str
    bounds: list[tuple[int, int]]

    def __iter__(self) -> Iterator[bytes]:
        for start, stop in self.bounds:
            yield self.shards._bytes(self.name, start, stop)


def _copy(spool: BinaryIO, offset: int, length: int, out: BinaryIO) -> None:
    spool.seek(offset)
    while length:
        data = spool.read(min(length, _BUFFER))
        out.write(data)
        length -= len(data)


def _check(path: Path, part: Plan) -> None:
    """Raises `WriteError` unless a file on disk has this plan and is complete."""
    try:
        with Reader(path, max_expansion=float("inf")) as reader:
            check_payloads(reader, path)
            right = reader.plan == part
    except FileFormatError as error:
        raise WriteError(f"{path} does not read back", got=error, remedy="Write it again.") from error
    if not right:
        raise WriteError(f"{path} does not read back as it was written", remedy="Write it again.")


def base_name(source: Source) -> BaseName | None:
    """How files name the base of a source; None where it has none."""
    return source.base.name if isinstance(source, Differences) else None


def finished(path: Path, part: Plan, base: BaseName | None = None) -> int | None:
    """The size of a shard that an earlier run wrote by the same plan; None if there is none, or it is damaged."""
    if path.is_file():
        with contextlib.suppress(FileFormatError), Reader(path, max_expansion=float("inf")) as reader:
            if reader.plan == part and reader.base == base:
                check_payloads(reader, path)
                return path.stat().st_size
    return None
