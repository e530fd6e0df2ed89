"""Valid files made wrong in every way that their structure offers, and a judge of what the reader makes of them.

    python tests/helpers/fuzz.py --cases 20000 --seed 0

prints one JSON object. A case is *unsigned* where checksums are left as they were: then the file must be refused, or
read as if nothing had happened. It is *signed* where they are made anew, as a forger would: then it must be refused,
or give tensors of just the shapes and types that it declares, within the memory that it may take.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import limits
import numpy as np
import torch
from plans import kept, planned

from opq.base.dtypes import DTYPES
from opq.base.format_v1 import DTYPE_NAMES, KIND_NAMES
from opq.errors import (
    CorruptFileError,
    FileFormatError,
    FileTooLargeError,
    ForeignFileError,
    NewerFormatError,
    TruncatedFileError,
)
from opq.file import index
from opq.file.index import Place
from opq.file.reader import Reader
from opq.file.stored import (
    Fine,
    Grid,
    GridColumns,
    GridRows,
    GridTurnedRows,
    Log,
    Product,
    Raw,
    Stored,
    Table,
    Trellis,
    TrellisColumns,
    TrellisRows,
    TrellisTurned,
    raw_bytes,
)
from opq.file.writer import Packed, pack
from opq.plan import Budget, Plan, TensorPlan
from opq.quantizing.trellis import numbers
from opq.quantizing.turned import Turn
from opq.report.inspection import examine

SMALLEST_LIMIT, EXPANSION = 1 << 16, 100.0
"""Bytes that any case may decode to, and bytes for each byte of it: far below a user's, so that a leak shows."""
NARROW = {"memory": SMALLEST_LIMIT, "large": 1 << 10, "chunk": 1 << 9}
"""Constants of the format, as small as the cases are (`limits.narrowed`)."""
MEMORY = 64 << 20
"""Bytes by which the process may grow over all cases."""
CPU_SECONDS = 20
"""Of one case; beyond, it counts as a hang. They take milliseconds."""

Error = type[FileFormatError]
SIGNED: tuple[Error, ...] = (CorruptFileError, NewerFormatError, FileTooLargeError)
ANY: tuple[Error, ...] = (*SIGNED, ForeignFileError, TruncatedFileError)


class Case(NamedTuple):
    """One file, and how it may be refused."""

    kind: str
    data: bytes
    signed: bool
    errors: tuple[Error, ...]


# --- valid files -------------------------------------------------------------------------------


def laplace(*shape: int, scale: float, seed: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.rint(np.random.default_rng(seed).laplace(size=shape) * scale).astype(np.int16)


def every_kind() -> tuple[Plan, list[Stored]]:
    """Each kind of tensor once, and element types of every width."""
    tensors = {
        "bias": torch.linspace(-1, 1, 8),
        "steps": torch.tensor(1234567),
        "flags": torch.tensor([True, False, True]),
        "half": torch.linspace(-3, 3, 5, dtype=torch.float16),
        "empty": torch.empty(0, 3),
    }
    items: list[Stored] = [
        Grid("grid", laplace(8, 12, scale=1.5, seed=3)),
        Table("table", np.array([-1.0, 0.0, 0.5], np.float32), np.arange(12).reshape(3, 4) % 3),
        Product("product", np.array([[0.1, 0.2], [1.5, -2.0], [0.0, 3.0]], np.float32), np.array([0, 1, 2, 1, 0])),
        Fine("fine", np.array([3, -80, 1000, 7], np.int16), 0.001953125),
        Log("log", np.array([-3, 0, 5, 2], np.int16), 2),
        *(Raw(name, tensor) for name, tensor in tensors.items()),
        Trellis("trellis", numbers(laplace(6, 10, scale=1.5, seed=4))),
    ]
    listed = {"step": 0.0, "threshold": 0.0, "rounding": 0.5}
    plan = Plan(
        method="rd",
        tensors=(
            planned("grid", (8, 12), sensitivity=0.25, rate=2.5, density=0.75, distortion=0.001),
            planned("table", (3, 4), "F16", codebook="table", **listed),
            planned("product", (3, 3), "BF16", codebook="product", **listed),
            TensorPlan(name="shared", shape=(8, 12), dtype="F32", action="share", reason="tied", like="grid"),
            kept("fine", torch.zeros(4)),
            kept("log", torch.zeros(4, dtype=torch.float64)),
            *(kept(name, tensor) for name, tensor in tensors.items()),
            planned("trellis", (6, 10), codebook="trellis", rounding=0.5, threshold=0.015625),
        ),
        budget=Budget("bits", 3.0),
        multiplier=0.5,
        residual=2.0**-20,
        predicted_bytes=321,
    )
    return plan, items


def classes() -> tuple[Plan, list[Stored]]:
    """Codes whose rows differ in scale, some of them large: tables by class, bits behind symbols, steps by row,
    matrices of turned tensors, and factors by column."""
    scale = np.repeat([0.05, 20], 32)[:, None] * np.ones((1, 12))
    codes = np.rint(np.random.default_rng(5).laplace(size=(64, 12)) * scale).astype(np.int16)
    few, exponents, across = codes[40:50], (np.arange(10) % 7 - 4).astype(np.int16), np.arange(-3, 9, dtype=np.int16)
    tensors = (
        planned("w", (64, 12), "F16"),
        planned("z", (4, 4)),
        planned("rows", (10, 12), codebook="grid-rows"),
        planned("rows.paths", (10, 12), "BF16", codebook="trellis-rows"),
        planned("turned", (12, 10), codebook="trellis-turned"),
        planned("turned.rows", (2, 12, 5), codebook="grid-turned-rows"),
        planned("columns", (10, 4, 3), "F16", codebook="grid-columns"),
        planned("columns.paths", (12, 10), codebook="trellis-columns"),
    )
    return Plan(method="opq", tensors=tensors), [
        Grid("w", codes),
        Grid("z", np.zeros((4, 4), np.int16)),
        GridRows("rows", few, exponents),
        TrellisRows("rows.paths", numbers(few), exponents),
        TrellisTurned("turned", Turn(0, 1), Turn(0, 1).back(numbers(few), (12, 10))),
        GridTurnedRows("turned.rows", Turn(1, 1), Turn(1, 1).back(few, (2, 12, 5)), exponents),
        GridColumns("columns", Turn(1, 2), few.reshape(10, 4, 3), exponents, across),
        TrellisColumns("columns.paths", Turn(0, 1), Turn(0, 1).back(numbers(few), (12, 10)), exponents, across),
    ]


def large() -> tuple[Plan, list[Stored]]:
    """Tensors that are large under `narrowed`: with pages by class, with tables, and all equal."""
    scale = np.exp2(np.arange(48) % 3)[:, None] * np.exp2(np.arange(40) % 2)
    codes = np.rint(np.random.default_rng(7).laplace(size=(48, 40)) * scale).astype(np.int16)
    sparse = np.zeros((40, 40), np.int16)
    sparse[::9, ::7] = 1
    return Plan(method="rd", tensors=(planned("p", (48, 40)), planned("s", (40, 40)), planned("z", (40, 40)))), [
        Grid("p", codes),
        Grid("s", sparse),
        Grid("z", np.full((40, 40), 3, np.int16)),
    ]


def narrowed() -> None:
    """Limits of memory and of large tensors as small as the cases are, for the rest of the process."""
    limits.replace(**NARROW)


class Parts(NamedTuple):
    """A file taken apart: what the index says, and the payload of each tensor."""

    plan: Plan
    places: tuple[Place, ...]
    payloads: tuple[bytes, ...]


def taken_apart(data: bytes) -> Parts:
    """Of a valid file whose payloads all lie in the common entry."""
    common = data[8 + int.from_bytes(data[:8], "little") :]
    start = 8 + int.from_bytes(common[4:8], "little")
    plan, places = index.decode(common[8:start])
    payloads = []
    for place in places:
        payloads.append(common[start : start + place.length])
        start += place.length
    assert start == len(common)
    return Parts(plan, tuple(places), tuple(payloads))


def put_together(parts: Parts, *, head: bytes | None = None) -> bytes:
    """A signed file of the parts; `head` in place of the index."""
    places = [
        place if place.checksum is None else dataclasses.replace(place, checksum=zlib.crc32(payload))
        for place, payload in zip(parts.places, parts.payloads, strict=True)
    ]
    head = index.encode(parts.plan, places) if head is None else head
    own = [k for k, place in enumerate(places) if place.checksum is not None]
    small = b"".join(payload for k, payload in enumerate(parts.payloads) if k not in own)
    entries = []
    for k in own:
        tensor, length = parts.plan.tensors[k], len(parts.payloads[k])
        raw = places[k].kind == "raw"
        entries.append(
            (tensor.name, tensor.dtype if raw else "U8", tensor.shape if raw else [length], parts.payloads[k])
        )
    return with_common(len(head).to_bytes(4, "little") + head + small, entries)


def with_common(body: bytes, entries: Sequence[tuple[str, str, Any, bytes]] = ()) -> bytes:
    """A file of any body of the common entry, signed."""
    common = zlib.crc32(body).to_bytes(4, "little") + body
    header: dict[str, Any] = {"__metadata__": {"opq": "1"}}
    start = 0
    for name, dtype, shape, payload in [*entries, ("opq", "U8", [len(common)], common)]:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + len(payload)]}
        start += len(payload)
    return with_header(header, b"".join(payload for *_, payload in entries) + common)


def with_header(header: Any, body: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


ENTRIES = 2
"""Which of the seeds has entries of its own for some tensors."""


def seeds() -> list[bytes]:
    """The valid files that all others are made from."""
    files = [b"".join(pack(*made).parts) for made in (every_kind(), classes())]
    parts = taken_apart(files[0])
    places = tuple(
        dataclasses.replace(place, checksum=0) if tensor.name in ("grid", "half", "fine") else place
        for tensor, place in zip(parts.plan, parts.places, strict=True)
    )
    return [*files, put_together(parts._replace(places=places)), b"".join(pack(*large()).parts)]


# --- unsigned damage ---------------------------------------------------------------------------


def cuts(data: bytes) -> Iterator[Case]:
    """The file ends after every one of its bytes; and goes on."""
    for stop in range(len(data)):
        yield Case("cut", data[:stop], False, (TruncatedFileError,))
    for more in (b"\0", b"\0" * 8, data):
        yield Case("goes on", data + more, False, (CorruptFileError,))


def flips(data: bytes) -> Iterator[Case]:
    """Every bit of length and header, and one bit of every byte behind."""
    base = 8 + int.from_bytes(data[:8], "little")
    for at in range(len(data)):
        for bit in range(8) if at < base else [at % 8]:
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield Case("bit of header" if at < base else "bit of body", bytes(changed), False,
                       ANY if at < base else (CorruptFileError,))  # fmt: skip


def splices(data: bytes, rng: random.Random) -> Iterator[Case]:
    """Bytes set, inserted, left out, moved; for ever."""
    while True:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            spliced(changed, rng)
        yield Case("splice", bytes(changed), False, ANY)


def spliced(data: bytearray, rng: random.Random) -> None:
    at, other = (rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(5)
    if kind == 0 and at < len(data):
        data[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    elif kind == 1:
        del data[at : at + rng.randrange(1, 9)]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 3:
        data[at : at + 8] = data[other : other + 8]
    else:
        low, high = sorted((at, other))
        data[low:high] = data[low:high][::-1][: rng.randrange(1, 64)]


ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**62, 2**63, 2**64, 10**30, 1.5, 1e300, "", "U8", "F32", "X9", "[0]", "\ud800",
    [], [0], [-1], [0, 0], [1, 0], [True, 2], [0.0, 8.0], [2**62, 2**62], [[0], [1]], [0] * 40, {}, {"dtype": "U8"},
)  # fmt: skip
"""Values that a field of the header should not have."""


def headers(data: bytes) -> Iterator[Case]:
    """Every field of the header with values of every kind; entries added, left out, renamed, moved over each other."""
    base = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:base]), data[base:]

    def case(kind: str, changed: Any) -> Case:
        return Case(kind, with_header(changed, body), False, ANY)

    for name, odd in itertools.product(header, ODD):
        yield case("entry", {**header, name: odd})
        yield case("unknown entry", {**header, "more": odd})
        for field in header[name]:
            yield case("field", {**header, name: {**header[name], field: odd}})
            yield case("unknown field", {**header, name: {**header[name], "more": odd}})
    for version in ("0", "-1", "2", "1.0", "01", " 1", "１", "9" * 8, "9" * 9, "9" * 5000, "one", ""):
        yield case("version", {**header, "__metadata__": {"opq": version}})
    entries = [name for name in header if name != "__metadata__"]
    for name, other in itertools.permutations(entries, 2):
        yield case("swapped entries", {**header, name: header[other], other: header[name]})
        yield case("twice at one place", {**header, name: header[other]})
    for name in entries:
        start, stop = header[name]["data_offsets"]
        for move in (-(2**40), -8, -1, 1, 8, len(body), 2**40):
            yield case("moved", {**header, name: {**header[name], "data_offsets": [start + move, stop + move]}})
            yield case("longer", {**header, name: {**header[name], "data_offsets": [start, stop + move]}})
        yield case("left out", {k: v for k, v in header.items() if k != name})
        yield case("renamed", {k + "x" * (k == name): v for k, v in header.items()})
        one = json.dumps({name: header[name]})[1:-1].encode()
        text = data[8:base].rstrip()[:-1] + b"," + one + b"}"
        yield Case("named twice", len(text).to_bytes(8, "little") + text + body, False, (CorruptFileError,))
    for length in (0, 1, 2, 7, len(data), 2**27, 2**31, 2**32, 2**63, 2**64 - 1, *range(base - 16, base)):
        yield Case("header length", length.to_bytes(8, "little") + data[8:], False, ANY)
    for text in (b"{" * 5000, b'{"a":' * 5000, b'{"__metadata__":{"opq":"1"}}', b"{}", b'{"a":1e9999}', b"{\xff}"):
        yield Case("other JSON", len(text).to_bytes(8, "little") + text + body, False, ANY)


# --- signed damage -----------------------------------------------------------------------------


def bodies(data: bytes, rng: random.Random) -> Iterator[Case]:
    """The common entry with any byte changed, signed anew: every bit of the index, then splices for ever."""
    base = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:base])
    start, stop = header["opq"]["data_offsets"]
    body = data[base + start + 4 : base + stop]
    entries = []
    for name in (n for n in header if n not in ("__metadata__", "opq")):
        low, high = header[name]["data_offsets"]
        entries.append((name, header[name]["dtype"], header[name]["shape"], data[base + low : base + high]))
    for at in range(8 * min(len(body), 4 + int.from_bytes(body[:4], "little"))):
        changed = bytearray(body)
        changed[at // 8] ^= 1 << at % 8
        yield Case("bit of index, signed", with_common(bytes(changed), entries), True, SIGNED)
    while True:
        changed = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 5])):
            spliced(changed, rng)
        yield Case("splice, signed", with_common(bytes(changed), entries), True, SIGNED)


FORGED: dict[str, tuple[Any, ...]] = {
    "name": ("", "opq", "__metadata__", "grid", "a\nb", "\\", "é" * 40, "\x1b[2J", "../../x"),
    "shape": ((), (0,), (1,), (7,), (12, 8), (8, 13), (2, 48), (96,), (1 << 20, 1 << 20), (1 << 39, 1 << 39),
              (0, 1 << 39, 1 << 39), (1,) * 32, (1 << 40,)),
    "dtype": DTYPE_NAMES,
    "step": (0.0, -1.0, 5e-324, 1e300, float("nan"), float("inf")),
    "rounding": (0.0, -1.0, 1e300, float("nan")),
    "threshold": (-1.0, 1e-300, 1e300, float("inf")),
    "sensitivity": (0.0, -1.0, float("nan")),
    "rate": (-1.0, 1e300, float("inf")),
    "density": (-1.0, 2.0, float("nan")),
    "distortion": (-1.0, float("inf")),
}  # fmt: skip
PLACED: dict[str, tuple[Any, ...]] = {
    "kind": KIND_NAMES,
    "length": (0, 1, 2, 3, 4, 5, 7, 8, 9, 1 << 16, 1 << 31, 1 << 39),
    "checksum": (None, 0),
    "number": (0, 1, -1, 300, 1 << 20, -(1 << 30), 1e-300, 1e300, float("nan")),
}


def fields(parts: Parts) -> Iterator[Case]:
    """Every field of the plan and of every place with values that it should not have."""
    for field, value in (
        ("method", "x\ny\\"), ("multiplier", float("nan")), ("multiplier", -1e300), ("residual", float("inf")),
        ("predicted_bytes", (1 << 40) - 1), ("budget", _forged(Budget("bits", 3.0), "value", -1.0)),
        ("budget", _forged(Budget("bits", 3.0), "value", float("nan"))),
    ):  # fmt: skip
        yield from _signed("plan", parts._replace(plan=_forged(parts.plan, field, value)))
    for k, tensor in enumerate(parts.plan):
        for field, value in ((f, v) for f, values in FORGED.items() for v in values):
            tensors = (*parts.plan.tensors[:k], _forged(tensor, field, value), *parts.plan.tensors[k + 1 :])
            yield from _signed(f"tensor's {field}", parts._replace(plan=_forged(parts.plan, "tensors", tensors)))
        for field, value in ((f, v) for f, values in PLACED.items() for v in values):
            places = (*parts.places[:k], _forged(parts.places[k], field, value), *parts.places[k + 1 :])
            yield from _signed(f"place's {field}", parts._replace(places=places))
    for i, j in itertools.permutations(range(len(parts.plan)), 2):
        like = _forged(_forged(parts.plan.tensors[i], "like", parts.plan.tensors[j].name), "action", "share")
        tensors = (*parts.plan.tensors[:i], like, *parts.plan.tensors[i + 1 :])
        places = (*parts.places[:i], Place("share", 0), *parts.places[i + 1 :])
        yield from _signed(
            "shared with any", parts._replace(plan=_forged(parts.plan, "tensors", tensors), places=places)
        )


def payloads(parts: Parts, rng: random.Random) -> Iterator[Case]:
    """Payloads of all sorts in place of each: flipped, cut, swapped, of another tensor, of random bytes; for ever.

    Random bytes are random choices at every point: kinds, ranges, frequency tables, classes, codebooks.
    """
    for i, j in itertools.permutations(range(len(parts.payloads)), 2):
        yield from _signed("swapped payloads", _with(_with(parts, i, parts.payloads[j]), j, parts.payloads[i]))
        yield from _signed("another's payload", _with(parts, i, parts.payloads[j]))
    for k, payload in enumerate(parts.payloads):
        for at in range(len(payload)):
            yield from _signed("cut payload", _with(parts, k, payload[:at]))
            for value in (0, 1, 255):
                yield from _signed(
                    "byte of payload", _with(parts, k, payload[:at] + bytes([value]) + payload[at + 1 :])
                )
    while True:
        k = rng.randrange(len(parts.payloads))
        made = bytearray(parts.payloads[k])
        if rng.random() < 0.6:
            made[rng.randrange(min(8, len(made) + 1)) :] = rng.randbytes(rng.choice([1, 2, 4, 8, 16, 40, 200]))
        else:
            for _ in range(rng.choice([1, 2, 4])):
                spliced(made, rng)
        yield from _signed("forged payload", _with(parts, k, bytes(made)))


def _with(parts: Parts, k: int, payload: bytes) -> Parts:
    """The parts with another payload, of which the index knows the length."""
    places = list(parts.places)
    if places[k].kind not in ("share", "scalar"):
        places[k] = dataclasses.replace(places[k], length=len(payload))
    return Parts(parts.plan, tuple(places), (*parts.payloads[:k], payload, *parts.payloads[k + 1 :]))


def _forged(value: Any, field: str, forged: Any) -> Any:
    """A frozen value with a field that its own checks would refuse."""
    made = copy.copy(value)
    object.__setattr__(made, field, forged)
    return made


def _signed(kind: str, parts: Parts) -> Iterator[Case]:
    """A signed file, unless not even the writer has a way to say this."""
    try:
        data = put_together(parts)
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, AttributeError):
        return
    yield Case(kind, data, True, SIGNED)


FULL = 20_000
"""Cases of a full run."""


def some(seed: int, amount: int) -> Iterator[tuple[int, Case]]:
    """As many cases; of fewer than a full run's, fewer of each kind that is listed."""
    return itertools.islice(cases(seed, every=2 * max(1, FULL // amount) - 1), amount)


def cases(seed: int, *, every: int = 1) -> Iterator[tuple[int, Case]]:
    """Cases without end, each with the number of the valid file it was made from.

    Of all that can be listed the first of each kind and one in `every`; then others at random.
    """
    rng = random.Random(seed)
    for number, data in enumerate(seeds()):
        met = Counter[str]()
        for listed in itertools.chain(cuts(data), flips(data), headers(data)):
            if met[listed.kind] % every == 0:
                yield number, listed
            met[listed.kind] += 1
    endless: list[tuple[int, Iterator[Case]]] = []
    for number, data in enumerate(seeds()):
        parts = taken_apart(data) if number != ENTRIES else None
        endless += [(number, splices(data, rng)), (number, bodies(data, rng))]
        endless += [] if parts is None else [(number, payloads(parts, rng)), (number, fields(parts))]
    while True:
        number, way = endless[rng.randrange(len(endless))]
        if (case := next(way, None)) is not None:
            yield number, case
        else:
            endless.remove((number, way))


# --- the judge ---------------------------------------------------------------------------------


class Wrong(Exception):
    """What the reader must not do."""


def judge(case: Case, original: tuple[Plan, dict[str, bytes]]) -> str:
    """`read`, or the error class by which the file was refused; raises `Wrong` on anything else."""
    try:
        plan, state = everything(case.data)
    except FileFormatError as error:
        if type(error) not in case.errors:
            raise Wrong(f"{type(error).__name__} is not the error of this") from error
        if "\n" in str(error) or not error.fact:
            raise Wrong(f"an error that is no line: {error!r}") from error
        return type(error).__name__
    if not case.signed:
        if plan != original[0] or {name: raw_bytes(t) for name, t in state.items()} != original[1]:
            raise Wrong("damage taken for data")
        return "read"
    for tensor in plan:
        found = state[tensor.name]
        if tuple(found.shape) != tensor.shape or found.dtype != DTYPES[tensor.dtype]:
            raise Wrong(f"{tensor.name!r} is not of the shape and type that the file declares")
    held = sum(t.nbytes for t in {id(t): t for t in state.values()}.values())
    if held > max(SMALLEST_LIMIT, EXPANSION * len(case.data)):
        raise Wrong(f"{held} bytes held")
    return "read"


def everything(data: bytes) -> tuple[Plan, dict[str, torch.Tensor]]:
    with Reader(Packed((data,), {}, {}), max_expansion=EXPANSION) as opened:
        return opened.plan, {name: opened.tensor(name) for name in opened.names}


def run(amount: int, seed: int, folder: Path, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """So many cases; the figures."""
    narrowed()
    originals = [everything(data) for data in seeds()]
    plain = [(plan, {name: raw_bytes(t) for name, t in state.items()}) for plan, state in originals]
    signal.signal(signal.SIGPROF, _hang)
    before = _peak()
    kinds, outcomes, wrong, hangs = Counter[str](), Counter[str](), list[str](), 0
    path = folder / "case.opq.safetensors"
    for k, (number, case) in enumerate(some(seed, amount)):
        kinds[case.kind] += 1
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            outcome = judge(case, plain[number])
            if outcome == "read" and case.signed and k % 8 == 0:
                path.write_bytes(case.data)
                str(examine(path).summary())
            outcomes[outcome] += 1
        except TimeoutError:
            hangs += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong.append(f"case {k}, {case.kind}: {''.join(traceback.format_exception(error))[-1500:]}")
            tell(wrong[-1])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "cases": sum(kinds.values()),
        "kinds": dict(sorted(kinds.items())),
        "outcomes": dict(outcomes.most_common()),
        "wrong": wrong,
        "hangs": hangs,
        "memory": _peak() - before,
    }


def _hang(*_: object) -> None:
    raise TimeoutError


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=FULL)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        print(json.dumps(run(chosen.cases, chosen.seed, Path(folder), lambda text: print(text, file=sys.stderr))))


if __name__ == "__main__":
    main()
