"""The model by which the codes of one tensor are coded: its header, and the codes of one chunk to bytes and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from opq.base.arrays import Codes, Ints
from opq.base.format_v1 import CODING_KINDS, LARGEST_CODE, NARROW, SCALES, CodingKind
from opq.coding import class_tables, pages, tables
from opq.coding.classes import Contexts
from opq.coding.stack import Model, StackReader, StackWriter, categorical, uniform
from opq.coding.symbols import BASE, BEHIND, DIRECT, EDGES, LAST, SYMBOL, any_behind
from opq.errors import CorruptFileError

Shape = tuple[int, int, int]
"""Rows, columns, positions of a kernel, as `classes.view` gives them."""
Rows = tuple[int, int]
"""The first row of a chunk, and the first row after it."""

_KINDS = uniform(len(CODING_KINDS))
_SYMBOLS = uniform(256)
_SCALES = uniform(SCALES)
_WIDTHS = uniform(2)


@dataclasses.dataclass(frozen=True, eq=False)
class Coding:
    """The model of one tensor's codes."""

    kind: CodingKind
    low: int = 0
    """The smallest symbol."""
    alphabet: int = 0
    """The number of symbols from the smallest to the largest."""
    contexts: Contexts | None = None
    """The classes, where there are several."""
    roots: tuple[Ints, ...] = ()
    """Kind `tables`: the roots of each class's frequencies."""
    offset: int = 0
    """Kinds `geometric` and `constant`: what is added to every code."""
    scale: int = 0
    """Kind `geometric`: the number of the distribution."""

    @classmethod
    def take(cls, reader: StackReader, shape: Shape) -> Coding:
        """Reads what `put` wrote; raises `CorruptFileError` on what no encoder writes."""
        kind = CODING_KINDS[reader.take(_KINDS)]
        if kind == "pages":
            low, alphabet = ((-NARROW + 1, 2 * NARROW - 1), (-LAST, 2 * LAST + 1))[reader.take(_WIDTHS)]
            return cls(kind, low, alphabet, class_tables.take(reader, shape))
        if kind == "tables":
            low, alphabet = reader.take(_SYMBOLS) - 128, reader.take(_SYMBOLS) + 1
            if low < -LAST or low + alphabet - 1 > LAST or alphabet < 2:
                raise CorruptFileError("a range of symbols that no codes have", got=f"{low} to {low + alphabet - 1}")
            chosen = class_tables.take(reader, shape)
            number = 1 if chosen is None else chosen.number
            roots = tuple(tables.take(reader, low, alphabet) for _ in range(number))
            return cls(kind, low, alphabet, chosen, roots)
        offset = checked(reader.sint())
        if kind == "constant":
            return cls(kind, offset=offset)
        return cls(kind, -LAST, 2 * LAST + 1, offset=offset, scale=reader.take(_SCALES))

    def put(self, writer: StackWriter) -> None:
        """Writes the header, which stands before the symbols."""
        writer.put(CODING_KINDS.index(self.kind), _KINDS)
        if self.kind in ("constant", "geometric"):
            writer.sint(self.offset)
        if self.kind == "geometric":
            writer.put(self.scale, _SCALES)
        if self.kind == "pages":
            writer.put(int(self.item is np.int16), _WIDTHS)
            class_tables.put(writer, self.contexts)
        if self.kind == "tables":
            writer.put(self.low + 128, _SYMBOLS)
            writer.put(self.alphabet - 1, _SYMBOLS)
            class_tables.put(writer, self.contexts)
            for u in self.roots:
                tables.put(writer, u, self.low)

    def same(self, other: Coding) -> bool:
        """Whether both have the same header, so that they code the same way."""
        mine, others = StackWriter(), StackWriter()
        self.put(mine)
        other.put(others)
        return mine.finish() == others.finish()

    @property
    def classes(self) -> int:
        """How many classes the weights fall into."""
        return 1 if self.contexts is None else self.contexts.number

    @property
    def item(self) -> type[np.int8] | type[np.int16]:
        """The type in which pages hold the codes."""
        return np.int8 if self.low > -NARROW and self.low + self.alphabet <= NARROW else np.int16

    @functools.cached_property
    def models(self) -> list[Model]:
        """The model of each class, for codes on a stack."""
        if self.kind == "geometric":
            return [categorical(tables.geometric(EDGES)[self.scale])]
        return [categorical(tables.frequencies(u)) for u in self.roots]

    def put_symbols(self, writer: StackWriter, codes: Codes, rows: Rows) -> None:
        """Puts the flat codes of some rows on a stack."""
        index = codes.astype(np.int32) + 2**15 if any_behind(self.low, self.alphabet) else None
        symbols = np.subtract(codes if index is None else SYMBOL.take(index), self.low, dtype=np.int32)
        parts = [symbols] if self.contexts is None else self.contexts.blocks(*rows).split(symbols)
        for of_class, model in zip(parts, self.models, strict=True):
            if len(of_class):
                writer.put(of_class, model)
        if index is not None:
            lengths = BEHIND.take(index)
            behind = np.flatnonzero(lengths)
            if len(behind):
                widths = lengths[behind].astype(np.int32)
                writer.tails(np.abs(codes[behind].astype(np.int32)) & ((1 << widths) - 1), widths)

    def take_symbols(self, reader: StackReader, out: Codes, rows: Rows) -> None:
        """The inverse of `put_symbols`, into the flat `out`; demands that the stack is then empty."""
        if self.contexts is None:
            reader.fill(self.models[0], out)
        else:
            blocks = self.contexts.blocks(*rows)
            amounts = zip(self.models, blocks.amounts(), strict=True)
            blocks.join((_filled(reader, model, amount) for model, amount in amounts), out)
        out += np.int16(self.low)
        if any_behind(self.low, self.alphabet):
            for start in range(0, len(out), _PIECE):
                _take_tails(reader, out[start : start + _PIECE])
        reader.finish()

    def put_chunk(self, codes: Codes, rows: Rows) -> bytes:
        """A chunk of a large tensor."""
        if self.kind == "constant":
            return b""
        if self.kind != "pages":
            writer = StackWriter()
            self.put_symbols(writer, codes, rows)
            return writer.finish()
        narrow: pages.Small = codes.astype(self.item, copy=False)
        parts: Iterable[pages.Small] = [narrow] if self.contexts is None else self.contexts.blocks(*rows).split(narrow)
        coded = [pages.encode(part) for part in parts if len(part)]
        return b"".join(len(page).to_bytes(4, "little") + page for page in coded)

    def take_chunk(self, data: memoryview, out: Codes, rows: Rows) -> None:
        """The inverse of `put_chunk`, into the flat `out`.

        Raises:
            CorruptFileError: these are not the bytes of so many codes.
        """
        if self.kind == "constant":
            if len(data):
                raise CorruptFileError("equal codes have bytes of their own", got=len(data), wanted=0)
            out[:] = self.offset
        elif self.kind == "pages":
            self._take_pages(data, out, rows)
        else:
            self.take_symbols(StackReader(data), out, rows)

    def _take_pages(self, data: memoryview, out: Codes, rows: Rows) -> None:
        left = data

        def page(amount: int) -> pages.Small:
            nonlocal left
            part: pages.Small = np.empty(amount, self.item)
            if amount:
                stop = 4 + int.from_bytes(left[:4], "little")
                if len(left) < stop:
                    raise CorruptFileError("a chunk ends inside a page", got=f"{len(left)} bytes", wanted=stop)
                pages.decode(left[4:stop], part)
                left = left[stop:]
            return part

        if self.contexts is None:
            out[:] = page(len(out))
        else:
            blocks = self.contexts.blocks(*rows)
            blocks.join(map(page, blocks.amounts()), out)
        if len(left):
            raise CorruptFileError("a chunk goes on after its pages", got=f"{len(left)} bytes", wanted=0)
        if self.item is np.int16 and int(out.min()) < -LARGEST_CODE:
            checked(int(out.min()))


_PIECE = 1 << 17
"""Codes coded in one call: with their temporary arrays they fit into a processor's cache. A choice; it changes no
byte."""


def _take_tails(reader: StackReader, out: Codes) -> None:
    """Turns symbols into codes, in place; the bits behind the large symbols are the next on the stack."""
    behind = np.flatnonzero(np.abs(out) >= DIRECT)
    if not len(behind):
        return
    symbols = out[behind]
    lengths = 2 + (np.abs(symbols).astype(np.int32) - DIRECT) // 8
    magnitudes = BASE.take(symbols + 128) + reader.tails(lengths)
    out[behind] = np.where(symbols < 0, -magnitudes, magnitudes)


def _filled(reader: StackReader, model: Model, amount: int) -> Codes:
    found = np.empty(amount, np.int16)
    reader.fill(model, found)
    return found


def checked(code: int) -> int:
    """The code, if 16 bits hold it."""
    if abs(code) > LARGEST_CODE:
        raise CorruptFileError("a code beyond 16 bits", got=code)
    return code
