"""Lazy access to the tensors of a file. Everything that the file says is checked before it is used."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from opq.base.arrays import Codes
from opq.base.dtypes import torch_dtype
from opq.base.format_v1 import COMMON, MOST_ELEMENTS, SMALL
from opq.base.format_v1 import MAX_EXPANSION as MAX_EXPANSION
from opq.base.paths import what_is
from opq.base.pool import torch_threads
from opq.base.tables import printable
from opq.errors import (
    ClosedReaderError,
    CorruptFileError,
    FileTooLargeError,
    MismatchError,
    MissingFileError,
    WrongBaseError,
)
from opq.file import basis, index
from opq.file.base import RELATIVE, BaseName, added, open_base
from opq.file.header import Entry, read_entries
from opq.file.payload import Place
from opq.file.stored import PAYLOADS, Fine, Raw, Share
from opq.plan import Plan, TensorPlan
from opq.quantizing.turned import Turn


class InMemory(Protocol):
    """A packed file that is not on disk."""

    @property
    def parts(self) -> Sequence[bytes]:
        """The bytes of the file, in order."""


class Reader:
    """An open file. Use it as a context manager, or close it.

    Args:
        source: a path, or a packed file in memory.
        max_expansion: how many bytes the dense tensors may take for each byte of the file (64 MiB are always allowed);
            `math.inf` to trust the file.
        base: for a file that `compress(..., base=)` made: the network given there, in any form that `open_source`
            takes, or an opq file. Without it, the plan and the codes of such a file can be read, but not its weights.

    Raises:
        MissingFileError: there is no such file, or it cannot be opened.
        WrongBaseError: `base` is another network, or the file has none.
        ForeignFileError: the file is not an opq file.
        NewerFormatError: it was written in a later version of the format.
        TruncatedFileError: it is shorter than its header says.
        CorruptFileError: its parts contradict each other, or a checksum is wrong.
        FileTooLargeError: the dense tensors take more than `max_expansion` allows.

    Example:
        >>> import opq
        >>> packed = opq.compress("demo:digits", bits=3, probe=False).packed
        >>> with opq.Reader(packed) as reader:
        ...     reader.names[0], reader.codes("0.weight").shape, reader.tensor("0.weight").dtype
        ('0.weight', (32, 1, 3, 3), torch.float32)
    """

    plan: Plan
    base: BaseName | None
    """Of a file of differences: what these are to be added to."""
    note: str
    """What the codes rest on, see `opq.file.basis`; empty for the weights alone."""

    def __init__(
        self, source: str | os.PathLike[str] | InMemory, *, max_expansion: float = MAX_EXPANSION, base: Any = None
    ):
        self._closed = False
        self._data = _opened(source)
        label = os.fspath(source) if isinstance(source, str | os.PathLike) else "the file in memory"
        self._label = printable(label)
        entries, begin, self.base = read_entries(self._data, label)
        self.plan, places, start = _index(self._data, entries, begin)
        self._places = dict(zip(self.plan.names, places, strict=True))
        self._checked: set[str] = set()
        self._spans = self._laid_out(entries, begin, start)
        self._limit(max_expansion)
        self.note = basis.note_of(self._data)
        self.plan = self.plan.replace(basis=basis.sentence(self.note, self.plan.method))
        if self.base is None and base is not None:
            raise WrongBaseError(f"{label} has no base", got="base=", remedy="Leave base= out.")
        self._base = None if self.base is None or base is None else open_base(base)
        if self.base is not None and self._base is not None:
            self._base.check(self.base, label)

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors, in the source's order."""
        return self.plan.names

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor's payload; 0 for shared tensors."""
        return {name: place.length for name, place in self._places.items()}

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return len(self._data)

    @property
    def basis(self) -> str:
        """What the codes rest on, in words: a probe of the model and what came of it, or the weights alone."""
        return self.plan.basis

    def kind(self, name: str) -> str:
        """How a tensor is stored: one of `opq.base.format_v1.KIND_NAMES`."""
        return self._places[self.plan[name].name].kind

    def codes(self, name: str) -> Codes:
        """The integer codes of a tensor that is stored by codes, in its shape (one-dimensional for kind `product`).

        Raises:
            MismatchError: there is no such tensor, or it is not stored by codes.
            CorruptFileError: its bytes are damaged.
        """
        plan = self.plan.holder(name)
        with _naming(name):
            return PAYLOADS[self._places[plan.name].kind].codes_of(self._payload(plan.name), plan)

    def exponents(self, name: str) -> Codes | None:
        """Of a tensor with a step for each row the exponents `e_i` (rows,): row i has the step `Delta 2^(e_i / 4)`.

        Rows are those of its matrix, where it has a `turn`.

        None of others.

        Raises:
            MismatchError: there is no such tensor.
            CorruptFileError: its bytes are damaged.
        """
        plan = self.plan.holder(name)
        if not plan.by_row:
            return None
        with _naming(name):
            return PAYLOADS[self._places[plan.name].kind].exponents_of(self._payload(plan.name), plan)

    def columns(self, name: str) -> Codes | None:
        """Of a tensor with a factor for each column the exponents `f_j` (columns,): column j has `2^(f_j / 4)`.

        Columns are those of its matrix, see `turn`. None of others; errors as of `exponents`.
        """
        plan = self.plan.holder(name)
        if not plan.by_column:
            return None
        with _naming(name):
            return PAYLOADS[self._places[plan.name].kind].columns_of(self._payload(plan.name), plan)

    def turn(self, name: str) -> Turn | None:
        """Of a tensor whose payload says so, how its codes are those of a matrix (outputs, inputs).

        None of others. It does of tensors with factors by column, and of those with a trellis or steps by row whose
        first axis counts no outputs.

        Raises:
            MismatchError: there is no such tensor.
            CorruptFileError: its bytes are damaged.
        """
        plan = self.plan.holder(name)
        if not plan.turned:
            return None
        with _naming(name):
            return PAYLOADS[self._places[plan.name].kind].turn_of(self._payload(plan.name), plan)

    def tensor(self, name: str) -> torch.Tensor:
        """The dense tensor, in the source's dtype.

        Raises:
            WrongBaseError: it is a difference to a base that the reader was not given.
            CorruptFileError: its bytes are damaged.
        """
        plan = self.plan.holder(name)
        place = self._places[plan.name]
        if self.base is None or place.kind not in RELATIVE:
            return self.stored(name)
        self.check_base()
        assert self._base is not None, "looked at by `check_base`"
        if not self._base.fits(plan.name, plan.shape):
            return self.stored(name)
        step = place.number if place.kind == Fine.kind else plan.step
        codes = torch.from_numpy(self.codes(name))
        return added(self._base.read(plan.name), codes, step, torch_dtype(plan.dtype))

    def check_base(self) -> None:
        """Raises `WrongBaseError` where the file has a base and the reader was given none."""
        if self.base is not None and self._base is None:
            raise WrongBaseError(
                "the file holds differences to another network",
                got="no base",
                wanted=f"{self.base.size} bytes of tensors, SHA-256 {self.base.digest}",
                remedy="Pass the network that it was compressed against with base=.",
            )

    def stored(self, name: str) -> torch.Tensor:
        """The tensor as the file holds it: of one with a base, the difference."""
        plan = self.plan.holder(name)
        place = self._places[plan.name]
        with _naming(name):
            return PAYLOADS[place.kind].restore(self._payload(plan.name), plan, place.number)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All tensors, in the source's order; tied names share one."""
        own = [t.name for t in self.plan.own]
        with torch_threads() as threads:
            held = dict(zip(own, threads.ordered(self.tensor, own), strict=True))
        return {t.name: held[t.like or t.name] for t in self.plan}

    def __repr__(self) -> str:
        if self._closed:
            return f"<opq.Reader {self._label}: closed>"
        return f"<opq.Reader {self._label}: {self.bytes:,} bytes, method {self.plan.method!r}, {self.plan.summary}>"

    def close(self) -> None:
        """Closes the file; nothing can be read any more."""
        self._closed = True
        self._data = memoryview(b"")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _payload(self, name: str) -> memoryview:
        start, stop = self._spans[name]
        data = self._data[start:stop]
        if self._closed:  # checked last: another thread may have closed the file meanwhile
            raise ClosedReaderError("the file was closed")
        checksum = self._places[name].checksum
        if checksum is not None and name not in self._checked:
            if zlib.crc32(data) != checksum:
                raise CorruptFileError("wrong checksum", remedy="Fetch the file again.")
            self._checked.add(name)
        return data

    def _laid_out(self, entries: dict[str, Entry], base: int, start: int) -> dict[str, tuple[int, int]]:
        """The range of every payload; raises `CorruptFileError` unless together they fill the file."""
        spans, stop = {}, base + entries[COMMON].stop
        own = {name for name in entries if name != COMMON}
        for tensor in self.plan:
            place = self._places[tensor.name]
            _consistent(tensor, place, self.plan)
            if place.checksum is not None:
                spans[tensor.name] = _own_entry(tensor, place, entries, base)
                own.discard(tensor.name)
            else:
                spans[tensor.name] = (start, start + place.length)
                start += place.length
        if start != stop:
            raise CorruptFileError("the payloads do not fill their entry", got=start, wanted=stop)
        if own:
            raise CorruptFileError("entries that the index does not name", got=", ".join(sorted(own)[:5]))
        return spans

    def _limit(self, max_expansion: float) -> None:
        widest = max((math.prod(max(n, 1) for n in t.shape) for t in self.plan), default=0)
        if widest >= MOST_ELEMENTS:
            raise CorruptFileError("a shape that no tensor has", got=f"{widest} elements")
        dense = sum(t.nbytes for t in self.plan)  # shared tensors too: they take as much once they are copied
        allowed = max(max_expansion * len(self._data), SMALL)
        if dense > allowed:
            raise FileTooLargeError(
                "the file decodes to more than it may", got=f"{dense} bytes", wanted=f"at most {allowed:.0f}"
            )


class _naming:
    """Adds the tensor's name to an error about its bytes, or about a request that it cannot fulfil."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, CorruptFileError | MismatchError):
            fact = f"tensor {self.name!r}: {error.fact}"
            named = type(error)(fact, got=error.got, wanted=error.wanted, remedy=error.remedy)
            raise named from error


def _opened(source: str | os.PathLike[str] | InMemory) -> memoryview:
    if not isinstance(source, str | os.PathLike):
        return memoryview(b"".join(source.parts))
    if (what := what_is(source)) not in ("a file", "nothing"):
        raise MissingFileError(f"cannot open {str(source)!r}", got=what, wanted="a file")
    try:
        if not os.path.getsize(source):
            return memoryview(b"")
        return np.memmap(source, np.uint8, "r").data
    except OSError as error:
        raise MissingFileError(f"cannot open {os.fspath(source)}", got=error.strerror or error) from error


def _index(data: memoryview, entries: dict[str, Entry], base: int) -> tuple[Plan, list[Place], int]:
    """The plan, the place of each tensor, and where the payloads in the common entry begin."""
    common = data[base + entries[COMMON].start : base + entries[COMMON].stop]
    if entries[COMMON].dtype != "U8" or len(common) < 8:
        raise CorruptFileError("the index is too short", got=f"{len(common)} bytes", wanted="at least 8")
    checksum, length = int.from_bytes(common[:4], "little"), int.from_bytes(common[4:8], "little")
    if zlib.crc32(common[4:]) != checksum:
        raise CorruptFileError("the index has a wrong checksum", remedy="Fetch the file again.")
    if length > len(common) - 8:
        raise CorruptFileError("the index is longer than its entry", got=length, wanted=f"at most {len(common) - 8}")
    plan, places = index.decode(common[8 : 8 + length])
    return plan, places, base + entries[COMMON].start + 8 + length


def _own_entry(tensor: TensorPlan, place: Place, entries: dict[str, Entry], base: int) -> tuple[int, int]:
    entry = entries.get(tensor.name)
    raw = place.kind == Raw.kind
    wanted = (tensor.dtype, tensor.shape) if raw else ("U8", (place.length,))
    if entry is None or (entry.dtype, entry.shape) != wanted or tensor.name == COMMON:
        raise CorruptFileError(f"tensor {tensor.name!r}: no entry like the index says", wanted=wanted)
    return base + entry.start, base + entry.stop


def _consistent(tensor: TensorPlan, place: Place, plan: Plan) -> None:
    """Raises `CorruptFileError` unless what index and plan say about a tensor agrees."""
    if place.kind != Share.kind:
        PAYLOADS[place.kind].check(tensor, place)
    elif (other := plan.holder(tensor.name)).like is not None or (other.shape, other.dtype) != (
        tensor.shape,
        tensor.dtype,
    ):
        raise CorruptFileError(f"tensor {tensor.name!r} shares what is not like it", got=other.name)
