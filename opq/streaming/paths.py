"""Codes on a trellis of a tensor that is read in pieces: what each code costs, and the search, some whole runs at once.

Paths run down the columns and start anew every `RUN` rows, so that the pieces of a tensor are independent once the
costs are known, which are counted over the whole tensor. Codes are those that `opq.quantizing.grid.quantize` gives.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
import torch

from opq.base.arrays import Floats32, Ints, Narrow, Reals
from opq.base.format_v1 import RUN
from opq.errors import WriteError
from opq.plan import TensorPlan
from opq.quantizing import trellis
from opq.streaming.clock import Clock

PIECE = 1 << 20
"""Weights searched at once. A choice that trades memory, about 20 bytes for each, for the overhead of each read."""

Read = Callable[[int, int], torch.Tensor]
"""Elements from `start` to `stop` of a tensor, flat."""

S = TypeVar("S")
T = TypeVar("T")


class Map(Protocol):
    """`map`, or a parallel version of it, with results in the order of the items."""

    def __call__(self, work: Callable[[S], T], items: Iterable[S], /) -> Iterator[T]: ...


class Held(Protocol):
    """The codes of a tensor, flat, in memory or on disk."""

    def __getitem__(self, part: slice, /) -> Narrow: ...


def prices(plan: TensorPlan, read: Read, clock: Clock, run: Map = map) -> Reals:
    """What each `k` costs: `trellis.costs` of the whole tensor."""

    def counts(start: int) -> Ints:
        with clock("read"):
            weights = read(start, min(start + PIECE, plan.size))
        with clock("search"):
            return trellis.counted(_scaled(weights, plan))

    return trellis.prices(run(counts, range(0, plan.size, PIECE)))


def on_paths(weights: torch.Tensor, plan: TensorPlan) -> Narrow:
    """The codes `k` of some rows, (rows, width), as if they were the whole tensor."""
    bits = trellis.prices(trellis.counted(_scaled(weights[piece], plan)) for piece in _pieces(*weights.shape))
    out = _room(weights.shape, bits)
    for down, across in _pieces(*weights.shape):
        out[down, across] = _best(weights[down, across], plan, bits)
    return out


@contextlib.contextmanager
def searched(
    plan: TensorPlan, read: Read, clock: Clock, run: Map = map, *, spool: Path | None = None
) -> Iterator[Held]:
    """The codes `k` of a tensor, for the block.

    Args:
        plan: the tensor's plan, on a trellis.
        read: reads its weights.
        run: `map`, or a parallel version of it.
        spool: the folder of an unnamed file that holds the codes; otherwise they are in memory.
    """
    rows, bits = plan.shape[0], prices(plan, read, clock, run)
    width = plan.size // rows

    def one(piece: tuple[slice, slice]) -> tuple[tuple[slice, slice], Narrow]:
        with clock("read"):
            weights = block(read, width, *piece)
        with clock("search"):
            return piece, _best(weights, plan, bits)

    found = run(one, _pieces(rows, width))
    if spool is None:
        codes = _room((rows, width), bits)
        for piece, some in found:
            codes[piece] = some
        yield codes.reshape(-1)
        return
    with tempfile.TemporaryFile(dir=spool) as file:
        held = _Spool(file, width, _type(bits))
        for piece, some in found:
            with clock("write"):
                held.put(*piece, some)
        yield held


class _Spool:
    """Codes in a file."""

    def __init__(self, file: BinaryIO, width: int, kind: type[np.int8] | type[np.int16]):
        self._file, self._width, self._kind, self._turn = file, width, kind, threading.Lock()
        self._each = np.dtype(kind).itemsize

    def put(self, down: slice, across: slice, codes: Narrow) -> None:
        """Writes a piece."""
        whole = across.stop - across.start == self._width
        with self._turn:
            for row, some in [(down.start, codes)] if whole else zip(range(down.start, down.stop), codes, strict=True):
                self._file.seek((row * self._width + across.start) * self._each)
                self._file.write(np.ascontiguousarray(some, self._kind).data)

    def __getitem__(self, part: slice) -> Narrow:
        amount = (part.stop - part.start) * self._each
        with self._turn:
            self._file.seek(part.start * self._each)
            data = self._file.read(amount)
        if len(data) != amount:
            raise WriteError("codes on disk are gone", got=f"{len(data)} bytes", wanted=amount)
        return np.frombuffer(data, np.int8) if self._kind is np.int8 else np.frombuffer(data, np.int16)


def slabs(rows: int, each: int) -> list[tuple[int, int]]:
    """Rows that are searched together: whole runs, about `each` rows, the last run together with the one before it.

    A run that is cut short by the end of the tensor ends in rows of zeros if there are others, and only then.
    """
    starts = list(range(0, max(rows - RUN, 1), RUN * max(1, each // RUN)))
    return list(zip(starts, [*starts[1:], rows], strict=True))


def _pieces(rows: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Slabs of all columns, or of some of them if there are too many, of about `PIECE` weights each."""
    across = min(width, PIECE // RUN)
    for start, stop in slabs(rows, PIECE // across):
        for column in range(0, width, across):
            yield slice(start, stop), slice(column, min(column + across, width))


def block(read: Read, width: int, down: slice, across: slice) -> torch.Tensor:
    """The weights of a piece, (rows, columns)."""
    if across.stop - across.start == width:
        return read(down.start * width, down.stop * width).view(-1, width)
    rows = range(down.start, down.stop)
    return torch.stack([read(row * width + across.start, row * width + across.stop) for row in rows])


def _scaled(weights: torch.Tensor, plan: TensorPlan) -> Floats32:
    """Weights in units of the step."""
    floats: Floats32 = weights.to(torch.float32).numpy()
    return floats / np.float32(plan.step)


def _best(weights: torch.Tensor, plan: TensorPlan, bits: Reals) -> Narrow:
    return trellis.paths(trellis.nearest(_scaled(weights, plan), bits, price=trellis.price(plan.rate)))


def _room(shape: tuple[int, ...], bits: Reals) -> Narrow:
    """An array for codes."""
    return np.empty(shape, np.int8) if _type(bits) is np.int8 else np.empty(shape, np.int16)


def _type(bits: Reals) -> type[np.int8] | type[np.int16]:
    """The type that holds all codes of numbers with such costs: `|k| <= |x| / 2 + 1.5`, `|x| < len(bits) / 2 - 1`."""
    return np.int8 if len(bits) // 2 <= 250 else np.int16
