"""Golden files of what the others do not reach: a file for each part of the format, all of its branches in it.

`WRITTEN` are made by the package's own writer. `CRAFTED` hold what it never chooses but a reader must read: payloads
by models chosen here, put together as the fuzzer does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from fuzz import Parts
from plans import kept, planned

from opq.base.dtypes import DTYPES
from opq.base.format_v1 import CODED_TYPES, DTYPE_NAMES
from opq.coding import entropy
from opq.coding.classes import Contexts
from opq.coding.entropy import Draft
from opq.coding.symbols import LAST
from opq.coding.tensor_model import Coding
from opq.file.index import Place
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
    TrellisTurnedRows,
)
from opq.plan import Budget, Plan, TensorPlan
from opq.quantizing.trellis import numbers
from opq.quantizing.turned import Turn

Codes = npt.NDArray[np.int16]
Made = tuple[Plan, list[Stored]]

LISTED: dict[str, Any] = {"step": 0.0, "threshold": 0.0, "rounding": 0.5}
"""Of tensors with a codebook."""


def laplace(scale: Any, seed: int) -> Codes:
    """Codes of these scales."""
    codes: Codes = np.rint(np.random.default_rng(seed).laplace(size=np.shape(scale)) * scale).astype(np.int16)
    return codes


def steps(scales: Sequence[float], each: int) -> npt.NDArray[np.float64]:
    """A column of scales, each of them for so many rows."""
    return np.repeat(np.array(scales), each)[:, None]


# --- by the writer ----------------------------------------------------------------------------


def contexts() -> Made:
    """Classes of rows, columns and kernel positions, told alone and after one another; large codes in classes."""
    shuffled = np.random.default_rng(9).permutation(np.repeat([0.2, 1, 5, 0.3], 40))
    kernel = np.array([[0.3, 1, 0.3], [1, 8, 1], [0.3, 1, 0.3]])
    scales = {
        "rows": steps([0.2, 1, 5, 0.3, 3, 0.2, 1, 20], 12) * np.ones((1, 40)),
        "columns": np.ones((40, 1)) * shuffled,
        "kernel": steps([0.2, 1.5], 12)[..., None, None] * np.ones((1, 16, 1, 1)) * kernel,
        "all": steps([0.2, 1.5, 6], 14)[..., None] * np.repeat([0.5, 2], 10)[None, :, None] * np.array([0.3, 1, 3]),
        "leading": steps([0.1, 2.5, 200], 14)[None, None] * np.ones((1, 40)),
        "joined": steps([0.05, 20], 32) * np.ones((1, 12)),
    }
    codes = {name: laplace(scale, k) for k, (name, scale) in enumerate(scales.items())}
    tensors = tuple(planned(name, c.shape) for name, c in codes.items())
    return Plan(method="rd", tensors=tensors, budget=Budget("ratio", 10.5)), [Grid(n, c) for n, c in codes.items()]


def paths() -> Made:
    """Paths of a trellis, some of several runs, down first axes of all lengths."""
    rng = np.random.default_rng(11)
    shapes = {"runs": (300, 3), "one.more": (129, 2, 3), "run": (128,), "row": (1, 70), "none": (0, 4), "scalar": ()}
    k = {name: np.asarray(laplace(np.full(shape, 1.5), 20 + i)) for i, (name, shape) in enumerate(shapes.items())}
    k["scalar"] += 3
    k["extremes"] = rng.choice(np.array([-16383, 16383, -3, 2], np.int16), (140, 2))
    types = {"one.more": "BF16", "row": "F16", "extremes": "F64"}
    tensors = tuple(planned(name, c.shape, types.get(name, "F32"), codebook="trellis") for name, c in k.items())
    return Plan(method="rd", tensors=tensors), [Trellis(name, numbers(c)) for name, c in k.items()]


def by_rows() -> Made:
    """Steps by row, the farthest too, of first axes of all lengths and of a tensor of chunks; on grids and on paths."""
    rng = np.random.default_rng(14)
    shapes: dict[str, tuple[int, ...]] = {
        "few": (12, 40), "run": (140, 3, 2), "one": (1, 70), "lonely": (5,), "none": (0, 4), "chunks": (1030, 520)
    }  # fmt: skip
    types = {"few": "BF16", "run": "F16", "lonely": "F64", "chunks": "F16"}
    tensors, items = list[TensorPlan](), list[Stored]()
    for name, shape in shapes.items():
        e = np.rint(rng.normal(size=shape[0]) * 6).astype(np.int16)
        e[:2] = (400, -400) if name == "lonely" else e[:2]
        k = laplace(np.full(shape, 1.2), 40 + len(items))
        for kind in (GridRows, TrellisRows):
            tensors.append(planned(f"{name}.{kind.kind}", shape, types.get(name, "F32"), codebook=kind.kind))
            items.append(kind(tensors[-1].name, k if kind is GridRows else numbers(k), e))
    return Plan(method="rd", tensors=tuple(tensors)), items


def turned() -> Made:
    """Matrices of tensors whose first axis counts no outputs: by one axis and several, in stacks, in chunks, empty."""
    rng = np.random.default_rng(21)
    ways = {
        "few": ((40, 12), Turn(0, 1), "BF16"),
        "run": ((3, 140, 2), Turn(0, 1), "F16"),
        "stack": ((4, 30, 70), Turn(1, 1), "F32"),
        "flat": ((4, 70, 6), Turn(2, 1), "F32"),
        "both": ((3, 5, 7), Turn(0, 2), "F64"),
        "all": ((6, 5), Turn(0, 2), "F32"),
        "none": ((5, 0), Turn(0, 1), "F32"),
        "chunks": ((520, 1030), Turn(0, 1), "F16"),
    }
    tensors, items = list[TensorPlan](), list[Stored]()
    for name, (shape, turn, dtype) in ways.items():
        rows = turn.shape(shape)[0]
        e = np.rint(rng.normal(size=rows) * 6).astype(np.int16)
        k = laplace(np.full(turn.shape(shape), 0.15 if name == "chunks" else 1.2), 60 + len(items))
        on_paths = turn.back(numbers(k), shape)
        for made in (
            TrellisTurned(f"{name}.paths", turn, on_paths),
            GridTurnedRows(f"{name}.rows", turn, turn.back(k, shape), e),
            TrellisTurnedRows(f"{name}.both", turn, on_paths, e),
        ):
            tensors.append(planned(made.name, shape, dtype, codebook=made.kind))
            items.append(made)
    return Plan(method="rd", tensors=tuple(tensors)), items


def columns() -> Made:
    """Factors by column, the farthest too: of matrices that are the tensor as it lies, and of turned ones."""
    rng = np.random.default_rng(22)
    ways = {
        "few": ((12, 40), Turn(1, 1), "BF16"),
        "run": ((140, 3, 2), Turn(1, 2), "F16"),
        "exact": ((9, 31), Turn(1, 1), "F64"),
        "far": ((6, 5, 4), Turn(1, 2), "F32"),
        "one": ((1, 70), Turn(1, 1), "F8_E4M3"),
        "none": ((5, 0), Turn(1, 1), "F32"),
        "turned": ((40, 12), Turn(0, 1), "F32"),
        "turned.stack": ((4, 30, 7), Turn(1, 1), "F64"),
        "turned.flat": ((4, 70, 6), Turn(2, 1), "BF16"),
        "turned.both": ((3, 5, 7), Turn(0, 2), "F32"),
        "turned.none": ((4, 0), Turn(0, 1), "F32"),
        "turned.large": ((520, 1030), Turn(0, 1), "F16"),
    }
    tensors, items = list[TensorPlan](), list[Stored]()
    for name, (shape, turn, dtype) in ways.items():
        e, f = (np.rint(rng.normal(size=n) * 6).astype(np.int16) for n in turn.shape(shape))
        if name == "far":
            e[:2], f[:4] = (400, -400), (400, -400, 399, -397)
        k = laplace(np.full(turn.shape(shape), 0.1 if name == "turned.large" else 1.2), 100 + len(items))
        for kind, codes in ((GridColumns, k), (TrellisColumns, numbers(k))):
            tensors.append(planned(f"{name}.{kind.kind}", shape, dtype, codebook=kind.kind))
            items.append(kind(tensors[-1].name, turn, turn.back(codes, shape), e, f))
    return Plan(method="rd", tensors=tuple(tensors)), items


WIDE, TALL, PAIR = (2, (1 << 22) + 1), (1030, 4096), (2, 1025, 2048)
"""Shapes of two chunks: of rows longer than a chunk should be; of many rows, a few of them in the second; of two."""


def chunks() -> Made:
    """Stacks of large tensors: of several chunks, by classes that a chunk may lack, and as large as is just large."""
    rng = np.random.default_rng(12)
    classes = np.zeros(TALL, np.int16)
    density = np.repeat([0.001, 0.0001, 0.0], [412, 606, 12])  # the last chunk, six rows, is of one class
    classes[rng.random(TALL) < density[:, None]] = 1
    classes *= rng.choice(np.array([-1, 1, 1, 2, 700, -33], np.int16), TALL)
    edge, below = np.zeros((2, 1 << 18), np.int16), np.zeros((1 << 19) - 1, np.int16)
    for codes in (edge, below):
        codes.reshape(-1)[rng.integers(0, codes.size, 60)] = rng.integers(-40, 41, 60)
    vectors = np.zeros(1 << 19, np.int16)
    vectors[rng.integers(0, vectors.size, 60)] = 2
    centroids = np.array([[0.0, 0.5], [1.0, -1.0], [2.0, 0.25]], np.float32)
    tensors = (
        planned("equal", WIDE, "F8_E4M3"),
        planned("classes", TALL, "F16"),
        planned("edge", edge.shape, "F16"),
        planned("below", below.shape, "F16"),
        planned("vectors", (1023, 1025), "BF16", codebook="product", **LISTED),
    )
    return Plan(method="rd", tensors=tensors), [
        Grid("equal", np.full(WIDE, -5, np.int16)),
        Grid("classes", classes),
        Grid("edge", edge),
        Grid("below", below),
        Product("vectors", centroids, vectors),
    ]


def paged() -> Made:
    """Pages of 8 and 16 bits, with and without classes, some of them empty, in several chunks; payloads of 64 kB.

    Chunks of opposite signs cost one bit a code by a table, and so are paged, in next to nothing.
    """
    rng = np.random.default_rng(13)
    signs = np.array([1, -1])[:, None, None] * np.ones(PAIR[1:], np.int16)
    sizes = np.where(np.arange(PAIR[1]) % 2, 3, 1)[:, None]
    sized = signs * np.stack([sizes * np.ones(PAIR[2:], np.int16), np.full(PAIR[1:], 3)])  # the second has one class

    def sprinkled(codes: npt.NDArray[Any], largest: int) -> Codes:
        made = codes.astype(np.int16)
        made.reshape(-1)[rng.integers(0, made.size, 300)] = rng.integers(-largest, largest + 1, 300)
        return made

    codes = {
        "narrow": sprinkled(signs, 127),
        "wide": sprinkled(200 * signs, 32767),
        "narrow.classes": sprinkled(sized, 3),
        "wide.classes": sprinkled(100 * sized, 900),
    }
    types = {"wide": "F32", "wide.classes": "F32"}
    raws = {
        "bytes": (torch.arange(1 << 16) % 251).to(torch.uint8),
        "floats": (torch.arange(1 << 14) % 64).to(torch.float32),
        "opq": torch.zeros(1 << 16, dtype=torch.uint8),
    }
    tensors = [planned(name, c.shape, types.get(name, "F16")) for name, c in codes.items()]
    items: list[Stored] = [Grid(name, c) for name, c in codes.items()]
    return Plan(method="rd", tensors=(*tensors, *(kept(n, t) for n, t in raws.items()))), [
        *items,
        *(Raw(n, t) for n, t in raws.items()),
    ]


def roundings() -> Made:
    """Every element type bit by bit; every type that codes may stand for, at its ends and where it rounds."""
    tensors: list[TensorPlan] = []
    items: list[Stored] = []

    def add(plan: TensorPlan, item: Stored) -> None:
        tensors.append(plan)
        items.append(item)

    rng = np.random.default_rng(14)
    few = np.array([0, 1, -1, 2, 3, 5, 7, -9, 100, 1023, -4097, 32767, -32767], np.int16)
    many = np.arange(-40, 41, dtype=np.int16)
    book = np.array([0, -0.0, 1e-45, -1e-8, 0.1, 1, 1.0625, 464, 6e4, -65520, 3.3e38, -3.4e38], np.float32)
    halves = np.array([[0, -0.0, 6e-8], [0.1, 1, -65504], [2, 3, 4]], np.float16).astype(np.float32)
    for dtype in CODED_TYPES:
        limits = torch.finfo(DTYPES[dtype])
        tie = 1 + limits.eps / 2 + 2.0**-50  # just above a tie: rounded to float32 first, it is one
        near, far = limits.tiny / 11, limits.max / 900
        for name, step, codes in (("tie", tie, few), ("small", near, many), ("large", far, few)):
            add(planned(f"{dtype}.{name}", codes.shape, dtype, step=step, threshold=step / 2, rounding=0.5),
                Grid(f"{dtype}.{name}", codes))  # fmt: skip
        path = numbers(many[:, None])
        add(planned(f"{dtype}.path", path.shape, dtype, codebook="trellis", step=tie, rounding=0.5, threshold=0.0),
            Trellis(f"{dtype}.path", path))  # fmt: skip
        add(planned(f"{dtype}.table", (3, 4), dtype, codebook="table", **LISTED),
            Table(f"{dtype}.table", book, np.arange(12).reshape(3, 4)))  # fmt: skip
        add(planned(f"{dtype}.product", (2, 2, 2), dtype, codebook="product", **LISTED),
            Product(f"{dtype}.product", halves, np.array([1, 0, 2])))  # fmt: skip
        zeros = torch.zeros(13, dtype=torch.float32).to(DTYPES[dtype])
        add(kept(f"{dtype}.fine", zeros), Fine(f"{dtype}.fine", few, tie))
        octave = 1 if dtype == "F64" else 3  # of whole powers no machine errs
        add(kept(f"{dtype}.log", zeros), Log(f"{dtype}.log", few, octave))
    for dtype in DTYPE_NAMES:
        size = DTYPES[dtype].itemsize
        data = rng.integers(0, 2 if dtype == "BOOL" else 256, 6 * size, dtype=np.uint8)
        raw = torch.frombuffer(bytearray(data.tobytes()), dtype=DTYPES[dtype]).reshape(2, 3)
        add(kept(f"raw.{dtype}", raw), Raw(f"raw.{dtype}", raw))
    return Plan(method="rd", tensors=tuple(tensors)), items


def names() -> Made:
    """All that an index can say: names, shapes, numbers of every width, columns of all kinds, a long text."""
    tensors: list[TensorPlan] = []
    items: list[Stored] = []

    def keep(name: str, tensor: torch.Tensor, **fields: Any) -> None:
        tensors.append(TensorPlan(**{**_fields(kept(name, tensor)), **fields}))
        items.append(Raw(name, tensor))

    tensors.append(TensorPlan(name="before", shape=(4, 5), dtype="F32", action="share", reason="tied", like="w"))
    for axes in range(33):
        keep(f"layers.{axes % 7}.attention.{'abc'[axes % 3]}.{axes}", torch.zeros((1,) * axes, dtype=torch.bool))
    keep("ones", torch.ones((1, 2, 1, 3), dtype=torch.bool), sensitivity=0.1, rate=1 / 3)
    keep("", torch.empty(0, 1 << 39, dtype=torch.uint8))
    for number in (0, 1, -1, -128, 127):
        keep(f"i8.{number}", torch.tensor([[number]], dtype=torch.int8))
    for name, value in (("i16", -32768), ("i32", 2**31 - 1), ("i64", -(2**38) + 1), ("u8", 255)):
        keep(name, torch.tensor(value, dtype={"u8": torch.uint8}.get(name) or getattr(torch, f"int{name[1:]}")))
    keep("i64.wide", torch.tensor(2**63 - 1))
    tensors.append(planned("w", (4, 5), step=2.0**-20 + 2.0**-50, threshold=0.6 * (2.0**-20 + 2.0**-50)))
    items.append(Grid("w", laplace(np.ones((4, 5)), 1)))
    tensors.append(planned("long", (3, 200_003), density=0.5))
    items.append(Grid("long", np.zeros((3, 200_003), np.int16)))
    for name in ("back\\slash", "line\nfeed", "both\\n\\\\n\n", "é ü 漢 \U0001f600", "é ü 漢 \U0001f601"):
        keep(name, torch.zeros(3, dtype=torch.bool), reason=name[::-1])
    far = "far away " + "".join(f"{k * k % 977:x}" for k in range(40))
    reason = far + "ab" * 70_000 + far + "\\" + "ab" * 40
    tensors.append(kept("fine", torch.zeros(3)))
    items.append(Fine("fine", np.array([-9, 3, 2], np.int16), float(np.float32(0.1))))
    keep("reason", torch.zeros(2, dtype=torch.bool), reason=reason)
    plan = Plan(
        method="opqopq\\\n", tensors=tuple(tensors), budget=Budget("size", 1234.5), multiplier=0.1,
        residual=1 + 2.0**-15, predicted_bytes=(1 << 40) - 1,
    )  # fmt: skip
    return plan, items


def _fields(plan: TensorPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def empty() -> Made:
    """No tensor at all."""
    return Plan(method="", tensors=()), []


def alike() -> Made:
    """Different large codes that share one symbol; the symbol beside it, which a model has too, is the next or the one
    before."""
    codes = {"low": (-29046, -28887, -29000), "high": (32767, 32766, 32000)}
    each = {name: np.array(few * 40, np.int16).reshape(12, 10) for name, few in codes.items()}
    return (
        Plan(method="rd", tensors=tuple(planned(name, q.shape) for name, q in each.items())),
        [Grid(name, q) for name, q in each.items()],
    )


WRITTEN: dict[str, Callable[[], Made]] = {
    made.__name__: made
    for made in (contexts, paths, by_rows, turned, columns, chunks, paged, roundings, names, empty, alike)
}


# --- by hand ----------------------------------------------------------------------------------


def models() -> Parts:
    """Every geometric distribution; frequencies of every size; as many classes as there can be, and as few."""
    made: list[tuple[TensorPlan, Place, bytes]] = []

    def coded(name: str, coding: Coding, codes: npt.NDArray[Any]) -> None:
        payload = entropy.write(Draft(coding, codes.shape), codes)
        made.append((planned(name, codes.shape, "F64", step=1.0), Place("grid", len(payload)), payload))

    rng = np.random.default_rng(15)
    for scale in range(28):
        offset = int(rng.integers(-20, 20))
        wide = rng.integers(-32000, 32000, 4) >> rng.integers(0, 15, 4)
        codes = np.concatenate([laplace(np.full(9, 2.0), scale), wide]).astype(np.int16) + np.int16(offset)
        coded(f"geometric.{scale}", Coding("geometric", -LAST, 2 * LAST + 1, offset=offset, scale=scale), codes)
    for code in (-32767, 32767, 0):
        coded(f"equal.{code}", Coding("constant", offset=code), np.full((3, 3), code))
    for k, roots in enumerate(every_root(rng)):
        codes = rng.integers(-32767, 32768, (8, 5)) >> rng.integers(0, 16, (8, 5))
        coded(f"roots.{k}", Coding("tables", -LAST, 2 * LAST + 1, None, (roots,)), codes)
    for name, low, high in (("below.only", -32, 31), ("above.only", -31, 32), ("neither", -31, 31)):
        roots = rng.integers(1, 9, high - low + 1)
        codes = np.array([max(low, -31), 1, -35 if low < -31 else 3, 35 if high > 31 else 31])
        coded(f"bits.behind.{name}", Coding("tables", low, high - low + 1, None, (roots,)), codes)
    for name, (axes, first, number) in classed(rng).items():
        shape = tuple(map(len, axes))
        of_classes = tuple(np.array([1 + k % 3, 9, 1 + k % 5]) for k in range(number))
        chosen = Contexts((axes[0], axes[1], axes[2]), first, number)
        coded(name, Coding("tables", -1, 3, chosen, of_classes), rng.choice([-1, 0, 0, 0, 0, 1], shape))
    for number in (-(2**39), 2**39 - 1):
        made.append((kept(f"scalar.{number}", torch.tensor(0)), Place("scalar", 0, number=number), b""))
    beyond = struct.pack("<BHH4f", 4, 4, 1, 3e38, -3e38, -0.0, 2.5) + entropy.encode(np.arange(4))
    made.append((planned("too.large", (4,), "F16", codebook="table", **LISTED), Place("table", len(beyond)), beyond))
    plans, places, payloads = zip(*made, strict=True)
    return Parts(Plan(method="by hand", tensors=plans), places, payloads)


def every_root(rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Tables in which predictions of every length are followed by differences of every length.

    A negative symbol is predicted by its mirror image, so that both can be chosen.
    """
    pairs = []
    for length in range(19):
        for bits in range(19):
            p = min((1 << length) >> 1 | int(rng.integers(1 << length)) >> 1, 1 << 17)
            v = min((1 << bits) >> 1 | int(rng.integers(1 << bits)) >> 1, 1 << 17)
            u = (p - (v >> 1) - 1 if v & 1 else p + (v >> 1)) if v < 2 * p else v
            pairs.append((p, min(u, 1 << 17)))
    pairs += [(p, u) for p in (1, 6, 300) for u in (0, 2 * p - 1, 2 * p)]  # where differences end
    found = []
    for start in range(0, len(pairs), LAST):
        some = pairs[start : start + LAST]
        some += [(1, 1)] * (LAST - len(some))
        found.append(np.array([u for _, u in some][::-1] + [3] + [p for p, _ in some], np.int64))
    return found


def classed(rng: np.random.Generator) -> dict[str, tuple[tuple[npt.NDArray[np.uint8], ...], int, int]]:
    """Classes of three axes, the first of them, and their number."""

    def axis(*classes: int) -> npt.NDArray[np.uint8]:
        return np.array(classes, np.uint8)

    most = (rng.integers(0, 16, 32).astype(np.uint8), np.repeat(axis(*range(16)), 3)[:44], axis(*range(16)))
    return {
        "most": (most, 0, 46),
        "joined": ((axis(0, 3, 1, 2), axis(2, 0, 1, 2, 0), axis(0)), 2, 2),
        "one": ((axis(1, 0, 1), axis(0, 2, 1, 0), axis(1, 0)), 1, 1),
        "unused": ((axis(0, 0, 0), axis(0, 1, 0, 1), axis(0)), 0, 5),
        "beyond": ((axis(1, 0, 1), axis(0, 1), axis(0)), 9, 2),
    }


CRAFTED: dict[str, Callable[[], Parts]] = {"models": models}
