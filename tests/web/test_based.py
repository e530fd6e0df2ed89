"""`opq.js` and files of differences: added to their base to the very same numbers, and refused without it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import make
import node
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import GOLDEN
from plans import planned
from safetensors.torch import save_file
from web_helpers import assert_same, laplace
from web_server import site

import opq
from opq.base.format_v1 import CODED_TYPES
from opq.file.base import open_base
from opq.file.reader import Reader
from opq.file.stored import Fine, Grid, Stored, Table, Trellis
from opq.file.writer import pack
from opq.plan import Plan, TensorPlan
from opq.quantizing.trellis import numbers

pytestmark = pytest.mark.skipif(node.missing() is not None, reason=str(node.missing()))

FILE = make.BASED / "new.opq.safetensors"
ALL = ("tensor", "stream", "codes")
HERE = {"workers": 0}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the golden file, as an ordinary safetensors file."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file(make.base(), path)
    return path


@pytest.mark.parametrize("source", ["address", "bytes", "stream"])
def test_the_golden_file_is_read_to_the_same_numbers(js: node.Node, dense: Path, source: str) -> None:
    base = {"from": source, "at": str(dense)}
    found = js.ask(FILE.read_bytes(), base=base, ways=ALL, options=HERE)
    with Reader(FILE, base=make.base()) as reader:
        assert_same(found, reader)
        assert reader.base is not None
        assert found["base"] == {"digest": reader.base.digest, "size": reader.base.size}


def test_a_base_at_an_address_is_fetched_once(js: node.Node, dense: Path) -> None:
    files = {"new": FILE.read_bytes(), "base": dense.read_bytes()}
    with site(files) as server, Reader(FILE, base=make.base()) as reader:
        base = {"from": "url", "at": server.url("base")}
        assert_same(js.ask(**{"from": "url"}, url=server.url("new"), base=base, ways=ALL), reader)
        assert [wanted for name, wanted in server.asked if name == "base"] == [None]


def test_an_opq_file_and_shards_are_bases_by_what_they_decode_to(js: node.Node, tmp_path: Path) -> None:
    old = {"a": torch.randn(64, 40), "b": torch.randn(30).half(), "\U0001d400": torch.ones(3), "\ufb01": torch.ones(2)}
    new = {name: value + 0.01 * torch.randn(value.shape).to(value) for name, value in old.items()}
    opq.compress(old, bits=8).save(tmp_path / "old.opq.safetensors")
    opq.compress(new, bits=3, base=tmp_path / "old.opq.safetensors").save(tmp_path / "new.opq.safetensors")
    shards = [str(path) for path in (GOLDEN / "v1/shards").iterdir()]
    opq.compress(make.two_matrices(), bits=3, base=GOLDEN / "v1/shards").save(tmp_path / "shards.opq.safetensors")
    for file, origin, bases in (
        ("new", tmp_path / "old.opq.safetensors", [("model", None), ("address", None), ("bytes", None)]),
        ("shards", GOLDEN / "v1/shards", [("files", shards)]),
    ):
        path = tmp_path / f"{file}.opq.safetensors"
        with Reader(path, base=origin) as reader:
            for source, at in bases:
                base = {"from": source, "at": at or str(origin)}
                assert_same(js.ask(path.read_bytes(), base=base, ways=ALL), reader)


def test_a_folder_of_ordinary_shards_is_a_base_by_its_index(js: node.Node, tmp_path: Path) -> None:
    base = make.base()
    where = {}
    for k, (name, value) in enumerate(base.items()):
        file = f"model-{k}.safetensors"
        save_file({name: value}, tmp_path / file)
        where[name] = file
    assert len(where) > 1
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    every = [str(path) for path in tmp_path.iterdir()]
    with Reader(FILE, base=base) as reader:
        for source, at in (("address", str(index)), ("files", every)):
            assert_same(js.ask(FILE.read_bytes(), base={"from": source, "at": at}, ways=ALL, options=HERE), reader)
    (tmp_path / where.popitem()[1]).unlink()
    error = js.ask(FILE.read_bytes(), base={"from": "address", "at": str(index)}, ways=[])["error"]
    assert (error["code"], error["ours"]) == ("missing", True)
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"w": "../w.safetensors"}}))
    error = js.ask(FILE.read_bytes(), base={"from": "address", "at": str(index)}, ways=[])["error"]
    assert (error["code"], error["ours"]) == ("corrupt", True)
    assert "names a file outside its folder" in error["message"]


def test_without_its_base_plan_and_codes_are_there_and_weights_are_refused(js: node.Node) -> None:
    with Reader(FILE) as reader:
        found = js.ask(FILE.read_bytes(), ways=["codes"], options=HERE)
        assert_same(found, reader)
    assert len(found["codes"]) == 2
    error = js.ask(FILE.read_bytes(), one="w")["error"]
    assert (error["code"], error["ours"], error["tensor"]) == ("base", True, "w")
    wanted = f"got no base, wanted {found['base']['size']} bytes of tensors, SHA-256 {found['base']['digest']}"
    assert f"the file holds differences to another network: {wanted}. Pass the network" in error["message"]


@pytest.mark.parametrize("change", ["value", "name", "type", "more"])
def test_another_base_is_refused_before_a_weight_is_given(js: node.Node, change: str, tmp_path: Path) -> None:
    base = make.base()
    if change == "value":
        base["other"][0] += 1
    elif change == "name":
        base["another"] = base.pop("other")
    elif change == "type":
        base["other"] = base["other"].float()
    else:
        base["more"] = torch.zeros(1)
    save_file(base, tmp_path / "b.safetensors")
    found = js.ask(FILE.read_bytes(), base={"from": "address", "at": str(tmp_path / "b.safetensors")}, ways=[])
    assert (found["error"]["code"], found["error"]["ours"]) == ("base", True)
    assert f"SHA-256 {open_base(base).name.digest}, wanted" in found["error"]["message"]


@pytest.mark.parametrize(
    ("data", "code", "fact"),
    [
        (b"<!doctype html><title>404</title>", "foreign", "is not a safetensors file"),
        (b"", "truncated", "has no header"),
        (None, "missing", "cannot open"),
    ],
)
def test_a_base_that_is_no_network_is_said(
    js: node.Node, data: bytes | None, code: str, fact: str, tmp_path: Path
) -> None:
    if data is not None:
        (tmp_path / "base").write_bytes(data)
    found = js.ask(FILE.read_bytes(), base={"from": "address", "at": str(tmp_path / "base")}, ways=[])
    assert (found["error"]["code"], found["error"]["ours"]) == (code, True)
    assert fact in found["error"]["message"]
    assert "base" in found["error"]["message"]


@pytest.mark.parametrize("cut", [1, 5])
def test_a_base_that_is_cut_off_or_goes_on_is_refused(js: node.Node, dense: Path, cut: int, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(dense.read_bytes()[:-cut])
    found = js.ask(FILE.read_bytes(), base={"from": "address", "at": str(tmp_path / "cut")}, ways=[])
    assert found["error"]["code"] == "truncated"
    (tmp_path / "more").write_bytes(dense.read_bytes() + b"\0" * cut)
    found = js.ask(FILE.read_bytes(), base={"from": "address", "at": str(tmp_path / "more")}, ways=[])
    assert found["error"]["code"] == "corrupt"


@pytest.mark.parametrize(
    "name",
    ["", "0" * 64, "0" * 63 + " 5", "0" * 64 + " 05", "0" * 64 + " 5\\n", "A" * 64 + " 5", "0" * 64 + " " + "9" * 19],
)
def test_a_file_that_names_its_base_wrongly_is_corrupt_as_in_python(js: node.Node, name: str) -> None:
    data = FILE.read_bytes()
    with Reader(FILE) as reader:
        text = str(reader.base).encode()
    at = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + at].replace(text, name.encode())
    changed = len(header).to_bytes(8, "little") + header + data[8 + at :]
    error = js.ask(changed)["error"]
    assert (error["code"], error["fact"] if "fact" in error else error["message"][:31]) == (
        "corrupt", "the file does not name its base",
    )  # fmt: skip
    without = header.replace(b'"opq_base"', b'"opq_bas"')
    error = js.ask(len(without).to_bytes(8, "little") + without + data[8 + at :])["error"]
    assert (error["code"], "is of a newer format: got 2, wanted at most 1" in error["message"]) == ("newer", True)


def test_an_update_is_said_to_be_one(js: node.Node) -> None:
    header = b'{"__metadata__":{"opq_update":"1"}}'
    error = js.ask(len(header).to_bytes(8, "little") + header)["error"]
    assert error["code"] == "foreign"
    assert "is an update, not a network" in error["message"]
    assert "opq apply" in error["message"]


def changed(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], step: float) -> tuple[Plan, list[Stored]]:
    """A tensor of each kind that is added to a base, one of a kind that is not, and one that shares."""
    whole: dict[str, Any] = {"codebook": "table", "step": 0.0, "threshold": 0.0, "rounding": 0.5}
    kept = {"action": "keep", "reason": "kept", "shape": shape, "dtype": dtype}
    tied = TensorPlan(name="tied", action="share", reason="tied", shape=shape, dtype=dtype, like="grid")
    book = rng.normal(size=5).astype(np.float32)
    pairs: list[tuple[TensorPlan, Stored]] = [
        (planned("grid", shape, dtype, step=step), Grid("grid", laplace(rng, *shape, scale=3))),
        (
            planned("trellis", shape, dtype, codebook="trellis", step=step),
            Trellis("trellis", numbers(laplace(rng, *shape, scale=2))),
        ),
        (TensorPlan(name="fine", **kept), Fine("fine", laplace(rng, *shape, scale=90), step)),
        (planned("table", shape, dtype, **whole), Table("table", book, rng.integers(0, 5, shape))),
        (planned("absent", shape, dtype, step=step), Grid("absent", laplace(rng, *shape, scale=3))),
        (planned("reshaped", shape, dtype, step=step), Grid("reshaped", laplace(rng, *shape, scale=3))),
        (planned("whole", shape, dtype, step=step), Grid("whole", laplace(rng, *shape, scale=3))),
    ]
    return Plan(method="rd", tensors=(*(plan for plan, _ in pairs), tied)), [stored for _, stored in pairs]


TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(CODED_TYPES),
    old=st.sampled_from(TYPES),
    shape=st.sampled_from([(), (7,), (5, 3), (300, 4), (2, 3, 2, 2)]),
    step=st.floats(2.0**-60, 2.0**15),
)
def test_differences_are_added_to_the_same_numbers(
    js: node.Node, tmp_path: Path, seed: int, dtype: str, old: torch.dtype, shape: tuple[int, ...], step: float
) -> None:
    rng = np.random.default_rng(seed)
    base = {
        name: torch.from_numpy(np.asarray(step * rng.normal(scale=4, size=shape))).to(old)
        for name in ("grid", "trellis", "fine", "table")
    }
    base["reshaped"] = torch.zeros(*shape, 2, dtype=old)
    base["whole"] = torch.ones(shape, dtype=torch.int32)
    save_file(base, tmp_path / "base.safetensors")
    packed = pack(*changed(rng, dtype, shape, step), base=open_base(base).name)
    data = b"".join(packed.parts)
    with Reader(packed, base=base) as reader:
        found = js.ask(data, base={"from": "address", "at": str(tmp_path / "base.safetensors")}, ways=ALL, options=HERE)
        assert_same(found, reader)
        for form, wanted in (("float32", torch.float32), ("float16", torch.float16)):
            told = js.ask(data, base={"from": "address", "at": str(tmp_path / "base.safetensors")}, **{"as": form})
            for one in told["tensor"]:
                assert one["digest"] == node.digest(reader.tensor(one["name"]).to(wanted)), one


def test_the_digest_of_a_base_is_that_of_any_length(js: node.Node, tmp_path: Path) -> None:
    """Padding of SHA-256 by every number of bytes in the last block."""
    for length in range(1, 140):
        base = {"w": torch.arange(length, dtype=torch.uint8)}
        save_file(base, tmp_path / "base.safetensors")
        error = js.ask(FILE.read_bytes(), base={"from": "address", "at": str(tmp_path / "base.safetensors")}, ways=[])[
            "error"
        ]
        told = hashlib.sha256(f"w\0U8\0{length}\0".encode() + bytes(range(length))).hexdigest()
        assert f"SHA-256 {told}, wanted" in error["message"]
