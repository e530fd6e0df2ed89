"""Integer codes <-> bytes, near their entropy (constriction's asymmetric numeral system)."""

from __future__ import annotations

import math

import constriction
import numpy as np
import numpy.typing as npt

from opq.errors import CorruptFileError

Codes = npt.NDArray[np.int16]
PRECISION = 24
TOTAL = 1 << PRECISION
CHUNK = 1 << 20


def encode(codes: npt.NDArray[np.integer]) -> bytes:
    """The codes as bytes; their shape is not stored."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    if not flat.size:
        return b""
    low = int(flat.min())
    symbols = np.subtract(flat, low, dtype=np.int32)
    counts = np.bincount(symbols)
    head = _varint(_zigzag(low)) + _varint(len(counts) - 1)
    if len(counts) == 1:
        return head
    frequencies = _scale(counts)
    head += b"".join(_varint(int(f)) for f in frequencies)
    model = _model(frequencies)
    streams = []
    for start in range(0, len(symbols), CHUNK):
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols[start : start + CHUNK], model)
        streams.append(coder.get_compressed().astype("<u4").tobytes())
    head += b"".join(_varint(len(s) // 4) for s in streams)
    return head + b"".join(streams)


def decode(payload: bytes, shape: tuple[int, ...]) -> Codes:
    """The inverse of `encode`: int16 codes of `shape`."""
    size = math.prod(shape)
    if not size:
        return np.zeros(shape, np.int16)
    position, low = _read_varint(payload, 0)
    low = (low >> 1) ^ -(low & 1)
    position, span = _read_varint(payload, position)
    if not span:
        return np.full(shape, low, np.int16)
    frequencies = np.empty(span + 1, np.int64)
    for k in range(span + 1):
        position, frequencies[k] = _read_varint(payload, position)
    lengths = []
    for _ in range(0, size, CHUNK):
        position, length = _read_varint(payload, position)
        lengths.append(length)
    model = _model(frequencies)
    out = np.empty(size, np.int16)
    for start, length in zip(range(0, size, CHUNK), lengths, strict=True):
        words = np.frombuffer(payload, "<u4", length, position)
        position += 4 * length
        coder = constriction.stream.stack.AnsCoder(words.astype(np.uint32))
        part = coder.decode(model, min(CHUNK, size - start))
        out[start : start + CHUNK] = part + low
    return out.reshape(shape)


def coded_size(codes: npt.NDArray[np.integer]) -> int:
    """Bytes that `encode` gives, from the counts alone."""
    flat = np.ascontiguousarray(codes).reshape(-1)
    if not flat.size:
        return 0
    counts = np.bincount(np.subtract(flat, int(flat.min()), dtype=np.int64))
    if len(counts) == 1:
        return 2
    frequencies = _scale(counts)
    bits = float(counts @ (PRECISION - np.log2(frequencies)))
    table = sum(len(_varint(int(f))) for f in frequencies)
    return math.ceil(bits / 8) + table + 8 + 5 * math.ceil(flat.size / CHUNK)


def _model(frequencies: npt.NDArray[np.int64]) -> object:
    """Exact on integer frequencies: `free_weight` equals the sum, so constriction's scale is 1."""
    return constriction.stream.model.Categorical((frequencies - 1).astype(np.float32), perfect=False)


def _scale(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    total = int(counts.sum())
    frequencies = np.maximum(1, counts.astype(np.int64) * (TOTAL - len(counts)) // total)
    frequencies[int(frequencies.argmax())] += TOTAL - int(frequencies.sum())
    return frequencies


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise CorruptFileError("a coded tensor ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return position, value
