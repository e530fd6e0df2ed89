"""Integer codes <-> bytes, near their entropy.

One stack a tensor holds all of it: the range of the codes, the classes of rows and columns where these pay, one
frequency table a class, and the symbols. Large tensors are cut into chunks with a stack each. docs/format.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt

from opq import contexts, sides, tables
from opq.ans import Ints, Model, Reader, Symbols, Writer, categorical, uniform
from opq.contexts import Contexts
from opq.errors import CorruptFileError, OptionError
from opq.quantize import LARGEST_CODE
from opq.symbols import BASE, BITS, DIRECT, EDGES, LAST, SYMBOL, any_behind, bits_behind

Codes = npt.NDArray[np.int16]

CHUNK = 1 << 20
"""Symbols in one stack, rounded to whole rows."""

FEW = 1 << 14
"""Tensors of at most so many codes may do without a table."""

_CONSTANT, _TABLES, _GEOMETRIC = 0, 1, 2
_KINDS = uniform(3)
_SYMBOLS = uniform(256)
_SCALES = uniform(tables.SCALES)


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
    """All that is decided before a tensor is coded."""

    codes: Codes
    """Less their offset, if they have one."""
    kind: int
    """All equal, with tables, or by a geometric distribution."""
    bits: int = 0
    """Bits of symbols and of the bits behind them, rounded up."""
    low: int = 0
    """The smallest symbol."""
    roots: tuple[Ints, ...] = ()
    """Of tables: one a class."""
    contexts: Contexts | None = None
    """Of tables: the classes, where there are several."""
    offset: int = 0
    """Of a geometric distribution, or of all codes being equal: what is to be added to every code."""
    scale: int = 0
    """Of a geometric distribution: its number."""

    @functools.cached_property
    def size(self) -> int:
        """Bytes that `encode` gives, within a few."""
        chunks = max(1, len(_chunks(self.codes.shape)))
        return len(self.header.finish()) + (self.bits + 7) // 8 + (7 if self.bits else 4) * (chunks - 1)

    @functools.cached_property
    def header(self) -> Writer:
        """What stands before the symbols of the first chunk."""
        writer = Writer()
        if not self.codes.size:
            return writer
        writer.put(self.kind, _KINDS)
        if self.kind != _TABLES:
            writer.sint(self.offset)
        if self.kind == _GEOMETRIC:
            writer.put(self.scale, _SCALES)
        if self.kind == _TABLES:
            writer.put(self.low + 128, _SYMBOLS)
            writer.put(len(self.roots[0]) - 1, _SYMBOLS)
            sides.put(writer, self.contexts)
            for u in self.roots:
                tables.put(writer, u, self.low)
        return writer

    def tables(self) -> list[Ints]:
        """The frequencies of each class."""
        if self.kind == _GEOMETRIC:
            return [tables.geometric(EDGES)[self.scale]]
        return [tables.frequencies(u) for u in self.roots]


def encode(codes: npt.NDArray[np.integer]) -> bytes:
    """The codes as bytes; their shape is not stored.

    Args:
        codes: integers that int16 holds, of any shape; up to three axes carry context.
    """
    return write(draft(codes))


def coded_size(codes: npt.NDArray[np.integer]) -> int:
    """Bytes that `encode` gives, within a few, from the counts alone."""
    return draft(codes).size


def draft(codes: npt.NDArray[np.integer]) -> Draft:
    """The cheapest way found to code the codes."""
    codes = _as_codes(codes)
    flat = codes.reshape(-1)
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    if low == high:
        return Draft(codes, _CONSTANT, offset=low)
    wide = low <= -DIRECT or high >= DIRECT
    low, high = (int(SYMBOL[low + 2**15]), int(SYMBOL[high + 2**15]))
    symbols, counts = np.empty_like(flat), np.zeros(high - low + 1, np.int64)
    for part in _pieces(flat.size):
        symbols[part] = SYMBOL.take(flat[part].astype(np.int32) + 2**15) if wide else flat[part]
        symbols[part] -= np.int16(low)
        counts += np.bincount(symbols[part], minlength=len(counts))
    behind = int(counts @ bits_behind(low, high))
    found = [_with_tables(codes, low, None, counts[None], behind)]
    if codes.size <= FEW:
        found += _without_tables(codes)
    shape = contexts.view(codes.shape)
    for candidate in contexts.choose(symbols.reshape(shape), np.abs(codes).reshape(shape), counts):
        found.append(_with_tables(codes, low, candidate, _counts(symbols, candidate, len(counts)), behind))
    return min(found, key=lambda d: d.size)


def _pieces(size: int) -> list[slice]:
    """Cuts that a processor's cache holds."""
    return [slice(start, start + (1 << 17)) for start in range(0, size, 1 << 17)]


def _as_codes(codes: npt.NDArray[np.integer]) -> Codes:
    limits = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if limits[0] < -LARGEST_CODE or limits[1] > LARGEST_CODE:
        raise OptionError("codes beyond 16 bits", got=limits, wanted=f"-{LARGEST_CODE} to {LARGEST_CODE}")
    return np.ascontiguousarray(codes, np.int16).reshape(codes.shape)


def _with_tables(codes: Codes, low: int, chosen: Contexts | None, counts: Ints, behind: int) -> Draft:
    roots = tuple(tables.roots(c) if c.any() else np.eye(1, len(c), dtype=np.int64)[0] for c in counts)
    bits = sum(tables.cost(c, tables.frequencies(u)) for c, u in zip(counts, roots, strict=True))
    bits = behind + (bits >> tables.FRACTION) + 1
    return Draft(codes, _TABLES, bits, low=low, roots=roots, contexts=chosen)


def _without_tables(codes: Codes) -> list[Draft]:
    """By the best geometric distribution around the median, if 16 bits hold the distances from it."""
    middle = int(np.partition(codes.reshape(-1), codes.size // 2)[codes.size // 2])
    moved = codes.astype(np.int32) - middle
    if np.abs(moved).max() > LARGEST_CODE:
        return []
    counts = np.bincount(SYMBOL.take(moved.reshape(-1) + 2**15).astype(np.int32) + LAST, minlength=2 * LAST + 1)
    costs = [tables.cost(counts, table) for table in tables.geometric(EDGES)]
    scale = int(np.argmin(costs))
    bits = int(counts @ bits_behind(-LAST, LAST)) + (costs[scale] >> tables.FRACTION) + 1
    return [Draft(moved.astype(np.int16), _GEOMETRIC, bits, low=-LAST, offset=middle, scale=scale)]


def _counts(symbols: npt.NDArray[np.int16], chosen: Contexts, alphabet: int) -> Ints:
    """Counts by class and symbol."""
    counts = np.zeros((chosen.number, alphabet), np.int64)
    for rows, part in _chunks(tuple(len(a) for a in chosen.axes)):
        for k, of_class in enumerate(chosen.blocks(*rows).split(symbols[part])):
            counts[k] += np.bincount(of_class, minlength=alphabet)
    return counts


def _chunks(shape: tuple[int, ...]) -> list[tuple[tuple[int, int], slice]]:
    """Row ranges of at most about `CHUNK` symbols, and where they lie in the flat tensor."""
    rows, columns, rest = contexts.view(shape)
    width = columns * rest
    step = max(1, CHUNK // max(width, 1))
    return [
        ((start, min(start + step, rows)), slice(start * width, min(start + step, rows) * width))
        for start in range(0, rows, step)
    ]


def write(plan: Draft) -> bytes:
    """The bytes of a draft."""
    writer = Writer()
    writer.extend(plan.header)
    if plan.kind == _CONSTANT:
        return _joined([writer.finish()] + [b""] * (len(_chunks(plan.codes.shape)) - 1))
    models = [categorical(table) for table in plan.tables()]
    flat = plan.codes.reshape(-1)
    streams = []
    for rows, part in _chunks(plan.codes.shape):
        _put_chunk(writer, flat[part], plan, rows, models)
        streams.append(writer.finish())
        writer = Writer()
    return _joined(streams)


def _joined(streams: list[bytes]) -> bytes:
    """The lengths of all streams but the last, and the streams."""
    return b"".join(len(s).to_bytes(4, "little") for s in streams[:-1]) + b"".join(streams)


def _put_chunk(writer: Writer, codes: Codes, plan: Draft, rows: tuple[int, int], models: list[Model]) -> None:
    index = codes.astype(np.int32) + 2**15 if any_behind(plan.low, len(plan.tables()[0])) else None
    symbols = np.subtract(codes if index is None else SYMBOL.take(index), plan.low, dtype=np.int32)
    parts = [symbols] if plan.contexts is None else plan.contexts.blocks(*rows).split(symbols)
    for of_class, model in zip(parts, models, strict=True):
        if len(of_class):
            writer.put(of_class, model)
    if index is not None:
        lengths = BITS.take(index)
        behind = np.flatnonzero(lengths)
        if len(behind):
            widths = lengths[behind].astype(np.int32)
            writer.bits(np.abs(codes[behind].astype(np.int32)) & ((1 << widths) - 1), widths)


def decode(payload: bytes | memoryview, shape: tuple[int, ...]) -> Codes:
    """The inverse of `encode`: int16 codes of `shape`.

    Raises:
        CorruptFileError: the bytes are not those of any codes of this shape.
    """
    out = np.empty(math.prod(shape), np.int16)
    if not out.size:
        _nothing_left(payload)
        return out.reshape(shape)
    chunks = _chunks(shape)
    streams = _streams(memoryview(payload), len(chunks))
    reader = Reader(streams[0])
    kind = reader.take(_KINDS)
    offset = _checked(reader.sint()) if kind != _TABLES else 0
    if kind == _CONSTANT:
        if any(map(len, streams[1:])):
            raise CorruptFileError("equal codes have more than one chunk")
        reader.finish()
        out[:] = offset
        return out.reshape(shape)
    low, chosen, frequencies = _take_model(reader, kind, contexts.view(shape))
    models = [categorical(table) for table in frequencies]
    for k, (rows, part) in enumerate(chunks):
        reader = Reader(streams[k]) if k else reader
        _take_chunk(reader, out[part], chosen, rows, models, low, any_behind(low, len(frequencies[0])))
        reader.finish()
    if offset:
        moved = out + np.int32(offset)
        _checked(int(moved[np.abs(moved).argmax()]))
        out[:] = moved
    return out.reshape(shape)


def _take_model(reader: Reader, kind: int, shape: tuple[int, int, int]) -> tuple[int, Contexts | None, list[Ints]]:
    """The smallest symbol, the classes and the frequencies of each."""
    if kind == _GEOMETRIC:
        return -LAST, None, [tables.geometric(EDGES)[reader.take(_SCALES)]]
    low, size = reader.take(_SYMBOLS) - 128, reader.take(_SYMBOLS) + 1
    if low < -LAST or low + size - 1 > LAST or size < 2:
        raise CorruptFileError("a range of symbols that no codes have", got=f"{low} to {low + size - 1}")
    chosen = sides.take(reader, shape)
    number = 1 if chosen is None else chosen.number
    return low, chosen, [tables.frequencies(tables.take(reader, low, size)) for _ in range(number)]


def _take_chunk(
    reader: Reader,
    out: Codes,
    chosen: Contexts | None,
    rows: tuple[int, int],
    models: list[Model],
    low: int,
    wide: bool,
) -> None:
    if chosen is None:
        np.add(reader.many(models[0], len(out)), low, out=out, casting="unsafe")
    else:
        blocks = chosen.blocks(*rows)
        parts = (_some(reader, m, n).astype(np.int16) for m, n in zip(models, blocks.amounts(), strict=True))
        blocks.join(parts, out)
        out += np.int16(low)
    if wide:
        behind = np.flatnonzero(np.abs(out) >= DIRECT)
        symbols = out[behind]
        lengths = 2 + (np.abs(symbols).astype(np.int32) - DIRECT) // 8
        magnitudes = BASE.take(symbols + 128) + (reader.bits(lengths) if len(behind) else 0)
        out[behind] = np.where(symbols < 0, -magnitudes, magnitudes)


def _some(reader: Reader, model: Model, amount: int) -> Symbols:
    return reader.many(model, amount) if amount else np.empty(0, np.int32)


def _streams(payload: memoryview, number: int) -> list[memoryview]:
    """The chunks' bytes."""
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


def _checked(code: int) -> int:
    if abs(code) > LARGEST_CODE:
        raise CorruptFileError("a code beyond 16 bits", got=code)
    return code


def _nothing_left(payload: bytes | memoryview) -> None:
    if len(payload):
        raise CorruptFileError("a tensor without elements has bytes", got=len(payload), wanted=0)
