"""Encodes one tensor piece by piece: the same bytes as `opq.coding.entropy.encode`, without the whole tensor in memory.

Large tensors are cut into the entropy coder's chunks of whole rows. There are three sweeps: count symbols and sum
magnitudes; count symbols by class; encode, decode again and compare. Codes stay in memory between sweeps, in one byte
for each weight if that is enough, unless the tensor is too large; then it is read and quantized again, or, on a
trellis, whose search takes longer than the disk, its codes are in an unnamed file.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from opq.base.arrays import Ints, Narrow, narrow
from opq.base.dtypes import torch_dtype
from opq.coding import classes, entropy
from opq.coding.classes import Contexts
from opq.coding.entropy import Draft
from opq.coding.symbols import DIRECT, SYMBOL
from opq.coding.tensor_model import Coding
from opq.errors import WriteError
from opq.plan import LARGEST_CODE, TensorPlan
from opq.quantizing.grid import quantize
from opq.streaming.clock import Clock
from opq.streaming.limits import LIMITS
from opq.streaming.paths import Held, Map, Read, searched

__all__ = ["Coded", "Quantizer", "Read", "encode", "joined"]


@dataclasses.dataclass(frozen=True, slots=True)
class Coded:
    """A payload in pieces."""

    parts: tuple[bytes, ...]
    length: int
    checksum: int
    """CRC-32 of all parts together."""

    @classmethod
    def of(cls, parts: Iterable[bytes]) -> Coded:
        parts, checksum = tuple(parts), 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        return cls(parts, sum(map(len, parts)), checksum)


class Quantizer:
    """`opq.quantizing.grid.quantize` for pieces: the same codes, by a lookup table for types of at most 16 bits."""

    def __init__(self, plan: TensorPlan):
        self.plan, self._dtype = plan, (dtype := torch_dtype(plan.dtype))
        self._table: Narrow | None = None
        if dtype.itemsize <= 2:
            self._pattern = np.uint8 if dtype.itemsize == 1 else np.uint16
            patterns = torch.from_numpy(np.arange(1 << 8 * dtype.itemsize).astype(self._pattern).view(np.uint8))
            values = patterns.view(dtype).to(torch.float32)
            inside = values.abs() <= plan.step * LARGEST_CODE  # false for NaN; true for every weight of the tensor
            self._table = narrow(quantize(torch.where(inside, values, 0.0), plan).numpy())

    def __call__(self, weights: torch.Tensor) -> Narrow:
        """The codes of a flat piece."""
        if self._table is None or weights.dtype != self._dtype:  # differences to a base are float32
            return quantize(weights, self.plan).numpy()
        return self._table.take(weights.view(torch.uint8).numpy().view(self._pattern))


def joined(pieces: Sequence[Narrow]) -> Narrow:
    """Several arrays as one; in two bytes for each code if one of them needs that."""
    wide = any(piece.dtype == np.int16 for piece in pieces)
    return np.concatenate(pieces, dtype=np.int16) if wide else np.concatenate(pieces, dtype=np.int8)


def encode(
    plan: TensorPlan,
    read: Read,
    clock: Clock,
    run: Map = map,
    codes: Held | None = None,
    *,
    cached: int = LIMITS.cached,
    spool: Path | None = None,
) -> Coded:
    """The payload of one compressed tensor, verified by decoding.

    Args:
        plan: the tensor's plan, on a grid or a trellis.
        read: reads its weights.
        run: `map`, or a parallel version of it.
        codes: of the whole tensor, flat and as the file holds them, if they are not simply those of its weights.
        cached: up to so many weights, codes stay in memory between the sweeps.
        spool: the folder for the codes of larger tensors on a trellis; by default they stay in memory.

    Raises:
        WriteError: the bytes do not decode to the codes.
    """
    if codes is None and plan.codebook == "trellis":
        with searched(plan, read, clock, run, spool=spool if plan.size > cached else None) as found:
            return encode(plan, read, clock, run, found)
    parts = entropy.chunks(plan.shape)
    if len(parts) == 1 or not entropy.is_large(plan.shape):
        return _whole(plan, read, clock, codes)
    source = _Chunks(plan, read, clock, parts, codes, keep=plan.size <= cached)
    draft = _draft(source, run)

    def chunk(k: int) -> bytes:
        codes = source.codes(k)
        with clock("encode"):
            data = draft.coding.put_chunk(codes, parts[k][0])
        with clock("verify"):
            out = np.empty_like(codes)
            draft.coding.take_chunk(memoryview(data), out, parts[k][0])
            if not np.array_equal(out, codes):
                raise _differs(plan)
        return data

    data = entropy.joined(draft, list(run(chunk, range(len(parts)))))
    with clock("verify"):
        if not draft.coding.same(entropy.Large.of(data, plan.shape).coding):
            raise _differs(plan)
    return Coded.of([data])


def _whole(plan: TensorPlan, read: Read, clock: Clock, given: Held | None) -> Coded:
    flat = _Chunks(plan, read, clock, [((0, 0), slice(0, plan.size))], given).codes(0)
    codes = flat.reshape(plan.shape)
    with clock("encode"):
        data = entropy.encode(codes)
    with clock("verify"):
        if not np.array_equal(entropy.decode(data, plan.shape), codes):
            raise _differs(plan)
    return Coded.of([data])


def _differs(plan: TensorPlan) -> WriteError:
    return WriteError(f"tensor {plan.name!r} does not decode to what was written", remedy="Write it again.")


class _Chunks:
    """The codes of a tensor, chunk by chunk."""

    def __init__(
        self,
        plan: TensorPlan,
        read: Read,
        clock: Clock,
        parts: list[tuple[tuple[int, int], slice]],
        codes: Held | None = None,
        *,
        keep: bool = True,
    ):
        self.plan, self.parts = plan, parts
        self._read, self._clock, self._given = read, clock, codes
        self._quantizer = Quantizer(plan) if codes is None else None
        self._kept: list[Narrow | None] = [None for _ in parts]
        self._keep = keep

    def narrow(self, k: int) -> Narrow:
        if self._given is not None:
            return self._given[self.parts[k][1]]
        found = self._kept[k]
        if found is None:
            assert self._quantizer is not None
            part = self.parts[k][1]
            with self._clock("read"):
                weights = self._read(part.start, part.stop)
            with self._clock("quantize"):
                found = self._quantizer(weights)
            self._kept[k] = found if self._keep else None
        return found

    def codes(self, k: int) -> npt.NDArray[np.int16]:
        """The codes of chunk k, flat."""
        return self.narrow(k).astype(np.int16, copy=False)

    def survey(self, k: int) -> tuple[Ints, Ints, Ints]:
        """Counts by code (as an unsigned 16-bit number), and sums of magnitudes by row and by position in a row."""
        codes = self.narrow(k)
        with self._clock("encode"):
            _, columns, rest = classes.view(self.plan.shape)
            counts = _counts(codes)
            table = np.abs(codes).reshape(-1, columns * rest)
            return counts, table.sum(1, dtype=np.int64), table.sum(0, dtype=np.int64)

    def by_class(self, k: int, low: int, chosen: Contexts, alphabet: int) -> Ints:
        """Counts by class and symbol of chunk k."""
        codes = self.codes(k)
        with self._clock("encode"):
            return classes.by_class(_symbols(codes, low), chosen, self.parts[k][0], alphabet)


def _counts(codes: Narrow) -> Ints:
    """How often each code occurs, by the code as an unsigned 16-bit number."""
    if codes.dtype == np.int16:
        return np.bincount(codes.view(np.uint16), minlength=1 << 16)
    counts, few = np.zeros(1 << 16, np.int64), np.zeros(256, np.int64)
    for part in entropy.pieces(codes.size):
        few += np.bincount(codes[part].view(np.uint8), minlength=256)
    counts[:128], counts[-128:] = few[:128], few[128:]
    return counts


def _symbols(codes: npt.NDArray[np.int16], low: int) -> npt.NDArray[np.int16]:
    small = int(codes.min()) > -DIRECT and int(codes.max()) < DIRECT
    symbols = codes if small else SYMBOL.take(codes.astype(np.int32) + 2**15)
    return (symbols - np.int16(low)).astype(np.int16, copy=False)


def _draft(source: _Chunks, run: Map) -> Draft:
    """The same as `entropy.draft`, from counts and sums."""
    shape = classes.view(source.plan.shape)
    counts, by_row, by_place = np.zeros(1 << 16, np.int64), [], np.zeros(shape[1] * shape[2], np.int64)
    for some, rows, places in run(source.survey, range(len(source.parts))):
        counts += some
        by_row.append(rows)
        by_place += places
    by_code = np.roll(counts, 1 << 15)  # index: code + 2^15
    found = np.flatnonzero(by_code) - 2**15
    if len(found) == 1:
        return Draft(Coding("constant", offset=int(found[0])), source.plan.shape)
    low, high = int(SYMBOL[found[0] + 2**15]), int(SYMBOL[found[-1] + 2**15])
    plain = np.zeros(high - low + 1, np.int64)
    np.add.at(plain, SYMBOL[found + 2**15].astype(np.int64) - low, by_code[found + 2**15])
    drafts = [entropy.with_tables(source.plan.shape, low, None, plain[None])]
    table = by_place.reshape(shape[1:])
    chosen = classes.of_sums([np.concatenate(by_row), table.sum(1), table.sum(0)], plain)
    if chosen is not None:

        def by_class(k: int) -> Ints:
            return source.by_class(k, low, chosen, len(plain))

        total = np.zeros((chosen.number, len(plain)), np.int64)
        for some in run(by_class, range(len(source.parts))):
            total += some
        drafts.append(entropy.with_tables(source.plan.shape, low, chosen, total))
    return entropy.cheapest(drafts)
