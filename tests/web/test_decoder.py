"""`opq.js` in Node: the very same numbers as Python, from every kind of file and of source."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import node
import numpy as np
import pytest
import torch
from file_helpers import with_index
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import narrowed
from paths import GOLDEN
from plans import kept, planned
from web_helpers import assert_same, laplace, made
from web_server import site

import opq
from opq.base.dtypes import DTYPES
from opq.base.format_v1 import CODED_TYPES, KIND_NAMES
from opq.coding import entropy
from opq.errors import CorruptFileError
from opq.file.folder_reader import INDEX, FolderReader
from opq.file.payload import Place
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
    TrellisTurned,
    TrellisTurnedRows,
    head_of_rows,
)
from opq.file.writer import pack
from opq.plan import Plan, TensorPlan
from opq.quantizing.trellis import numbers
from opq.quantizing.turned import Turn

pytestmark = pytest.mark.skipif(node.missing() is not None, reason=str(node.missing()))

FILES = sorted(GOLDEN.glob("v1/*.safetensors"))
ALL = ("tensor", "stream", "codes")
HERE = {"workers": 0}
SMALL = (1 << 26, 1 << 10, 1 << 9)
"""Limits by which files of a few kB have several chunks: as of the fuzzer, but not of memory."""
USUAL = (1 << 26, 1 << 19, 1 << 22)


# --- golden files ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=[p.name.split(".")[0] for p in FILES])
def test_a_golden_file_is_read_to_the_same_numbers(js: node.Node, path: Path) -> None:
    with Reader(path) as reader:
        assert_same(js.ask(path.read_bytes(), ways=ALL, options=HERE), reader)


def test_golden_files_have_every_kind() -> None:
    kinds = set()
    for path in FILES:
        with Reader(path) as reader:
            kinds |= {reader.kind(name) for name in reader.names}
    assert kinds | {"share"} == set(KIND_NAMES)


@pytest.mark.parametrize("address", ["index", "folder", "files"])
def test_a_folder_of_shards_is_read_like_one_file(js: node.Node, address: str) -> None:
    folder = GOLDEN / "v1/shards"
    with FolderReader(folder) as reader:
        if address == "files":
            found = js.ask(**{"from": "files"}, paths=[str(p) for p in folder.iterdir()], ways=ALL, options=HERE)
        else:
            with site({f"shards/{p.name}": p.read_bytes() for p in folder.iterdir()}) as server:
                url = server.url("shards/" + (INDEX if address == "index" else ""))
                found = js.ask(**{"from": "url"}, url=url, ways=ALL, options=HERE)
        assert_same(found, reader)
        assert len(found["codes"]) == 4


@pytest.mark.parametrize("source", ["bytes", "buffer", "blob", "stream", "response", "path", "relative"])
@pytest.mark.parametrize("name", ["entries", "pages"])
def test_every_kind_of_source_gives_the_same(js: node.Node, source: str, name: str) -> None:
    path = GOLDEN / f"v1/{name}.opq.safetensors"
    data = b"" if source in ("path", "relative") else path.read_bytes()
    found = js.ask(data, **{"from": source}, path=str(path), pieces=61, ways=ALL, options=HERE)
    with Reader(path) as reader:
        assert_same(found, reader)
    loaded = [now["loaded"] for now in found["progress"]]
    if source == "stream":
        assert loaded == sorted(loaded)
        assert loaded[-1] == len(data) == found["progress"][-1]["total"]


# --- files just made ---------------------------------------------------------------------------


def turned(rng: np.random.Generator, turn: Turn, shape: tuple[int, ...], scale: float) -> list[Stored]:
    """A tensor of each kind whose payload says how it is a matrix."""
    rows, columns = turn.shape(shape)
    n = turn.back(numbers(np.clip(laplace(rng, rows, columns, scale=scale), -16383, 16383)), shape)
    e, f = (rng.integers(-9, 9, number, np.int16) for number in (rows, columns))
    return [
        TrellisTurned(f"turned{turn.front}", turn, n),
        GridTurnedRows(f"turned{turn.front}.rows", turn, n >> 1, e),
        TrellisTurnedRows(f"turned{turn.front}.both", turn, n, e),
        GridColumns(f"turned{turn.front}.columns", turn, n >> 1, e, f),
        TrellisColumns(f"turned{turn.front}.all", turn, n, e, -f),
    ]


def on_every_kind(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], scale: float) -> bytes:
    """A file with a tensor of each kind that has codes."""
    size = math.prod(shape)
    listed: dict[str, Any] = {"step": 0.0, "threshold": 0.0, "rounding": 0.5}
    book, vectors = np.sort(rng.normal(size=7)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    kind = {"action": "keep", "reason": "kept", "shape": shape, "dtype": dtype}
    return made(
        (
            planned("grid", shape, dtype, step=float(rng.uniform(1e-3, 1))),
            Grid("grid", laplace(rng, *shape, scale=scale)),
        ),
        (planned("tiny", shape, dtype, step=2.0**-20), Grid("tiny", laplace(rng, *shape, scale=scale))),
        (planned("huge", shape, dtype, step=1e36), Grid("huge", laplace(rng, *shape, scale=scale))),
        (
            planned("trellis", shape, dtype, codebook="trellis", step=0.01),
            Trellis("trellis", numbers(np.clip(laplace(rng, *shape, scale=scale), -16383, 16383))),
        ),
        *(
            (planned(item.name, shape, dtype, codebook=item.kind, step=0.01), item)
            for front in range(len(shape))
            for item in turned(rng, Turn(front, 1), shape, scale)
        ),
        (planned("table", shape, dtype, codebook="table", **listed), Table("table", book, rng.integers(0, 7, shape))),
        (
            planned("product", shape, dtype, codebook="product", **listed),
            Product("product", vectors, rng.integers(0, 5, -(-size // 3))),
        ),
        (TensorPlan(name="fine", **kind), Fine("fine", laplace(rng, *shape, scale=100 * scale), 0.001953125)),
        (TensorPlan(name="log", **kind), Log("log", rng.integers(-80, 80, shape).astype(np.int16), 2)),
    )


@pytest.mark.parametrize("dtype", CODED_TYPES)
@narrowed(large=SMALL[1], chunk=SMALL[2])
def test_every_kind_in_every_type_that_codes_stand_for(js: node.Node, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "f.opq.safetensors"
    for shape, scale in (((300, 11), 1.5), ((3, 5, 2, 2), 40.0), ((400, 3), 3000.0), ((5,), 0.3), ((1, 7, 9), 0.0)):
        path.write_bytes(on_every_kind(np.random.default_rng(3), dtype, shape, scale))
        with Reader(path) as reader:
            found = js.ask(path.read_bytes(), narrowed=SMALL, ways=ALL, options=HERE)
            assert_same(found, reader)
            for form, wanted in (("float32", torch.float32), ("float16", torch.float16)):
                for told in js.ask(path.read_bytes(), **{"as": form}, options=HERE)["tensor"]:
                    assert told["digest"] == node.digest(reader.tensor(told["name"]).to(wanted)), (told, form)


def test_tensors_that_are_kept_in_every_type_and_form(js: node.Node, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    pairs = []
    for name, dtype in DTYPES.items():
        raw = torch.from_numpy(rng.integers(0, 2 if name == "BOOL" else 256, 16 * dtype.itemsize, dtype=np.uint8))
        tensor = raw.view(dtype).reshape(4, 4)
        if dtype.is_floating_point:  # NaN has no bits that all agree on
            tensor = torch.where(tensor.float().isnan(), torch.ones((), dtype=dtype), tensor)
        pairs.append((kept(name, tensor), Raw(name, tensor)))
    for dtype in (torch.int64, torch.uint8, torch.int16):
        pairs.append((kept(f"s{dtype}", torch.tensor(5, dtype=dtype)), Raw(f"s{dtype}", torch.tensor(5, dtype=dtype))))
    near = torch.tensor([2**53 + 1, -(2**54) - 3, 2**62 + 2**38 + 1, 2**24 + 1, -1])
    pairs.append((kept("near", near), Raw("near", near)))
    path = tmp_path / "f.opq.safetensors"
    path.write_bytes(made(*pairs))
    with Reader(path) as reader:
        assert_same(js.ask(path.read_bytes(), ways=("tensor", "stream")), reader)
        for name in (n for n in reader.names if n != "C64"):
            for form, wanted in (("float32", torch.float32), ("float16", torch.float16)):
                told = js.ask(path.read_bytes(), one=name, **{"as": form})["one"]
                assert told["digest"] == node.digest(reader.tensor(name).to(wanted)), (name, form)
    for name, form, fact in (
        ("C64", "float32", "complex"),
        ("U8", "codes", "no codes"),
        ("F32", "int4", "no such form"),
    ):
        error = js.ask(path.read_bytes(), one=name, **{"as": form})["error"]
        assert (error["code"], error["tensor"]) == ("mismatch", name)
        assert fact in error["message"]


def test_what_compress_writes_is_read_to_the_same_numbers(js: node.Node, tmp_path: Path) -> None:
    """Entries of their own, shared tensors, a trellis of more than 128 rows, half precision, BatchNorm."""
    rng = torch.Generator().manual_seed(0)
    state = {
        "wide": torch.distributions.Laplace(0.0, 1.0).sample((300, 900)),
        "half": torch.randn(200, 400, generator=rng).half(),
        "brain": torch.randn(64, 64, generator=rng).bfloat16(),
        "bias": torch.randn(300, generator=rng),
        "ids": torch.arange(9_000),
        "bn.weight": torch.rand(64, generator=rng) + 0.5,
        "bn.bias": torch.randn(64, generator=rng),
        "bn.running_mean": torch.randn(64, generator=rng),
        "bn.running_var": torch.rand(64, generator=rng) + 0.1,
        "bn.num_batches_tracked": torch.tensor(12),
    }
    state["tied"] = state["wide"]
    path = tmp_path / "f.opq.safetensors"
    opq.compress(state, bits=6, trellis=True).save(path)
    with Reader(path) as reader:
        assert {"trellis", "share", "raw", "fine", "log", "scalar"} <= {reader.kind(name) for name in reader.names}
        assert_same(js.ask(**{"from": "path"}, path=str(path), narrowed=USUAL, ways=ALL), reader)
        loaded = opq.load_state_dict(path)
        for told in js.ask(path.read_bytes())["tensor"]:
            assert told["digest"] == node.digest(loaded[told["name"]])


def test_tensors_of_several_chunks_with_and_without_workers(js: node.Node, tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(0), (1100, 4000)
    scale = np.exp2(np.arange(1100) % 3)[:, None] * np.exp2(np.arange(4000) % 2)
    sparse = np.zeros(shape, np.int16)
    sparse[::9, ::7] = 1
    listed: dict[str, Any] = {"codebook": "product", "step": 0.0, "threshold": 0.0, "rounding": 0.5}
    book, vectors = rng.normal(size=(31, 2)).astype(np.float32), rng.integers(0, 31, -(-2101 * 4001 // 2))
    exponents, across = (rng.integers(-9, 9, number, np.int16) for number in shape)
    path_codes = numbers(laplace(rng, *shape, scale=1.5))
    data = made(
        (planned("classes", shape, "F16"), Grid("classes", (rng.laplace(size=shape) * scale).astype(np.int16))),
        (planned("wide", shape), Grid("wide", laplace(rng, *shape, scale=60))),
        (planned("sparse", shape, codebook="grid-rows"), GridRows("sparse", sparse, exponents)),
        (planned("path", shape, codebook="trellis"), Trellis("path", path_codes)),
        (
            planned("turned", shape[::-1], "F16", codebook="trellis-turned"),
            TrellisTurned("turned", Turn(0, 1), path_codes.T.copy()),
        ),
        (
            planned("columns", shape, "BF16", codebook="grid-columns"),
            GridColumns("columns", Turn(1, 1), sparse, exponents, across),
        ),
        (
            planned("columns.turned", shape[::-1], codebook="trellis-columns"),
            TrellisColumns("columns.turned", Turn(0, 1), path_codes.T.copy(), exponents, across),
        ),
        (planned("product", (2101, 4001), **listed), Product("product", book, vectors)),
        (planned("same", shape), Grid("same", np.full(shape, -2, np.int16))),
    )
    path = tmp_path / "f.opq.safetensors"
    path.write_bytes(data)
    with Reader(path) as reader:
        for options in (HERE, {"workers": 2}):
            found = js.ask(**{"from": "path"}, path=str(path), narrowed=USUAL, ways=ALL, options=options)
            assert_same(found, reader)
        found = js.ask(**{"from": "path"}, path=str(path), **{"as": "float16"}, options={"workers": 2})
        for told in found["tensor"]:
            assert told["digest"] == node.digest(reader.tensor(told["name"]).half())


shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple) | st.tuples(st.integers(1, 300), st.integers(1, 12))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=shapes,
    dtype=st.sampled_from(CODED_TYPES),
    scale=st.floats(0, 9).map(lambda x: 2**x - 1),
    step=st.floats(2.0**-140, 1e38, allow_subnormal=False),
)
def test_any_codes_are_read_to_the_same_numbers(
    js: node.Node, seed: int, shape: tuple[int, ...], dtype: str, scale: float, step: float
) -> None:
    rng = np.random.default_rng(seed)
    with narrowed(large=SMALL[1], chunk=SMALL[2]):
        channels = np.exp2(rng.integers(0, 4, shape[:1])).reshape(-1, *[1] * (len(shape) - 1)) if shape else 1
        codes = np.asarray(np.clip(laplace(rng, *shape, scale=scale) * channels, -32767, 32767).astype(np.int16))
        tensors, items = [planned("w", shape, dtype, step=step)], [Grid("w", codes)]
        if shape and 1e-30 < step < 1e30:
            tensors.append(planned("rows", shape, dtype, step=step, codebook="grid-rows"))
            items.append(GridRows("rows", codes, rng.integers(-30, 31, shape[0], np.int16)))
            turn = Turn(front := int(rng.integers(len(shape))), int(rng.integers(1, len(shape) - front + 1)))
            e, f = (rng.integers(-30, 31, number, np.int16) for number in turn.shape(shape))
            tensors.append(planned("columns", shape, dtype, step=step, codebook="grid-columns"))
            items.append(GridColumns("columns", turn, codes, e, f))
        packed = pack(Plan(method="rd", tensors=tuple(tensors)), items)
        with Reader(packed) as reader:
            assert_same(js.ask(b"".join(packed.parts), narrowed=SMALL, ways=ALL, options=HERE), reader)


def exponents(*values: int) -> bytes:
    return head_of_rows(np.array(values, np.int16))


ROWS, CODES = exponents(0, 2), entropy.encode(np.ones((2, 3), np.int16))


@pytest.mark.parametrize(
    ("payload", "fact"),
    [
        (b"\1\1" + exponents(0, 400, -400) + ROWS + CODES, ""),
        (b"\1", "axes of the inputs that a tensor has not"),
        (b"\1\2" + exponents(0, 1, 2) + ROWS + CODES, "axes of the inputs that a tensor has not"),
        (b"\1\1" + exponents(0, 1, 2)[:3], "exponents of columns are cut off"),
        (b"\1\1" + exponents(0, 1, 2)[:-1], "exponents of columns are cut off"),
        (b"\1\1" + exponents(0, 401, 2) + ROWS + CODES, "a column scaled too far"),
        (b"\1\1" + exponents(0, 1, -401) + ROWS + CODES, "a column scaled too far"),
        (b"\1\1" + exponents(0, 1, 2) + ROWS[:-1], "exponents of rows are cut off"),
        (b"\1\1" + exponents(0, 1, 2) + exponents(0, 401) + CODES, "a row scaled too far"),
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("kind", ["grid-columns", "trellis-columns"])
def test_wrong_exponents_are_refused_as_in_python(
    js: node.Node, kind: str, payload: bytes, fact: str, tmp_path: Path
) -> None:
    plan = Plan(method="rd", tensors=(planned("w", (2, 3), codebook=kind, step=0.5),))
    path = tmp_path / "f.opq.safetensors"
    path.write_bytes(with_index(plan, [Place(kind, len(payload))], payload))
    found = js.ask(path.read_bytes(), one="w")
    with Reader(path) as reader:
        if not fact:
            assert found["one"]["digest"] == node.digest(reader.tensor("w"))
            return
        with pytest.raises(CorruptFileError, match=fact):
            reader.tensor("w")
    assert (found["error"]["code"], found["error"]["tensor"]) == ("corrupt", "w")
    assert fact in found["error"]["message"]


def test_floats_of_every_size_become_the_same_bits(js: node.Node, tmp_path: Path) -> None:
    """Rounding, ties, subnormal and largest numbers of the types that JavaScript has no arrays for."""
    rng = np.random.default_rng(11)
    values = np.concatenate(
        [
            rng.normal(size=2000) * np.exp2(rng.integers(-150, 128, 2000)),
            np.exp2(rng.integers(-30, 17, 500)) * (1 + rng.integers(0, 4096, 500) / 4096),
            [0.0, -0.0, 65504, 65519.99, 65520, 448, 464, 57344, 61440, 3.4e38, 2.0**-149, 2.0**-25, 1.5 * 2.0**-25],
        ]
    ).astype(np.float32)
    listed: dict[str, Any] = {"codebook": "table", "step": 0.0, "threshold": 0.0, "rounding": 0.5}
    indices = np.arange(len(values))
    data = made(
        *((planned(dtype, values.shape, dtype, **listed), Table(dtype, values, indices)) for dtype in CODED_TYPES)
    )
    path = tmp_path / "f.opq.safetensors"
    path.write_bytes(data)
    with Reader(path) as reader:
        assert_same(js.ask(data, narrowed=USUAL), reader)
        for told in js.ask(data, **{"as": "float16"})["tensor"]:
            assert told["digest"] == node.digest(reader.tensor(told["name"]).half()), told
