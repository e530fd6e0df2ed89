"""The file: what goes in comes out, the same bytes for ever, and nothing in it is believed unchecked."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from file_helpers import bytes_of, codes_in, in_memory, small, uncounted
from hypothesis import given, settings
from paths import DOCS
from plans import kept, planned
from safetensors import safe_open

from opq.base.dtypes import DTYPES
from opq.base.format_v1 import KIND_NAMES, KIND_WEIGHTS
from opq.coding import text
from opq.coding.stack import StackReader as Stack
from opq.coding.stack import StackWriter
from opq.errors import (
    ClosedReaderError,
    CorruptFileError,
    FileFormatError,
    FileTooLargeError,
    ForeignFileError,
    MismatchError,
    MissingFileError,
    NewerFormatError,
    TruncatedFileError,
    WriteError,
)
from opq.file import index, index_rows, stored
from opq.file.index import Place
from opq.file.reader import Reader
from opq.file.stored import Fine, Grid, Log, Product, Raw, Stored, Table
from opq.file.writer import Packed, pack, size_of, write_file
from opq.plan import LARGEST_BUDGET, SMALLEST_BUDGET, Budget, Plan, TensorPlan, as_stored


def every_kind() -> tuple[Plan, list[Stored]]:
    """A small model with each kind of tensor, and element types of every width."""
    rng = np.random.default_rng(3)
    codes = np.rint(rng.laplace(size=(8, 12)) * 1.5).astype(np.int16)
    bias, half = torch.linspace(-1, 1, 8), torch.linspace(-3, 3, 5, dtype=torch.float16)
    steps, flags = torch.tensor(1234567), torch.tensor([True, False, True])
    items: list[Stored] = [
        Grid("a", codes),
        Raw("a2", bias),
        Table("b", np.array([-1.0, 0.0, 0.5], np.float32), np.arange(12).reshape(3, 4) % 3),
        Product("c", np.array([[0.1, 0.2], [1.5, -2.0], [0.0, 3.0]], np.float32), np.array([0, 1, 2, 1, 0])),
        Fine("n", np.array([3, -80, 1000, 7], np.int16), 0.001953125),
        Log("v", np.array([-3, 0, 5, 2], np.int16), 2),
        Raw("i", steps),
        Raw("f", flags),
        Raw("h", half),
        Raw("e", torch.empty(0, 3)),
    ]
    plan = Plan(
        method="rd",
        tensors=(
            planned("a", (8, 12), sensitivity=0.25, rate=2.5, density=0.75, distortion=0.001),
            kept("a2", bias),
            planned("b", (3, 4), "F16", codebook="table", step=0.0, threshold=0.0, rounding=0.5),
            planned("c", (3, 3), "BF16", codebook="product", step=0.0, threshold=0.0, rounding=0.5),
            TensorPlan(name="t", shape=(8, 12), dtype="F32", action="share", reason="t", like="a"),
            kept("n", torch.zeros(4)),
            kept("v", torch.zeros(4, dtype=torch.float64)),
            kept("i", steps),
            kept("f", flags),
            kept("h", half),
            kept("e", torch.empty(0, 3)),
        ),
        budget=Budget("bits", 3.0),
        multiplier=0.5,
        residual=2.0**-20,
        predicted_bytes=321,
    )
    return plan, items


GOOD = bytes_of(pack(*small()))


def everything(data: bytes, **options: Any) -> tuple[Plan, dict[str, torch.Tensor]]:
    with Reader(in_memory(data), **options) as opened:
        return opened.plan, {name: opened.tensor(name) for name in opened.names}


# --- round trips -------------------------------------------------------------------------------


def test_every_kind_comes_back(tmp_path: Path) -> None:
    plan, items = every_kind()
    path = tmp_path / "model.opq.safetensors"
    assert write_file(path, plan, items) == path.stat().st_size == size_of(plan, items)
    with Reader(path) as opened:
        assert opened.plan == plan
        assert opened.names == tuple(t.name for t in plan)
        state = opened.state_dict()
        assert opened.bytes == path.stat().st_size
        np.testing.assert_array_equal(opened.codes("t"), codes_in(items[0]))
        np.testing.assert_array_equal(opened.codes("c"), [0, 1, 2, 1, 0])
        assert opened.kind("i") == "scalar"
        with pytest.raises(MismatchError, match="no codes"):
            opened.codes("a2")
        with pytest.raises(MismatchError, match="no tensor 'nothing'"):
            opened.tensor("nothing")
    assert list(state) == [t.name for t in plan]
    for tensor in plan:
        assert state[tensor.name].dtype == DTYPES[tensor.dtype]
        assert tuple(state[tensor.name].shape) == tensor.shape
    for item in items:
        if isinstance(item, Raw):
            assert torch.equal(state[item.name], item.tensor)
    assert state["t"] is state["a"]
    assert torch.equal(state["a"], torch.from_numpy(codes_in(items[0]) * 0.03125).float())
    table = torch.tensor([-1.0, 0.0, 0.5]).half()
    assert torch.equal(state["b"], table[torch.arange(12).reshape(3, 4) % 3])
    flat = torch.tensor([0.1, 0.2, 1.5, -2.0, 0.0, 3.0, 1.5, -2.0, 0.1]).bfloat16()
    assert torch.equal(state["c"], flat.reshape(3, 3))
    assert torch.equal(state["n"], torch.tensor([3, -80, 1000, 7]) / 512)
    assert torch.equal(state["v"], torch.tensor([2**-1.5, 1, 2**2.5, 2], dtype=torch.float64))


SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.sampled_from(sorted(DTYPES)), st.randoms(use_true_random=False))
def test_kept_tensors_of_every_type_and_shape_come_back(shape: tuple[int, ...], dtype: str, rng: random.Random) -> None:
    size = torch.Size(shape).numel() * DTYPES[dtype].itemsize
    data = bytearray(rng.randrange(2 if dtype == "BOOL" else 256) for _ in range(size))
    flat = torch.frombuffer(data, dtype=DTYPES[dtype]) if size else torch.empty(0, dtype=DTYPES[dtype])
    tensor = flat.reshape(shape)
    _, state = everything(bytes_of(pack(Plan(method="x", tensors=(kept("t", tensor),)), [Raw("t", tensor)])))
    assert state["t"].dtype == tensor.dtype
    assert tuple(state["t"].shape) == shape
    assert stored.raw_bytes(state["t"]) == bytes(data)


@settings(deadline=None, max_examples=60)
@given(
    SHAPES,
    st.sampled_from(["F16", "BF16", "F32", "F64"]),
    st.floats(2**-120, 2**100),
    st.integers(0, 2**32 - 1),
)
def test_codes_of_every_type_and_shape_come_back(shape: tuple[int, ...], dtype: str, step: float, seed: int) -> None:
    codes = np.asarray(np.rint(np.random.default_rng(seed).laplace(size=shape) * 2), np.int16)
    plan = Plan(method="x", tensors=(planned("t", shape, dtype, step=step, threshold=step / 2, rounding=0.5),))
    back, state = everything(bytes_of(pack(plan, [Grid("t", codes)])))
    assert back == plan
    largest = torch.finfo(DTYPES[dtype]).max
    assert torch.equal(state["t"], (torch.from_numpy(codes).double() * step).clamp(-largest, largest).to(DTYPES[dtype]))


NAMES = st.text(min_size=0, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(NAMES, unique=True, max_size=6), NAMES, st.sampled_from(["", "\n", "\\", "\\n", "é"]))
def test_any_names_and_reasons_come_back(names: list[str], method: str, extra: str) -> None:
    names = [n.encode(errors="ignore").decode() + extra + str(k) for k, n in enumerate(names)]
    method = method.encode(errors="ignore").decode()
    tensors = [TensorPlan(name=n, shape=(), dtype="F32", action="keep", reason=n[::-1]) for n in names]
    plan = Plan(method=method, tensors=tuple(tensors))
    assert index.decode(index.encode(plan, [Place("raw", 4)] * len(names)))[0] == plan


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=100)
@given(st.lists(FLOATS, min_size=7, max_size=7), FLOATS, st.floats(1e-300, 1e300), st.booleans())
def test_a_plan_survives_exactly(numbers: list[float], multiplier: float, step: float, tied: bool) -> None:
    fields = dict(zip(("sensitivity", "rate", "density", "distortion", "rounding", "threshold"), numbers, strict=False))
    fields |= {"threshold": fields["rounding"] * step} if tied else {}
    if not np.isfinite(fields["threshold"]):
        return
    tensors = (planned("w", (3, 4), step=step, **fields), kept("b", torch.zeros(3)))
    plan = Plan(
        method="rd",
        tensors=tensors,
        budget=Budget("size", min(max(step, SMALLEST_BUDGET), LARGEST_BUDGET)),
        multiplier=multiplier,
        residual=numbers[6],
    )
    places = [Place("grid", 3), Place("raw", 12)]
    assert index.decode(index.encode(plan, places)) == (plan, places)
    once = as_stored(plan)
    assert as_stored(once) == once
    assert len(index.encode(once, places)) <= len(index.encode(plan, places))
    assert once.tensors[0].step == pytest.approx(step, rel=1e-4)


def test_a_rounded_plan_costs_little() -> None:
    """LeNet-300-100: six tensors, all that the report needs, and the safetensors header."""
    shapes = [(300, 784), (300,), (100, 300), (100,), (10, 100), (10,)]
    tensors, items = [], list[Stored]()
    for k, shape in enumerate(shapes):
        name = f"fc{k // 2 + 1}." + ("weight" if len(shape) == 2 else "bias")
        codes = np.zeros(shape, np.int16)
        if len(shape) == 2:
            noise = {"sensitivity": 0.1234567, "rate": 0.3, "density": 0.0234, "distortion": 1.234e-4}
            tensors.append(planned(name, shape, step=0.0423457, threshold=0.6 * 0.0423457, **noise))
            items.append(Grid(name, codes))
        else:
            tensors.append(kept(name, torch.zeros(shape)))
            items.append(Fine(name, codes, 0.25))
    plan = as_stored(Plan(method="rd", tensors=tuple(tensors), budget=Budget("ratio", 150.0), multiplier=1.2345e-7))
    assert size_of(plan, items) <= 270


# --- bytes -------------------------------------------------------------------------------------

GOLDEN = (
    "58000000000000007b225f5f6d657461646174615f5f223a7b226f7071223a2231227d2c226f7071223a7b22647479706522"
    "3a225538222c227368617065223a5b38315d2c22646174615f6f666673657473223a5b302c38315d7d7d20202020999e8716"
    "3900000000e33f00403333331eb110ccfab13819f71d0b04760000d408e4e8adb21f6d8d7c927be1a1dea80059f12a183e68"
    "60a3bbd52ade9c620f7e0147348504b4297c030000803f000000c0"
)
"""`small()` as a file, before files told hubs how many weights there are: no later version may change more."""


def test_golden_bytes() -> None:
    plan, items = small()
    assert uncounted(GOOD).hex() == GOLDEN
    back, state = everything(bytes.fromhex(GOLDEN))
    assert back == plan
    assert torch.equal(state["w"], torch.from_numpy(codes_in(items[0]) * 0.03125).float())


def test_the_worked_example_of_the_specification_is_this_file() -> None:
    page = (DOCS / "format.md").read_text()
    start = 8 + int.from_bytes(GOOD[:8], "little")
    header, body = GOOD[8:start], GOOD[start:]
    assert f"{len(GOOD)} bytes" in page
    assert f"{GOOD[:8].hex(' ')}                             {start - 8} bytes of header follow" in page
    assert header.decode().rstrip() in page
    assert body[:4].hex(" ") + "   " + body[4:8].hex(" ") in page
    assert body[8:16].hex(" ") in page
    assert body[60:65].hex(" ") in page
    assert body[65:73].hex(" ") in page
    assert body[73:].hex(" ") in page


def test_bytes_do_not_depend_on_the_order_of_the_items() -> None:
    plan, items = every_kind()
    assert pack(plan, items[::-1]).parts == pack(plan, items).parts


def test_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    codes = np.rint(np.random.default_rng(0).laplace(size=(600, 700)) * 3).astype(np.int16)
    big, odd = torch.randn(20000), torch.zeros(70001, dtype=torch.uint8)
    plan = Plan(method="rd", tensors=(planned("w", (600, 700)), kept("k", big), kept("odd", odd)))
    path = tmp_path / "m.opq.safetensors"
    write_file(path, plan, [Grid("w", codes), Raw("k", big), Raw("odd", odd)])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"opq": "1", "total_parameters": str(600 * 700 + 20000 + 70001)}
        assert sorted(file.keys()) == ["k", "odd", "opq", "w"]
        assert torch.equal(file.get_tensor("k"), big)
        assert file.get_tensor("w").dtype == torch.uint8
    with Reader(path) as opened:
        assert torch.equal(opened.tensor("k"), big)
        np.testing.assert_array_equal(opened.codes("w"), codes)
    header = path.read_bytes()[8:]
    assert header.index(b'"k"') < header.index(b'"odd"'), "float32 first, so that it is aligned"


def test_hubs_are_told_how_many_weights_there_are_tied_ones_once(tmp_path: Path) -> None:
    plan, items = fuzz.every_kind()
    assert any(t.like for t in plan), "or nothing is tied"
    write_file(path := tmp_path / "m.opq.safetensors", plan, items)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"opq": "1", "total_parameters": str(sum(t.size for t in plan if t.like is None))}


@pytest.mark.parametrize("name", ["opq", "__metadata__"])
def test_names_that_the_format_uses_itself_are_only_names(name: str) -> None:
    big = torch.randn(20000)
    _, state = everything(bytes_of(pack(Plan(method="x", tensors=(kept(name, big),)), [Raw(name, big)])))
    assert torch.equal(state[name], big)


def test_an_empty_plan_is_a_file() -> None:
    plan, state = everything(bytes_of(pack(Plan(method="x", tensors=()), [])))
    assert (len(plan), state) == (0, {})


# --- what cannot be packed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "fact"),
    [
        ([], "not those of the plan"),
        ([Grid("w", np.zeros((2, 3), np.int16)), Raw("x", torch.zeros(1))], "not those of the plan"),
        ([Grid("w", np.zeros((2, 3), np.int16))] * 2, "not those of the plan"),
        ([Grid("w", np.zeros((3, 2), np.int16))], "shape"),
        ([Raw("w", torch.zeros(2, 3))], "stored as raw"),
        ([Table("w", np.zeros(1, np.float32), np.zeros((2, 3), int))], "stored as table"),
    ],
)
def test_items_that_do_not_fit_the_plan(items: list[Stored], fact: str) -> None:
    with pytest.raises(MismatchError, match=fact):
        pack(Plan(method="x", tensors=(planned("w", (2, 3)),)), items)


def test_more_items_that_do_not_fit() -> None:
    with pytest.raises(MismatchError, match="stored by codes"):
        pack(Plan(method="x", tensors=(kept("w", torch.zeros(2, dtype=int)),)), [Fine("w", np.zeros(2, np.int16), 1.0)])
    with pytest.raises(MismatchError, match="type of the stored tensor"):
        pack(Plan(method="x", tensors=(kept("w", torch.zeros(2)),)), [Raw("w", torch.zeros(2).double())])
    deep = torch.zeros((1,) * 33)
    with pytest.raises(MismatchError, match="too many axes"):
        pack(Plan(method="x", tensors=(kept("w", deep),)), [Raw("w", deep)])
    table = Table("w", np.array([np.nan], np.float32), np.zeros((2, 3), int))
    with pytest.raises(MismatchError, match="codebook"):
        pack(Plan(method="x", tensors=(planned("w", (2, 3), codebook="table"),)), [table])
    share = TensorPlan(name="s", shape=(3, 2), dtype="F32", action="share", reason="tied", like="w")
    with pytest.raises(MismatchError, match="shares what is not like it"):
        pack(Plan(method="x", tensors=(planned("w", (2, 3)), share)), [Grid("w", np.zeros((2, 3), np.int16))])


# --- writing -----------------------------------------------------------------------------------


def refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_what_was_there(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, items = small()
    path = tmp_path / "m.opq.safetensors"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(WriteError, match="No space left"):
        write_file(path, plan, items)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_does_not_decode_to_what_was_packed_is_not_written(tmp_path: Path) -> None:
    packed = pack(*small())
    for name in ("w", "b"):
        wrong = Packed(packed.parts, packed.sizes, {**packed.digests, name: 1})
        with pytest.raises(WriteError, match=f"tensor '{name}' does not decode"):
            wrong.write(tmp_path / "m.opq.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No such file"):
        write_file(tmp_path / "no" / "m.opq.safetensors", *small())


def test_a_file_replaces_another_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.opq.safetensors"
    write_file(path, *every_kind())
    with Reader(path) as before:
        write_file(path, *small())
        assert len(before.state_dict()) == 11, "an open reader goes on with the old file"
    with Reader(path) as after:
        assert after.names == ("w", "b")


# --- damage ------------------------------------------------------------------------------------


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(change: Callable[[dict[str, Any]], object]) -> bytes:
    header, body = header_of(GOOD)
    change(header)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def with_common(change: Callable[[bytearray], object], *, sign: bool = True) -> bytes:
    """The small file with its common entry changed, and signed again."""
    _, body = header_of(GOOD)
    common = bytearray(body[4:])
    change(common)
    checksum = struct.pack("<I", zlib.crc32(common)) if sign else body[:4]
    raw = json.dumps(
        {
            "__metadata__": {"opq": "1"},
            "opq": {"dtype": "U8", "shape": [len(common) + 4], "data_offsets": [0, len(common) + 4]},
        }
    ).encode()
    return struct.pack("<Q", len(raw)) + raw + checksum + bytes(common)


def with_index(plan: Plan, places: list[Place], payloads: bytes = b"") -> bytes:
    """A file whose index says whatever it likes."""
    return with_head(index.encode(plan, places), payloads)


def with_head(head: bytes, payloads: bytes = b"") -> bytes:
    """A file with any bytes in place of its index."""
    body = struct.pack("<I", len(head)) + head + payloads
    return with_common(lambda common: common.__setitem__(slice(None), body))


def number(*values: int) -> bytes:
    """A stack of numbers."""
    writer = StackWriter()
    for value in values:
        writer.uint(value)
    return writer.finish()


def later() -> bytes:
    """A file of a later version of the format, which knows one element type more."""
    tensor = dataclasses.replace(kept("b", torch.zeros(2)), dtype="later")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_rows, "DTYPE_NAMES", (*index_rows.DTYPE_NAMES, "later"))
        return with_index(Plan(method="x", tensors=(tensor,)), [Place("raw", 8)], bytes(8))


def twice(plan: Plan) -> Plan:
    """A plan that its own check would refuse."""
    forged = plan.replace(method="x")
    object.__setattr__(forged, "tensors", plan.tensors * 2)
    return forged


def flip(position: int) -> Callable[[bytearray], None]:
    def change(common: bytearray) -> None:
        common[position] ^= 255

    return change


W, B = small()[0].tensors
SHARE = TensorPlan(name="s", shape=(2,), dtype="F32", action="share", reason="tied", like="b")
ONE = Plan(method="x", tensors=(B,))
BIG = planned("w", (1 << 20, 1 << 20))
WRONG: dict[str, tuple[bytes, type[FileFormatError], str]] = {
    "empty": (b"", TruncatedFileError, "no header"),
    "seven bytes": (GOOD[:7], TruncatedFileError, "no header"),
    "in the header": (GOOD[:60], TruncatedFileError, "ends in its header"),
    "one byte short": (GOOD[:-1], TruncatedFileError, "cut off"),
    "one byte long": (GOOD + b"\0", CorruptFileError, "goes on"),
    "text": (b"once upon a time there was a model", ForeignFileError, "not a safetensors file"),
    "pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c", ForeignFileError, "not a safetensors file"),
    "no json": (struct.pack("<Q", 4) + b"{{{{", ForeignFileError, "no JSON header"),
    "no metadata": (with_header(lambda h: h.pop("__metadata__")), ForeignFileError, "not written by opq"),
    "other metadata": (with_header(lambda h: h.update(__metadata__={"format": "pt"})), ForeignFileError, "by opq"),
    "newer": (with_header(lambda h: h.update(__metadata__={"opq": "2"})), NewerFormatError, "newer format"),
    "odd version": (with_header(lambda h: h.update(__metadata__={"opq": "one"})), CorruptFileError, "no version"),
    "version 0": (with_header(lambda h: h.update(__metadata__={"opq": "0"})), CorruptFileError, "no version"),
    "no index": (with_header(lambda h: h.update(x=h.pop("opq"))), CorruptFileError, "no index"),
    "twins": (
        GOOD[:8] + GOOD[8:].replace(b'"__metadata__"', b'"opq"         ', 1),
        CorruptFileError,
        "twice",
    ),
    "odd dtype": (with_header(lambda h: h["opq"].update(dtype="X8")), CorruptFileError, "wrongly"),
    "odd shape": (with_header(lambda h: h["opq"].update(shape=[-1])), CorruptFileError, "wrongly"),
    "shape of text": (with_header(lambda h: h["opq"].update(shape="abc")), CorruptFileError, "wrongly"),
    "shape against offsets": (with_header(lambda h: h["opq"].update(shape=[1])), CorruptFileError, "wrongly"),
    "dtype of lists": (with_header(lambda h: h["opq"].update(dtype=["U8"])), CorruptFileError, "wrongly"),
    "overlapping offsets": (
        with_header(lambda h: h.update(x={"dtype": "U8", "shape": [4], "data_offsets": [0, 4]})),
        CorruptFileError,
        "overlap or leave a gap",
    ),
    "huge offsets": (
        with_header(lambda h: h["opq"].update(shape=[1 << 40], data_offsets=[0, 1 << 40])),
        TruncatedFileError,
        "cut off",
    ),
    "gap": (
        with_header(lambda h: h["opq"].update(data_offsets=[1, h["opq"]["shape"][0] + 1])),
        CorruptFileError,
        "overlap or leave a gap",
    ),
    "unknown entry": (
        with_header(lambda h: h.update(x={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})),
        CorruptFileError,
        "does not name",
    ),
    "index checksum": (with_common(flip(9), sign=False), CorruptFileError, "wrong checksum"),
    "payload checksum": (with_common(flip(-1), sign=False), CorruptFileError, "wrong checksum"),
    "index length": (with_common(flip(3)), CorruptFileError, "longer than its entry"),
    "index too short": (with_common(lambda c: c.__delitem__(slice(3, None))), CorruptFileError, "too short"),
    "payloads too long": (with_index(ONE, [Place("raw", 8)], bytes(9)), CorruptFileError, "fill"),
    "payloads too short": (with_index(ONE, [Place("raw", 8)], bytes(7)), CorruptFileError, "fill"),
    "raw length": (with_index(ONE, [Place("raw", 7)], bytes(7)), CorruptFileError, "length"),
    "shared with a share": (
        with_index(
            Plan(method="x", tensors=(B, SHARE, planned("t", (3,), action="share", like="s"))),
            [Place("raw", 8), Place("share", 0), Place("share", 0)], bytes(8),
        ),
        CorruptFileError,
        "not like it",
    ),
    "bomb": (with_index(Plan(method="x", tensors=(BIG,)), [Place("grid", 0)]), FileTooLargeError, "more than it may"),
    "impossible shape": (
        with_index(Plan(method="x", tensors=(planned("w", (0, 1 << 39, 1 << 39)),)), [Place("grid", 0)]),
        CorruptFileError,
        "shape that no tensor has",
    ),
    "codes of integers": (
        with_index(Plan(method="x", tensors=(planned("w", (2,), "I32"),)), [Place("grid", 0)]),
        CorruptFileError,
        "has none",
    ),
    "scalar of many": (
        with_index(Plan(method="x", tensors=(kept("w", torch.zeros(2, dtype=int)),)), [Place("scalar", 0, number=3)]),
        CorruptFileError,
        "no scalar",
    ),
    "scalar too large": (
        with_index(
            Plan(method="x", tensors=(kept("w", torch.zeros((), dtype=torch.int8)),)), [Place("scalar", 0, number=300)]
        ),
        CorruptFileError,
        "no scalar",
    ),
    "log of nothing": (
        with_index(Plan(method="x", tensors=(kept("w", torch.zeros(2)),)), [Place("log", 0, number=0)]),
        CorruptFileError,
        "no codes an octave",
    ),
    "two of one name": (with_index(twice(ONE), [Place("raw", 8)] * 2, bytes(16)), CorruptFileError, "twice"),
    "a type of the future": (later(), NewerFormatError, "unknown element type"),
    "more tensors than bytes": (with_head(number(1 << 33)), CorruptFileError, "more tensors than the index can name"),
    "more text than bytes": (with_head(number(1, 1 << 30)), CorruptFileError, "text is longer"),
    "fewer names than tensors": (with_head(number(3, 0)), CorruptFileError, "fewer names"),
    "own entry that is not there": (
        with_index(ONE, [Place("raw", 8, checksum=5)]),
        CorruptFileError,
        "no entry like the index says",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_each_way_to_be_wrong_has_its_error(how: str) -> None:
    data, error, fact = WRONG[how]
    with pytest.raises(FileFormatError, match=fact) as raised:
        Reader(in_memory(data))
    assert type(raised.value) is error


def test_a_kind_that_an_older_reader_does_not_know_is_newer_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index has 16 numbers of kinds, and all are given away: none is of the future to this reader."""
    assert len(KIND_NAMES) == len(KIND_WEIGHTS) == 16
    last = planned("w", (2, 2), codebook=KIND_NAMES[-1])
    data = with_index(Plan(method="x", tensors=(last,)), [Place(KIND_NAMES[-1], 8)], bytes(8))
    Reader(in_memory(data)).close()
    monkeypatch.setattr(index_rows, "KIND_NAMES", KIND_NAMES[:-1])
    with pytest.raises(NewerFormatError, match="an unknown kind of tensor: got 15, wanted below 15"):
        Reader(in_memory(data))


@pytest.mark.parametrize(
    ("place", "payload", "tensor", "fact"),
    [
        ("grid", b"\x01" * 50, W, "tensor 'w': "),
        ("table", b"\x02\x01", planned("w", (4,), codebook="table"), "tensor 'w': a codebook is cut off"),
        ("table", b"\x02\xff\x00\x01\x00", planned("w", (4,), codebook="table"), "impossible size"),
        (
            "table",
            b"\x02\x01\x00\x01\x00\x00\x00" + b"\x6a\x89\x1a\x1e",
            planned("w", (4,), codebook="table"),
            "beyond",
        ),
        ("product", b"\x03\x01\x00\x01\x00\x00\x00\x00", planned("w", (4,), codebook="product"), "impossible size"),
        ("raw", b"\x01\x02", kept("w", torch.zeros(2, dtype=torch.bool)), "neither 0 nor 1"),
    ],
)
def test_damaged_payloads_name_their_tensor(place: str, payload: bytes, tensor: TensorPlan, fact: str) -> None:
    data = with_index(Plan(method="x", tensors=(tensor,)), [Place(place, len(payload))], payload)
    with Reader(in_memory(data)) as opened, pytest.raises(CorruptFileError, match=fact):
        opened.tensor("w")


def test_the_limit_on_expansion_can_be_raised() -> None:
    zeros = Plan(method="x", tensors=(planned("w", (6000, 6000)),))
    data = with_index(zeros, [Place("grid", 4 * 9)], bytes(4 * 9))
    with pytest.raises(FileTooLargeError, match="max_expansion="):
        Reader(in_memory(data))
    with Reader(in_memory(data), max_expansion=1e9) as opened:
        assert not opened.tensor("w").any()


def test_no_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="No such file"):
        Reader(tmp_path / "nothing.opq.safetensors")
    with pytest.raises(MissingFileError, match=r"cannot open .*: got a folder, wanted a file"):
        Reader(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MissingFileError, match=r"cannot open .*: got a pipe, wanted a file"):
        Reader(tmp_path / "pipe")


def test_a_closed_reader_gives_nothing(tmp_path: Path) -> None:
    """A tensor of zeros has no bytes, so that nothing read is not nothing decoded."""
    path = tmp_path / "m.opq.safetensors"
    write_file(path, *small())
    opened = Reader(path)
    opened.close()
    assert opened.names == ("w", "b")
    for ask in (opened.tensor, opened.codes):
        with pytest.raises(ClosedReaderError, match="open the file again"):
            ask("w")
    with pytest.raises(ClosedReaderError):
        opened.state_dict()


def test_an_own_entry_has_its_own_checksum(tmp_path: Path) -> None:
    big = torch.randn(20000)
    data = bytearray(bytes_of(pack(Plan(method="x", tensors=(kept("k", big),)), [Raw("k", big)])))
    at = data.index(stored.raw_bytes(big)[:16])
    data[at] ^= 1
    with Reader(in_memory(bytes(data))) as opened, pytest.raises(CorruptFileError, match="tensor 'k': wrong checksum"):
        opened.tensor("k")


# --- any bytes ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80))
def test_any_bytes_are_an_index_or_refused(data: bytes) -> None:
    try:
        plan, places = index.decode(data)
    except FileFormatError:
        return
    assert len(plan) == len(places)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_text_or_refused(data: bytes) -> None:
    try:
        assert len(text.take(Stack(data), 500).encode()) <= 500
    except CorruptFileError:
        return


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(st.sampled_from("ab.\n1é"), max_size=30), max_size=8).map("layer.".join))
def test_texts_come_back(words: str) -> None:
    writer = StackWriter()
    text.put(writer, words)
    stack = Stack(writer.finish())
    assert text.take(stack, 1 << 20) == words
    stack.finish()
