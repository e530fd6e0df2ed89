"""Integer codes <-> bytes, near their entropy.

A small tensor is one stack: how it is coded, the classes of rows and columns where these pay, one frequency table for
each class, and the symbols. A large tensor begins with the same header, and its symbols are cut into chunks of whole
rows. docs/format.md gives every byte.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Codes, Ints
from opq.base.format_v1 import CHUNK, LARGE, LARGEST_CODE
from opq.coding import classes, tables
from opq.coding.classes import Contexts
from opq.coding.stack import StackReader, StackWriter
from opq.coding.symbols import DIRECT, EDGES, LAST, SYMBOL, bits_behind
from opq.coding.tensor_model import Coding, Rows, Shape, checked
from opq.errors import CorruptFileError, OptionError

FEW = 1 << 14
"""Codes of the largest tensor that may be coded by a geometric distribution instead of a table. A choice: in larger
tensors the bytes of a table no longer matter, and the search over all scales would only take time."""

_PAGED = 0.5
"""Bits a code from which on a large tensor is coded in pages. Below, pages cost more than 0.1 % beyond tables; above,
they are decoded about ten times as fast (docs/format.md, "Why pages")."""


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
    """Every decision about how to code a tensor, made before it is coded."""

    coding: Coding
    shape: tuple[int, ...]
    bits: int = 0
    """Bits of the chunks, rounded up."""

    @functools.cached_property
    def header(self) -> StackWriter:
        """What stands before the symbols."""
        writer = StackWriter()
        if math.prod(self.shape):
            self.coding.put(writer)
        return writer

    @functools.cached_property
    def size(self) -> int:
        """Bytes that `encode` will give, to within a few; with pages, approximately."""
        coded = len(self.header.finish()) + (self.bits + 7) // 8
        return coded + 4 * len(chunks(self.shape)) if is_large(self.shape) else coded


def encode(codes: npt.NDArray[np.integer]) -> bytes:
    """The codes as bytes; their shape is not stored.

    Args:
        codes: integers in the range of int16, of any shape; see `classes.view` for the axes that carry context.
    """
    return write(draft(codes), codes)


def coded_size(codes: npt.NDArray[np.integer]) -> int:
    """Bytes that `encode` will give, from the counts alone: to within a few, for large tensors approximately."""
    return draft(codes).size


def decode(payload: bytes | memoryview, shape: tuple[int, ...]) -> Codes:
    """The inverse of `encode`: int16 codes of `shape`.

    Raises:
        CorruptFileError: the bytes are not those of any codes of this shape.
    """
    out = np.empty(math.prod(shape), np.int16)
    if not out.size:
        if len(payload):
            raise CorruptFileError("a tensor without elements has bytes", got=len(payload), wanted=0)
    elif is_large(shape):
        large = Large.of(payload, shape)
        for k, (_, part) in enumerate(large.chunks):
            large.take(k, out[part])
    else:
        _take_small(payload, shape, out)
    return out.reshape(shape)


def _take_small(payload: bytes | memoryview, shape: tuple[int, ...], out: Codes) -> None:
    rows = classes.view(shape)
    reader = StackReader(payload)
    coding = Coding.take(reader, rows)
    if coding.kind == "pages":
        raise CorruptFileError("a small tensor in pages")
    if coding.kind == "constant":
        reader.finish()
        out[:] = coding.offset
        return
    coding.take_symbols(reader, out, (0, rows[0]))
    if coding.offset:
        moved = out + np.int32(coding.offset)
        checked(int(moved[np.abs(moved).argmax()]))
        out[:] = moved


@dataclasses.dataclass(frozen=True, slots=True)
class Large:
    """The codes of a large tensor's payload, chunk by chunk, in any order."""

    coding: Coding
    chunks: list[tuple[Rows, slice]]
    streams: list[memoryview]

    @classmethod
    def of(cls, payload: bytes | memoryview, shape: tuple[int, ...]) -> Large:
        """Raises `CorruptFileError` where the payload is shorter than it says."""
        parts = chunks(shape)
        header, *streams = _streams(memoryview(payload), len(parts) + 1)
        reader = StackReader(header)
        coding = Coding.take(reader, classes.view(shape))
        reader.finish()
        if coding.kind == "geometric":
            raise CorruptFileError("a large tensor by a geometric distribution")
        return cls(coding, parts, streams)

    def take(self, k: int, out: Codes) -> None:
        """Decodes chunk k into the flat `out`; raises `CorruptFileError` where its bytes are damaged."""
        self.coding.take_chunk(self.streams[k], out, self.chunks[k][0])

    def codes(self, k: int) -> Codes:
        """The codes of chunk k, flat."""
        part = self.chunks[k][1]
        out = np.empty(part.stop - part.start, np.int16)
        self.take(k, out)
        return out


# --- encoding --------------------------------------------------------------------------------


def draft(codes: npt.NDArray[np.integer]) -> Draft:
    """The cheapest way found to code the codes."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if low < -LARGEST_CODE or high > LARGEST_CODE:
        raise OptionError("codes beyond 16 bits", got=(low, high), wanted=f"-{LARGEST_CODE} to {LARGEST_CODE}")
    codes = _as_codes(codes)
    flat = codes.reshape(-1)
    if low == high:
        return Draft(Coding("constant", offset=low), codes.shape)
    low, symbols, counts = _counted(flat, low, high)
    found = [with_tables(codes.shape, low, None, counts[None])]
    if codes.size <= FEW:
        found += _without_tables(codes)
    shape = classes.view(codes.shape)
    for candidate in classes.choose(symbols.reshape(shape), codes.reshape(shape), counts):
        found.append(with_tables(codes.shape, low, candidate, counted_by_class(symbols, candidate, len(counts))))
    return cheapest(found)


def cheapest(drafts: list[Draft]) -> Draft:
    """The smallest draft; a large tensor's tables are replaced by pages, which cost a little more but decode faster."""
    if not is_large(drafts[0].shape):
        return min(drafts, key=lambda d: d.size)
    best = min(drafts, key=lambda d: d.bits)
    if best.bits < _PAGED * math.prod(best.shape):
        return best
    bins = sum(int(np.count_nonzero(u)) for u in best.coding.roots)
    around = len(chunks(best.shape)) * (12 * best.coding.classes + 3 * bins)
    return Draft(
        dataclasses.replace(best.coding, kind="pages", roots=()), best.shape, best.bits * 2049 // 2048 + 8 * around
    )


def with_tables(shape: tuple[int, ...], low: int, chosen: Contexts | None, counts: Ints) -> Draft:
    """The draft of the symbols `low, low + 1, ...` whose counts are (classes, alphabet).

    Different large codes may share one symbol; as a model has two or more, a neighbour that does not occur is added.
    """
    if counts.shape[1] == 1:
        before = int(low == LAST)
        low, counts = low - before, np.pad(counts, ((0, 0), (before, 1 - before)))
    roots = tuple(tables.roots(c) if c.any() else np.eye(1, len(c), dtype=np.int64)[0] for c in counts)
    cost = sum(tables.cost(c, tables.frequencies(u)) for c, u in zip(counts, roots, strict=True))
    behind = int(counts.sum(0) @ bits_behind(low, low + counts.shape[1] - 1))
    coding = Coding("tables", low, counts.shape[1], chosen, roots)
    return Draft(coding, shape, behind + (cost >> tables.FRACTION) + 1)


def write(plan: Draft, codes: npt.NDArray[np.integer]) -> bytes:
    """The bytes of codes that `draft` has checked, coded as it decided."""
    flat = _as_codes(codes).reshape(-1)
    if is_large(plan.shape):
        return joined(plan, [plan.coding.put_chunk(flat[part], rows) for rows, part in chunks(plan.shape)])
    writer = StackWriter()
    writer.extend(plan.header)
    if flat.size and plan.coding.kind != "constant":
        moved = flat - np.int16(plan.coding.offset) if plan.coding.offset else flat
        plan.coding.put_symbols(writer, moved, (0, classes.view(plan.shape)[0]))
    return writer.finish()


def joined(plan: Draft, streams: list[bytes]) -> bytes:
    """The payload of a large tensor: the lengths of all parts but the last, the header, the chunks."""
    parts = [plan.header.finish(), *streams]
    return b"".join(len(s).to_bytes(4, "little") for s in parts[:-1]) + b"".join(parts)


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is coded chunk by chunk."""
    return math.prod(shape) >= LARGE


def chunks(shape: tuple[int, ...]) -> list[tuple[Rows, slice]]:
    """Row ranges of at most about `CHUNK` codes, and where they lie in the flat tensor."""
    rows, columns, rest = classes.view(shape)
    width = columns * rest
    step = max(1, CHUNK // max(width, 1))
    return [
        ((start, min(start + step, rows)), slice(start * width, min(start + step, rows) * width))
        for start in range(0, rows, step)
    ]


def pieces(size: int) -> list[slice]:
    """Consecutive slices of 2^17 elements, which a processor's cache holds (a choice; it changes no byte)."""
    return [slice(start, start + (1 << 17)) for start in range(0, size, 1 << 17)]


def counted_by_class(symbols: npt.NDArray[np.int16], chosen: Contexts, alphabet: int) -> Ints:
    """How often each symbol occurs in each class: (classes, alphabet). `symbols` are flat."""
    counts = np.zeros((chosen.number, alphabet), np.int64)
    shape: Shape = (len(chosen.axes[0]), len(chosen.axes[1]), len(chosen.axes[2]))
    for rows, part in chunks(shape):
        counts += classes.by_class(symbols[part], chosen, rows, alphabet)
    return counts


def _counted(flat: Codes, low: int, high: int) -> tuple[int, npt.NDArray[np.int16], Ints]:
    """For flat codes between `low` and `high`: the smallest symbol, the symbols minus it, and how often each occurs."""
    direct = low > -DIRECT and high < DIRECT
    low, high = int(SYMBOL[low + 2**15]), int(SYMBOL[high + 2**15])
    symbols, counts = np.empty_like(flat), np.zeros(high - low + 1, np.int64)
    for part in pieces(flat.size):
        symbols[part] = flat[part] if direct else SYMBOL.take(flat[part].astype(np.int32) + 2**15)
        symbols[part] -= np.int16(low)
        counts += np.bincount(symbols[part], minlength=len(counts))
    return low, symbols, counts


def _as_codes(codes: npt.NDArray[np.integer]) -> Codes:
    return np.ascontiguousarray(codes, np.int16).reshape(codes.shape)


def _without_tables(codes: Codes) -> list[Draft]:
    """The best geometric distribution around the median, if 16 bits hold the distances from the median."""
    middle = int(np.partition(codes.reshape(-1), codes.size // 2)[codes.size // 2])
    moved = codes.astype(np.int32) - middle
    if np.abs(moved).max() > LARGEST_CODE:
        return []
    counts = np.bincount(SYMBOL.take(moved.reshape(-1) + 2**15).astype(np.int32) + LAST, minlength=2 * LAST + 1)
    costs = [tables.cost(counts, table) for table in tables.geometric(EDGES)]
    scale = int(np.argmin(costs))
    bits = int(counts @ bits_behind(-LAST, LAST)) + (costs[scale] >> tables.FRACTION) + 1
    return [Draft(Coding("geometric", -LAST, 2 * LAST + 1, offset=middle, scale=scale), codes.shape, bits)]


def _streams(payload: memoryview, number: int) -> list[memoryview]:
    """The bytes of the parts that `joined` put together."""
    if len(payload) < 4 * (number - 1):
        raise CorruptFileError("a coded tensor ends inside its lengths", got=f"{len(payload)} bytes")
    lengths = [int.from_bytes(payload[4 * k : 4 * k + 4], "little") for k in range(number - 1)]
    position, streams = 4 * (number - 1), []
    for length in (*lengths, len(payload) - position - sum(lengths)):
        if not 0 <= length <= len(payload) - position:
            raise CorruptFileError("a coded tensor is shorter than its chunks", got=f"{len(payload)} bytes")
        streams.append(payload[position : position + length])
        position += length
    return streams
