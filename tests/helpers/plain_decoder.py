"""A slow decoder of `.opq.safetensors` files, as short as the format allows.

Written from docs/format.md alone, by someone who had not seen the reader: what the two make of a file can only agree
if the page says enough. It follows the page section by section and is for files that a writer made; of the checks that
the page asks of a reader for hostile files it has a few.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pcodec import standalone

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Plain(NamedTuple):
    """A decoded tensor: its safetensors type, its shape and its elements in row-major order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def check(condition: bool, what: str) -> None:
    """Refuse a file."""
    if not condition:
        raise ValueError(f"corrupt: {what}")


# --- the container ----------------------------------------------------------------------------------------------------

TYPES = [
    ("BOOL", 1), ("U8", 1), ("I8", 1), ("U16", 2), ("I16", 2), ("F16", 2), ("BF16", 2), ("U32", 4), ("I32", 4),
    ("F32", 4), ("U64", 8), ("I64", 8), ("F64", 8), ("C64", 8), ("F8_E4M3", 1), ("F8_E4M3FNUZ", 1), ("F8_E5M2", 1),
    ("F8_E5M2FNUZ", 1), ("F8_E8M0", 1),
]  # fmt: skip


def decode(path: Path) -> dict[str, Plain]:
    """All tensors of a file, or of a folder of shards, in their order."""
    return decode_folder(path) if path.is_dir() else decode_bytes(path.read_bytes())


def decode_folder(folder: Path) -> dict[str, Plain]:
    """The tensors of all shards in the order of the folder's index."""
    places = json.loads((folder / "model.opq.safetensors.index.json").read_text("utf-8"))["weight_map"]
    shards = {name: decode_bytes((folder / name).read_bytes()) for name in set(places.values())}
    check(sum(map(len, shards.values())) == len(places), "tensors that the folder's index does not name")
    return {name: shards[shard][name] for name, shard in places.items()}


def decode_bytes(file: bytes) -> dict[str, Plain]:
    """The tensors of one file."""
    entries = container(file)
    common = entries["opq"]
    check(zlib.crc32(common[4:]) == little(common[:4]), "checksum of the common entry")
    end = 8 + little(common[4:8])
    rows = read_index(common[8:end])
    plain: dict[str, Plain] = {}
    for row, payload in zip(rows, payloads(rows, common[end:], entries), strict=True):
        if row.kind != "share":
            plain[row.name] = Plain(row.dtype, row.shape, elements(row, payload))
    return {row.name: plain[rows[row.shared].name if row.kind == "share" else row.name] for row in rows}


def container(file: bytes) -> dict[str, bytes]:
    """The bytes of each entry."""
    start = 8 + little(file[:8])
    header = json.loads(file[8:start])
    check(header.pop("__metadata__")["opq"] == "1", "version")
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: file[start + begin : start + end] for name, (begin, end) in spans.items()}


def payloads(rows: list[Row], rest: bytes, entries: dict[str, bytes]) -> Iterator[bytes]:
    """The payload of each row, from its own entry or the common one."""
    for row in rows:
        if row.checksum is None:
            yield rest[: row.length]
            rest = rest[row.length :]
        else:
            check(zlib.crc32(entries[row.name]) == row.checksum, f"checksum of {row.name}")
            yield entries[row.name]
    check(not rest, "bytes left in the common entry")


def little(data: bytes) -> int:
    """An unsigned integer."""
    return int.from_bytes(data, "little")


# --- the stack --------------------------------------------------------------------------------------------------------

TOTAL = 2**24


class Stack:
    """A string of bytes from which symbols are taken."""

    def __init__(self, data: bytes) -> None:
        check(not data.endswith(b"\0"), "a stack that ends in a zero byte")
        self.words = [little(data[i : i + 4]) for i in range(0, len(data), 4)]
        self.x = 0
        for _ in self.words[-2:]:
            self.refill()

    def refill(self) -> None:
        """Take one word into the state."""
        self.x = self.x * 2**32 + self.words.pop()

    def take(self, starts: Sequence[int]) -> int:
        """A symbol, by the sums of the frequencies before each symbol, the sum of all at the end."""
        symbol = bisect_right(starts, self.x % TOTAL) - 1
        self.remove(starts[symbol], starts[symbol + 1] - starts[symbol])
        return symbol

    def remove(self, start: int, frequency: int) -> None:
        """Drop the symbol that was found."""
        self.x = frequency * (self.x >> 24) + self.x % TOTAL - start
        if self.x < 2**32 and self.words:
            self.refill()

    def uniform(self, n: int) -> int:
        """One of `n` symbols that are equally likely."""
        step = TOTAL // n
        symbol = min(self.x % TOTAL // step, n - 1)
        self.remove(symbol * step, TOTAL - symbol * step if symbol == n - 1 else step)
        return symbol

    def bits(self, k: int) -> int:
        """A number of `k` bits."""
        return sum(self.uniform(2 ** min(16, k - low)) << low for low in range(0, k, 16))

    def long(self, length: int) -> int:
        """A number whose length in bits is known."""
        return 2 ** (length - 1) + self.bits(length - 1) if length else 0

    def uint(self) -> int:
        """A number."""
        return self.long(self.uniform(41))

    def sint(self) -> int:
        """A number with a sign."""
        return unfold(self.uint())

    def floats(self, n: int) -> list[float]:
        """Numbers, all of them held in the same way."""
        how = self.uniform(4)
        return [self.float(how) for _ in range(n)]

    def float(self, how: int) -> float:
        """One number."""
        raw = self.bits((16, 24, 32, 64)[how]) << (16, 8, 0, 0)[how]
        value = float(np.frombuffer(raw.to_bytes(8, "little"), "<f8" if how == 3 else "<f4")[0])
        check(math.isfinite(value), "a number that is not finite")
        return value

    def close(self) -> None:
        """Nothing is left after the last symbol."""
        check(self.x == 0 and not self.words, "a stack that is not empty")


def unfold(z: int) -> int:
    """0, -1, 1, -2, ... of 0, 1, 2, 3, ..."""
    return -(z >> 1) - 1 if z % 2 else z >> 1


def shares(weights: Sequence[int]) -> list[int]:
    """Frequencies in proportion to weights."""
    total = sum(weights)
    result = [w * (TOTAL - len(weights)) // total + 1 for w in weights]
    result[weights.index(max(weights))] += TOTAL - sum(result)
    return result


def starts_of(weights: Sequence[int]) -> list[int]:
    """The shares' sums, as `Stack.take` wants them."""
    return list(accumulate(shares(weights), initial=0))


class Adaptive:
    """A model that learns what it has seen."""

    def __init__(self, *weights: int) -> None:
        self.weights = list(weights)

    def symbol(self, stack: Stack) -> int:
        """The next symbol."""
        symbol = stack.take(starts_of(self.weights))
        self.weights[symbol] += 24
        return symbol

    def number(self, stack: Stack) -> int:
        """The next number, of which the length adapts."""
        return stack.long(self.symbol(stack))


FREQUENT, FAIR = b"einortasgblwhmcd", b"ukvpfyxqzj._0123456789\n"


def byte_weight(byte: int) -> int:
    """How likely a byte of a text is at first."""
    if byte in FREQUENT:
        return 24
    return 12 if byte in FAIR else 2 if 32 <= byte <= 126 else 1


class TextModels:
    """The models of one text."""

    def __init__(self) -> None:
        self.kinds = [Adaptive(40, 20, 10, 8, 6, 6), *(Adaptive(24, 16, 30, 8, 6, 6) for _ in range(5))]
        self.bytes = Adaptive(*map(byte_weight, range(256)))
        self.lengths = Adaptive(8, 14, 24, 40, 60, 40, 8, 2, *[1] * 17)
        self.distances = Adaptive(1, 1, 2, 4, 10, 20, 30, 30, 20, 20, 16, 10, 8, 6, 4, 2, 2, *[1] * 8)


def take_text(stack: Stack) -> str:
    """A text: bytes, and copies of what came before."""
    size, models, data = stack.uint(), TextModels(), bytearray()
    kind, last = 0, [0, 0, 0, 0]
    while len(data) < size:
        kind = models.kinds[kind].symbol(stack)
        if kind == 0:
            data.append(models.bytes.symbol(stack))
            continue
        n = models.lengths.number(stack)
        d = models.distances.number(stack) if kind == 1 else last[kind - 2]
        check(1 <= d <= len(data) and 1 <= n <= size - len(data), "a copy from outside of the text")
        for _ in range(n):
            data.append(data[-d])
        last = [d, *(other for other in last if other != d)][:4]
    return data.decode("utf-8")


# --- the index --------------------------------------------------------------------------------------------------------

KINDS = ["grid", "table", "product", "fine", "log", "raw", "share", "scalar", "trellis", "grid-rows", "trellis-rows",
         "trellis-turned", "grid-turned-rows", "trellis-turned-rows", "grid-columns", "trellis-columns"]  # fmt: skip
QUANTIZED = (*KINDS[:3], *KINDS[8:])
DEFAULTS = {"step": 0.0, "rounding": 0.5, "threshold": 0.0, "sensitivity": 1.0, "rate": 0.0, "density": 1.0,
            "distortion": 0.0}  # fmt: skip


@dataclass
class Row:
    """What the index says about one tensor."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    shared: int = 0
    integer: int = 0
    octave: int = 0
    length: int = 0
    checksum: int | None = None
    step: float = 0.0


def read_index(data: bytes) -> list[Row]:
    """The rows of all tensors."""
    stack = Stack(data)
    count = stack.uint()
    names = take_text(stack).split("\n")[1 : 1 + count]
    skip_budget(stack)
    rows = read_rows(stack, [unescape(name) for name in names])
    fine = [row for row in rows if row.kind == "fine"]
    fine_steps = stack.floats(len(fine))
    read_columns(stack, rows)
    stack.close()
    for row, step in zip(fine, fine_steps, strict=True):
        row.step = step
    return rows


def unescape(line: str) -> str:
    """A line of the text of names as it was."""
    return re.sub(r"\\([\\n])", lambda found: "\n" if found[1] == "n" else "\\", line)


def skip_budget(stack: Stack) -> None:
    """Budget, multiplier, residual and predicted bytes: for reports."""
    if stack.uniform(4) != 3:
        stack.floats(1)
    stack.floats(1)
    stack.floats(1)
    stack.uint()


class RowModels:
    """The models of all rows."""

    def __init__(self) -> None:
        self.kinds = [Adaptive(*[8] * 16) for _ in range(16)]
        self.types, self.ranks = Adaptive(*[4] * 32), Adaptive(*[4] * 33)
        self.same, self.own = Adaptive(1, 1), Adaptive(2, 1)
        self.wide, self.small = Adaptive(*[4] * 41), Adaptive(*[4] * 25)


def read_rows(stack: Stack, names: list[str]) -> list[Row]:
    """Kinds, types, shapes and payloads of all tensors."""
    models, rows = RowModels(), list[Row]()
    kind, shape = 0, tuple[int, ...]()
    for name in names:
        kind = models.kinds[kind].symbol(stack)
        dtype = TYPES[models.types.symbol(stack)][0]
        models.small.number(stack)  # the reason
        if not models.same.symbol(stack):
            shape = tuple(models.wide.number(stack) for _ in range(models.ranks.symbol(stack)))
        rows.append(Row(name, KINDS[kind], dtype, shape))
        read_details(stack, models, rows[-1])
    return rows


def read_details(stack: Stack, models: RowModels, row: Row) -> None:
    """What a row says by its kind."""
    if row.kind == "share":
        row.shared = models.small.number(stack)
    elif row.kind == "scalar":
        row.integer = stack.sint()
    else:
        row.octave = models.small.number(stack) if row.kind == "log" else 0
        row.length = models.wide.number(stack)
        row.checksum = stack.bits(32) if models.own.symbol(stack) else None


def read_columns(stack: Stack, rows: list[Row]) -> None:
    """The seven columns, of which only the step is kept."""
    for column in DEFAULTS:
        how = stack.uniform(4)
        check(how != 3, "a column")
        if how == 2:
            continue
        everyone = stack.uniform(2)
        of = [row for row in rows if everyone or row.kind in QUANTIZED]
        values = stack.floats(len(of)) if how == 0 else [DEFAULTS["rounding"] * DEFAULTS["step"]] * len(of)
        if column == "step":
            for row, value in zip(of, values, strict=True):
                row.step = value


# --- payloads ---------------------------------------------------------------------------------------------------------


def elements(row: Row, payload: bytes) -> bytes:
    """The elements of a tensor from its payload."""
    if row.kind == "raw":
        return payload
    if row.kind == "scalar":
        return row.integer.to_bytes(dict(TYPES)[row.dtype], "little", signed=row.dtype != "U8")
    with np.errstate(over="ignore"):
        return rounded(weights(row, payload).reshape(-1), row.dtype)


def weights(row: Row, payload: bytes) -> Floats:
    """The weights before they are rounded to their type."""
    if row.kind in ("table", "product"):
        return looked_up(row, payload)
    if "-turned" in row.kind or row.kind in ("grid-columns", "trellis-columns"):
        return turned(row, payload)
    if row.kind in ("grid-rows", "trellis-rows"):
        return by_row(row, payload)
    codes = read_codes(payload, row.shape)
    if row.kind == "log":
        return np.exp2(codes / np.float64(row.octave))
    return row.step * (trellis(codes) if row.kind == "trellis" else codes).astype(np.float64)


def turned(row: Row, payload: bytes) -> Floats:
    """The weights of a tensor of which a matrix is stored, whose columns are some axes in its middle."""
    first, number = payload[0], payload[1]
    check(number >= 1 and first + number <= len(row.shape), "axes of the inputs")
    parts = row.shape[:first], row.shape[first : first + number], row.shape[first + number :]
    before, inputs, behind = map(math.prod, parts)
    of_columns, rest = factors(payload[2:], inputs) if "-columns" in row.kind else (np.ones(inputs), payload[2:])
    kind = row.kind.replace("-turned", "").replace("-columns", "-rows")
    matrix = weights(replace(row, kind=kind, shape=(before * behind, inputs)), rest)
    return (matrix.reshape(before, behind, inputs) * of_columns).transpose(0, 2, 1)


def factors(payload: bytes, count: int) -> tuple[Floats, bytes]:
    """The factors of so many rows or columns, which stand before the codes as exponents; the bytes behind these."""
    end = 4 + little(payload[:4])
    check(4 <= end <= len(payload), "exponents that are cut off")
    e = read_codes(payload[4:end], (count,))
    check(bool((abs(e) <= 400).all()), "an exponent")
    quarters = np.array([1, 1.189207115002721, 1.4142135623730951, 1.681792830507429])
    return quarters[e % 4] * 2.0 ** (e // 4), payload[end:]


def by_row(row: Row, payload: bytes) -> Floats:
    """The weights of a tensor whose rows have a step each."""
    of_rows, rest = factors(payload, row.shape[0])
    steps = (row.step * of_rows).astype(np.float32).astype(np.float64)
    codes = read_codes(rest, row.shape)
    if row.kind == "trellis-rows":
        codes = trellis(codes)
    return (codes.reshape(len(steps), math.prod(row.shape[1:])) * steps[:, None]).reshape(-1)


def looked_up(row: Row, payload: bytes) -> Floats:
    """The vectors of a codebook, in the order of the codes."""
    width, entries, d = payload[0], little(payload[1:3]), little(payload[3:5])
    end = 5 + width * entries * d
    book = np.frombuffer(payload[5:end], f"<f{width}").astype(np.float64).reshape(entries, d)
    size = math.prod(row.shape)
    codes = read_codes(payload[end:], row.shape if row.kind == "table" else (-(-size // d),))
    return book[codes.reshape(-1)].reshape(-1)[:size]


def trellis(codes: Ints) -> Ints:
    """The numbers `n` of the codes `k`: a bit beneath each, by the path that leads to it."""
    if codes.size == 0:
        return codes
    k = codes.reshape(codes.shape[0] if codes.ndim else 1, -1)
    parts = [k[top : top + 128] for top in range(0, len(k), 128)]
    return np.concatenate([2 * part + path(part) for part in parts])


def path(k: Ints) -> Ints:
    """The bits `b` of the paths down all columns; six rows of zeros come before the first."""
    b, k = np.zeros((len(k) + 6, k.shape[1]), np.int64), np.pad(k, ((6, 0), (0, 0)))
    for t in range(6, len(k)):
        b[t] = (b[t - 1] + b[t - 6] + k[t - 2] + k[t - 4]) % 2
    return b[6:]


# --- codes ------------------------------------------------------------------------------------------------------------

SMALL, CHUNK = 2**19, 2**22


@dataclass
class Model:
    """What all codes of a tensor share."""

    kind: int
    constant: int = 0  # the code of all, or the offset
    low: int = -111
    tables: Sequence[Sequence[int]] = ()
    wide: int = 0  # pages of 16 bits
    classes: Classes | None = None


@dataclass
class Classes:
    """The number of classes, the first one, and the class of each row and of each pair of column and kernel."""

    number: int
    first: int
    rows: Ints
    pairs: Ints


def three_axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows, columns and kernel."""
    while shape[:1] == (1,):
        shape = shape[1:]
    rows, columns = (*shape, 1, 1)[:2]
    return rows, columns, math.prod(shape[2:])


def read_codes(data: bytes, shape: tuple[int, ...]) -> Ints:
    """All codes of a tensor."""
    if math.prod(shape) == 0:
        check(not data, "bytes of no codes")
        return np.zeros(shape, np.int64)
    rows, columns, kernel = three_axes(shape)
    small = math.prod(shape) < SMALL
    codes = (small_codes if small else large_codes)(data, rows, columns, kernel)
    return codes.reshape(shape)


def small_codes(data: bytes, rows: int, columns: int, kernel: int) -> Ints:
    """The codes of a tensor that is one stack."""
    stack = Stack(data)
    model = read_model(stack, rows, columns, kernel)
    codes = stacked(stack, model, 0, rows, columns * kernel)
    stack.close()
    return codes


def large_codes(data: bytes, rows: int, columns: int, kernel: int) -> Ints:
    """The codes of a tensor in chunks of rows."""
    height = max(1, CHUNK // (columns * kernel))
    tops = range(0, rows, height)
    first, *parts = split_parts(data, len(tops))
    stack = Stack(first)
    model = read_model(stack, rows, columns, kernel)
    stack.close()
    each = [chunk(part, model, top, min(height, rows - top), columns * kernel)
            for top, part in zip(tops, parts, strict=True)]  # fmt: skip
    return np.concatenate(each)


def split_parts(data: bytes, chunks: int) -> list[bytes]:
    """The model's part and those of the chunks."""
    ends = list(accumulate((little(data[4 * i : 4 * i + 4]) for i in range(chunks)), initial=4 * chunks))
    return [data[begin:end] for begin, end in zip(ends, [*ends[1:], len(data)], strict=True)]


def chunk(data: bytes, model: Model, top: int, rows: int, width: int) -> Ints:
    """The codes of one chunk."""
    if model.kind == 3:
        return paged(data, model, top, rows, width)
    stack = Stack(data)
    codes = stacked(stack, model, top, rows, width)
    stack.close()
    return codes


def paged(data: bytes, model: Model, top: int, rows: int, width: int) -> Ints:
    """The codes of a chunk of pages."""
    codes = np.zeros(rows * width, np.int64)
    for order in orders(model.classes, top, rows, width):
        if len(order):
            end = 4 + little(data[:4])
            page = standalone.simple_decompress(data[4:end])
            check(page.dtype == (np.int16 if model.wide else np.int8) and len(page) == len(order), "a page")
            codes[order] = page
            data = data[end:]
    check(not data, "bytes behind the pages")
    return codes


def stacked(stack: Stack, model: Model, top: int, rows: int, width: int) -> Ints:
    """The codes of some rows: all their symbols, then the lower bits."""
    if model.kind == 0:
        return np.full(rows * width, model.constant, np.int64)
    symbols = np.zeros(rows * width, np.int64)
    for table, order in zip(model.tables, orders(model.classes, top, rows, width), strict=True):
        symbols[order] = [model.low + stack.take(table) for _ in order]
    codes = symbols.copy()
    for at in np.flatnonzero(abs(symbols) >= 32):
        codes[at] = with_bits(stack, int(symbols[at]))
    return codes + model.constant


def with_bits(stack: Stack, symbol: int) -> int:
    """A large code: its symbol says how many bits follow."""
    magnitude = smallest(abs(symbol)) + stack.uniform(4 * 2 ** ((abs(symbol) - 32) // 8))
    return magnitude if symbol > 0 else -magnitude


def smallest(t: int) -> int:
    """The smallest magnitude of a symbol."""
    return t if t < 32 else (8 + (t - 32) % 8) * 2 ** (2 + (t - 32) // 8)


# --- models of codes --------------------------------------------------------------------------------------------------


def read_model(stack: Stack, rows: int, columns: int, kernel: int) -> Model:
    """The model in front of the symbols."""
    kind = stack.uniform(4)
    if kind == 0:
        return Model(kind, constant=stack.sint())
    if kind == 2:
        return Model(kind, constant=stack.sint(), tables=[geometric(stack.uniform(28))])
    if kind == 3:
        return Model(kind, wide=stack.uniform(2), classes=read_classes(stack, rows, columns, kernel))
    low, number = stack.uniform(256) - 128, stack.uniform(256) + 1
    classes = read_classes(stack, rows, columns, kernel)
    tables = [read_table(stack, low, number) for _ in range(classes.number if classes else 1)]
    return Model(kind, low=low, tables=tables, classes=classes)


def geometric(k: int) -> list[int]:
    """The table of a geometric distribution of scale `k`."""
    rho = 2**36 - ((5 if k % 2 else 7) * 2 ** (36 - k // 2)) // 10
    powers = [power(rho, smallest(t)) for t in range(113)]
    half = [powers[t] - powers[t + 1] for t in range(112)]
    return starts_of([*half[:0:-1], *half])


def power(rho: int, e: int) -> int:
    """`rho` to the power of `e`, in units of 2^-36."""
    result = 2**36
    while e > 0:
        if e % 2:
            result = result * rho >> 36
        rho, e = rho * rho >> 36, e >> 1
    return result


def read_classes(stack: Stack, rows: int, columns: int, kernel: int) -> Classes | None:
    """The classes of rows, columns and kernel positions."""
    number = stack.uniform(47)
    if number == 0:
        return None
    first = stack.uniform(47)
    r, c, d = [read_axis(stack, length) for length in (rows, columns, kernel)]
    return Classes(number, first, r, (c[:, None] + d[None, :]).reshape(-1))


def read_axis(stack: Stack, length: int) -> Ints:
    """The class of each index of an axis."""
    n = stack.uniform(16) + 1 if length > 1 else 1
    if n == 1:
        return np.zeros(length, np.int64)
    chained = stack.uniform(2)
    tables = [read_table(stack, 0, n) for _ in range(n if chained else 1)]
    classes = np.zeros(length, np.int64)
    for i in range(length):
        before = int(classes[i - 1]) if chained and i else 0
        classes[i] = stack.take(tables[before])
    return classes


def orders(classes: Classes | None, top: int, rows: int, width: int) -> list[Ints]:
    """For each class the places of its weights in some rows, counted row-major from the first of these rows."""
    if classes is None:
        return [np.arange(rows * width)]
    r = classes.rows[top : top + rows]
    result: list[list[Ints]] = [[] for _ in range(classes.number)]
    for p in np.unique(r):
        for q in np.unique(classes.pairs):
            places = np.flatnonzero(r == p)[:, None] * width + np.flatnonzero(classes.pairs == q)[None, :]
            last = classes.first + classes.number - 1
            result[min(max(int(p + q), classes.first), last) - classes.first].append(places.reshape(-1))
    return [np.concatenate([np.zeros(0, np.int64), *places]) for places in result]


# --- frequency tables -------------------------------------------------------------------------------------------------

W = [
    [140, 26, 7, 4, 4, 4, 5, 4, 2],
    [60, 96, 30, 10, 4],
    [60, 54, 54, 22, 8, 2],
    [46, 48, 58, 34, 12, 2],
    [32, 28, 48, 36, 36, 20, 2],
    [24, 14, 30, 24, 26, 24, 60, 2],
    [6, 8, 20, 30, 30, 20, 40, 70, 2],
    [4, 4, 10, 20, 20, 20, 24, 40, 90, 2],
    [2, 2, 2, 4, 8, 8, 24, 24, 50, 90, 2],
    [2, 2, 2, 4, 8, 8, 8, 8, 30, 60, 60, 30, 20, 10, 4, 2, 2],
]
"""Weights of the lengths of a table's numbers; the rest of the 19 are 1."""


@lru_cache
def lengths_model(row: int) -> list[int]:
    """The model of the length of a number, by that of its prediction."""
    return starts_of([*W[row], *[1] * (19 - len(W[row]))])


def read_table(stack: Stack, low: int, n: int) -> list[int]:
    """The frequencies of the symbols from `low` on, as `Stack.take` wants them."""
    known: dict[int, int] = {}
    for s in sorted(range(low, low + n), key=lambda s: (abs(s), -s)):
        known[s] = take_near(stack, prediction(known, s))
    return starts_of([known[s] ** 2 for s in range(low, low + n)])


def prediction(known: dict[int, int], s: int) -> int:
    """What a symbol's number should be about."""
    if s < 0 and -s in known:
        return known[-s]
    near, far = mean(known, abs(s) - 1), mean(known, abs(s) - 2)
    return near**2 // far if far > near else near


def mean(known: dict[int, int], magnitude: int) -> int:
    """The mean number of a magnitude, of the signs that are known."""
    signs = {magnitude, -magnitude} if magnitude >= 0 else ()
    both = [known[s] for s in signs if s in known]
    return (sum(both) + len(both) - 1) // len(both) if both else 0


def take_near(stack: Stack, p: int) -> int:
    """A number by its distance from a prediction."""
    v = stack.long(stack.take(lengths_model(min(p.bit_length(), 9))))
    return p + unfold(v) if v < 2 * p else v


# --- from codes to weights --------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[int, int, int, float]] = {
    "F16": (16, 10, 15, 65504.0),
    "BF16": (16, 7, 127, (2 - 2.0**-7) * 2.0**127),
    "F8_E4M3": (8, 3, 7, 448.0),
    "F8_E4M3FNUZ": (8, 3, 8, 240.0),
    "F8_E5M2": (8, 2, 15, 57344.0),
    "F8_E5M2FNUZ": (8, 2, 16, 57344.0),
}
"""Bits, bits of the mantissa, bias and largest number."""
LARGEST = {"F32": float(np.finfo(np.float32).max), "F64": float(np.finfo(np.float64).max)}


def rounded(values: Floats, dtype: str) -> bytes:
    """The elements of a type that are nearest to values."""
    largest = FORMS[dtype][3] if dtype in FORMS else LARGEST[dtype]
    values = np.clip(values, -largest, largest)
    if dtype == "F64":
        return values.astype("<f8").tobytes()
    single = values.astype("<f4")
    return single.tobytes() if dtype == "F32" else narrowed(single.astype(np.float64), dtype)


def narrowed(values: Floats, dtype: str) -> bytes:
    """Bit patterns of 8 or 16 bits: the units of the last place are counted, ties to even."""
    bits, m, bias, _ = FORMS[dtype]
    exponents = np.maximum(np.frexp(values)[1].astype(np.int64) - 1, 1 - bias)
    exponents[values == 0] = 1 - bias
    units = np.rint(np.abs(values) * 2.0 ** (m - exponents)).astype(np.int64)
    patterns = ((exponents + bias - 1) << m) + units
    negative = np.signbit(values) & ((patterns > 0) | (not dtype.endswith("FNUZ")))
    return (patterns | negative.astype(np.int64) << (bits - 1)).astype(f"<u{bits // 8}").tobytes()


def described(tensor: Plain) -> str:
    """A tensor as the golden files' list has it."""
    return f"{tensor.dtype} {list(tensor.shape)} {sha256(tensor.data).hexdigest()[:32]}"
