"""Integer codes <-> bytes, near their entropy.

One stack a tensor holds all of it: the range of the codes, the classes of rows and columns where these pay, one
frequency table a class, and the symbols. Large tensors are cut into chunks with a stack each. docs/format.md.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from opq import contexts, tables
from opq.ans import Ints, Reader, Symbols, Writer, categorical, uniform
from opq.contexts import MOST, MOST_PER_AXIS, Contexts
from opq.errors import CorruptFileError, OptionError
from opq.quantize import LARGEST_CODE

Codes = npt.NDArray[np.int16]

CHUNK = 1 << 20
"""Symbols in one stack, rounded to whole rows."""

DIRECT = 32
"""Codes of smaller magnitude are symbols of their own; the others are eight to the octave, with bits behind."""

_CONSTANT, _CODED = 0, 1
_KINDS = uniform(2)
_SYMBOLS = uniform(256)


def _symbol_tables() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Of every int16 code: its symbol, and how many bits follow; of every symbol + 128: its smallest magnitude."""
    magnitude = np.abs(np.arange(-(2**15), 2**15))
    exponent = np.frexp(np.maximum(magnitude, 1))[1] - 1
    bits = np.where(magnitude < DIRECT, 0, exponent - 3)
    symbol = np.where(magnitude < DIRECT, magnitude, DIRECT + 8 * (exponent - 5) + (magnitude >> bits) - 8)
    octave, eighth = np.divmod(np.maximum(np.abs(np.arange(-128, 128)) - DIRECT, 0), 8)
    base = np.where(np.abs(np.arange(-128, 128)) < DIRECT, np.abs(np.arange(-128, 128)), (8 + eighth) << (octave + 2))
    signs = np.where(np.arange(-(2**15), 2**15) < 0, -1, 1)
    return (signs * symbol).astype(np.int16), bits.astype(np.int16), np.minimum(base, 2**15).astype(np.int16)


_SYMBOL, _BITS, _BASE = _symbol_tables()
_LAST = int(_SYMBOL.max())


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """All that is decided before a tensor is coded."""

    codes: Codes
    low: int
    """The smallest symbol."""
    contexts: Contexts
    roots: tuple[Ints, ...]
    """One table a class."""
    wide: bool
    """Whether a symbol has bits behind it."""
    bits: int
    """Bits of symbols and of the bits behind them, rounded up."""

    @property
    def size(self) -> int:
        """Bytes that `encode` gives, within a few."""
        chunks = max(1, len(_chunks(self.codes.shape)))
        return len(self.header().finish()) + (self.bits + 7) // 8 + 7 * (chunks - 1)

    def header(self) -> Writer:
        """What stands before the symbols of the first chunk."""
        writer = Writer()
        if not self.codes.size:
            return writer
        writer.put(_CODED if self.roots else _CONSTANT, _KINDS)
        if not self.roots:
            writer.sint(int(self.codes.flat[0]))
            return writer
        writer.put(self.low + 128, _SYMBOLS)
        writer.put(len(self.roots[0]) - 1, _SYMBOLS)
        _put_contexts(writer, self.contexts)
        for u in self.roots:
            tables.put(writer, u, self.low)
        return writer


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
    single = Contexts.single(contexts.view(codes.shape))
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    if low == high:
        return Draft(codes, 0, single, (), False, 0)
    wide = low <= -DIRECT or high >= DIRECT
    symbols = _SYMBOL.take(flat.astype(np.int32) + 2**15) if wide else flat
    low, high = (int(_SYMBOL[low + 2**15]), int(_SYMBOL[high + 2**15]))
    symbols = symbols - np.int16(low)
    counts = np.bincount(symbols, minlength=high - low + 1)
    behind = int(counts @ _bits_behind(low, high))
    best = _draft(codes, low, single, counts[None], wide, behind)
    shape = contexts.view(codes.shape)
    candidates = contexts.choose(symbols.reshape(shape), np.abs(codes).reshape(shape), counts)
    for candidate in candidates:
        by_class = _counts(symbols, candidate, len(counts))
        best = min(best, _draft(codes, low, candidate, by_class, wide, behind), key=lambda d: d.size)
    return best


def _as_codes(codes: npt.NDArray[np.integer]) -> Codes:
    limits = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if limits[0] < -LARGEST_CODE or limits[1] > LARGEST_CODE:
        raise OptionError("codes beyond 16 bits", got=limits, wanted=f"-{LARGEST_CODE} to {LARGEST_CODE}")
    return np.ascontiguousarray(codes, np.int16).reshape(codes.shape)


def _draft(codes: Codes, low: int, chosen: Contexts, counts: Ints, wide: bool, behind: int) -> Draft:
    roots = tuple(tables.roots(c) if c.any() else np.eye(1, len(c), dtype=np.int64)[0] for c in counts)
    bits = sum(tables.cost(c, tables.frequencies(u)) for c, u in zip(counts, roots, strict=True))
    return Draft(codes, low, chosen, roots, wide, behind + (bits >> tables.FRACTION) + 1)


def _counts(symbols: npt.NDArray[np.int16], chosen: Contexts, alphabet: int) -> Ints:
    """Counts by class and symbol."""
    counts = np.zeros((chosen.number, alphabet), np.int64)
    for rows, part in _chunks(tuple(len(a) for a in chosen.axes)):
        for k, of_class in enumerate(chosen.blocks(*rows).split(symbols[part])):
            counts[k] += np.bincount(of_class, minlength=alphabet)
    return counts


def _bits_behind(low: int, high: int) -> Ints:
    """How many bits follow each symbol."""
    symbols = np.abs(np.arange(low, high + 1))
    return np.where(symbols < DIRECT, 0, 2 + (symbols - DIRECT) // 8)


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
    writer = plan.header()
    if not plan.roots:
        return writer.finish()
    models = [categorical(tables.frequencies(u)) for u in plan.roots]
    flat = plan.codes.reshape(-1)
    streams = []
    for rows, part in _chunks(plan.codes.shape):
        _put_chunk(writer, flat[part], plan, rows, models)
        streams.append(writer.finish())
        writer = Writer()
    lengths = b"".join(len(s).to_bytes(4, "little") for s in streams[:-1])
    return lengths + b"".join(streams)


def _put_chunk(writer: Writer, codes: Codes, plan: Draft, rows: tuple[int, int], models: list[object]) -> None:
    index = codes.astype(np.int32) + 2**15 if plan.wide else None
    symbols = np.subtract(codes if index is None else _SYMBOL.take(index), plan.low, dtype=np.int32)
    parts = [symbols] if len(models) == 1 else plan.contexts.blocks(*rows).split(symbols)
    for of_class, model in zip(parts, models, strict=True):
        if len(of_class):
            writer.put(of_class, model)
    if index is not None:
        lengths = _BITS.take(index)
        behind = np.flatnonzero(lengths)
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
    if reader.take(_KINDS) == _CONSTANT:
        out[:] = _checked(reader.sint())
        reader.finish()
        return out.reshape(shape)
    low = reader.take(_SYMBOLS) - 128
    size = reader.take(_SYMBOLS) + 1
    if low < -_LAST or low + size - 1 > _LAST or size < 2:
        raise CorruptFileError("a range of symbols that no codes have", got=f"{low} to {low + size - 1}")
    chosen = _take_contexts(reader, contexts.view(shape))
    models = [categorical(tables.frequencies(tables.take(reader, low, size))) for _ in range(chosen.number)]
    wide = low <= -DIRECT or low + size > DIRECT
    for stream, (rows, part) in zip(streams, chunks, strict=True):
        reader = reader if stream is streams[0] else Reader(stream)
        _take_chunk(reader, out[part], chosen, rows, models, low, wide)
        reader.finish()
    return out.reshape(shape)


def _take_chunk(
    reader: Reader,
    out: Codes,
    chosen: Contexts,
    rows: tuple[int, int],
    models: list[object],
    low: int,
    wide: bool,
) -> None:
    if chosen.number == 1:
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
        magnitudes = _BASE.take(symbols + 128) + reader.bits(lengths)
        out[behind] = np.where(symbols < 0, -magnitudes, magnitudes)


def _some(reader: Reader, model: object, amount: int) -> Symbols:
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


def _put_contexts(writer: Writer, chosen: Contexts) -> None:
    writer.put(chosen.number - 1, uniform(MOST))
    if chosen.number == 1:
        return
    writer.put(chosen.first, uniform(MOST))
    for axis in chosen.axes:
        if len(axis) > 1:
            counts = np.bincount(axis)
            writer.put(len(counts) - 1, uniform(MOST_PER_AXIS))
            if len(counts) > 1:
                u = tables.roots(counts)
                tables.put(writer, u, 0)
                writer.put(axis.astype(np.int32), categorical(tables.frequencies(u)))


def _take_contexts(reader: Reader, shape: tuple[int, int, int]) -> Contexts:
    number = reader.take(uniform(MOST)) + 1
    if number == 1:
        return Contexts.single(shape)
    first = reader.take(uniform(MOST))
    axes = []
    for length in shape:
        size = reader.take(uniform(MOST_PER_AXIS)) + 1 if length > 1 else 1
        axis = np.zeros(length, np.uint8)
        if size > 1:
            axis[:] = reader.many(categorical(tables.frequencies(tables.take(reader, 0, size))), length)
        axes.append(axis)
    if first + number > MOST:
        raise CorruptFileError("more classes than there can be", got=first + number, wanted=f"at most {MOST}")
    return Contexts((axes[0], axes[1], axes[2]), first, number)


def _checked(code: int) -> int:
    if abs(code) > LARGEST_CODE:
        raise CorruptFileError("a code beyond 16 bits", got=code)
    return code


def _nothing_left(payload: bytes | memoryview) -> None:
    if len(payload):
        raise CorruptFileError("a tensor without elements has bytes", got=len(payload), wanted=0)
