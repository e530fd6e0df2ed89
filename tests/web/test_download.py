"""`opq.js` over HTTP: ranges where there are some, tensors while the file is coming, signals, servers that fail."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import node
import numpy as np
import pytest
from plans import planned
from web_helpers import assert_same, laplace, made
from web_server import site

from opq.file.reader import Reader
from opq.file.stored import Grid

pytestmark = pytest.mark.skipif(node.missing() is not None, reason=str(node.missing()))

URL = {"from": "url"}
FIRST = 1 << 16
"""Bytes that the module asks for before it knows anything."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of several entries."""
    rng = np.random.default_rng(0)
    shapes = {"a": (900, 300), "b": (700, 500), "c": (400, 900), "small": (30, 30)}
    data = made(*((planned(name, shape), Grid(name, laplace(rng, *shape, scale=3))) for name, shape in shapes.items()))
    path = tmp_path_factory.mktemp("web") / "f.opq.safetensors"
    path.write_bytes(data)
    assert path.stat().st_size > 6 * FIRST
    return path


@pytest.mark.parametrize(("ranges", "told"), [(True, True), (True, False), (False, True)])
def test_tensors_come_from_a_server_with_ranges_and_from_one_without(
    js: node.Node, path: Path, ranges: bool, told: bool
) -> None:
    data = path.read_bytes()
    with site({"f.safetensors": data}, ranges=ranges, told=told) as server, Reader(path) as reader:
        found = js.ask(**URL, url=server.url("f.safetensors"), ways=["tensor", "stream", "codes"])
        assert_same(found, reader)
        asked = [wanted for _, wanted in server.asked]
        assert asked[0] == f"bytes=0-{FIRST - 1}"
        assert (len(asked) > 1) == ranges


def test_a_stream_costs_three_requests_and_no_byte_of_the_rest_twice(js: node.Node, path: Path) -> None:
    data = path.read_bytes()
    with site({"f.safetensors": data}) as server:
        found = js.ask(**URL, url=server.url("f.safetensors"), ways=["stream"])
        assert len(server.asked) == 3  # the beginning, the index, all entries
    loaded = [now["loaded"] for now in found["progress"]]
    assert loaded == sorted(loaded)
    assert len(data) <= loaded[-1] <= len(data) + FIRST
    assert found["progress"][-1]["total"] == len(data)
    assert [t["name"] for t in found["stream"]] == ["a", "b", "c", "small"]


def test_one_tensor_costs_its_own_bytes(js: node.Node, path: Path) -> None:
    with site({"f.safetensors": path.read_bytes()}) as server, Reader(path) as reader:
        found = js.ask(**URL, url=server.url("f.safetensors"), one="b")
        assert found["one"]["digest"] == node.digest(reader.tensor("b"))
        start, stop = map(int, str(server.asked[-1][1]).removeprefix("bytes=").split("-"))
        assert stop + 1 - start == reader.sizes["b"]


def test_tensors_come_while_the_file_is_still_downloading(js: node.Node, path: Path) -> None:
    """The server keeps the second entry back until the client, which has the first, says so."""
    data = path.read_bytes()
    with site({"f.safetensors": data}) as server, Reader(path) as reader:
        server.hold("f.safetensors", 8 + int.from_bytes(data[:8], "little") + reader.sizes["a"] + 1000)
        found = js.ask(**URL, url=server.url("f.safetensors"), ways=["stream"], go=server.url("go"))
        assert_same(found, reader)
        assert not server.expired
        assert [name for name, _ in server.asked].index("go") == 3


def index_first(data: bytes) -> bytes:
    """The same file with the common entry before all others, which a writer may choose too."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    metadata, entries = header.pop("__metadata__"), {"opq": header.pop("opq"), **header}
    parts, at = [], 0
    for fields in entries.values():
        start, stop = fields["data_offsets"]
        parts.append(data[begin + start : begin + stop])
        fields["data_offsets"] = [at, at := at + stop - start]
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(parts)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_whose_index_comes_first_is_used_while_it_comes_from_any_server(
    js: node.Node, path: Path, ranges: bool, tmp_path: Path
) -> None:
    """Our writer puts the index at the end, where a server without ranges gives it last."""
    data = index_first(path.read_bytes())
    (tmp_path / "f.safetensors").write_bytes(data)
    with site({"f.safetensors": data}, ranges=ranges) as server, Reader(tmp_path / "f.safetensors") as reader:
        server.hold("f.safetensors", len(data) - 1000)
        found = js.ask(**URL, url=server.url("f.safetensors"), ways=["stream"], go=server.url("go"))
        assert_same(found, reader)
        assert not server.expired


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_an_error(js: node.Node, path: Path, ranges: bool) -> None:
    for cut in (100, FIRST + 5000, 3 * FIRST):
        with site({"f.safetensors": path.read_bytes()}, ranges=ranges, cut=cut) as server:
            found = js.ask(**URL, url=server.url("f.safetensors"), ways=["stream"])
        assert found["error"]["ours"]
        assert found["error"]["code"] in ("network", "truncated")


def test_a_server_that_is_not_there_or_has_no_such_file(js: node.Node) -> None:
    with site({}) as server:
        found = js.ask(**URL, url=server.url("f.safetensors"))
        assert (found["error"]["code"], found["error"]["ours"]) == ("missing", True)
        assert "status 404" in found["error"]["message"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/f.safetensors"
    assert js.ask(**URL, url=nobody)["error"]["code"] == "network"
    assert js.ask(**URL, url="http://")["error"]["code"] == "missing"
    assert js.ask(**{"from": "path"}, path="/nowhere/f.safetensors")["error"]["code"] == "missing"


def test_a_file_that_changes_between_two_requests_is_refused(js: node.Node, path: Path) -> None:
    data = path.read_bytes()
    changed = data[: 2 * FIRST] + bytes([data[2 * FIRST] ^ 1]) + data[2 * FIRST + 1 :]
    with site({"f.safetensors": data}) as server:
        server.then["f.safetensors"] = (2, changed)
        found = js.ask(**URL, url=server.url("f.safetensors"), ways=["stream"])
    assert found["error"]["code"] == "corrupt"
    assert "wrong checksum" in found["error"]["message"]


@pytest.mark.parametrize("source", ["url", "without ranges", "stream", "bytes"])
@pytest.mark.parametrize("abort", [{"before": True}, {"loaded": 150_000}, {"tensors": 1}])
def test_a_signal_ends_it_with_its_own_reason(js: node.Node, path: Path, source: str, abort: dict[str, object]) -> None:
    data = path.read_bytes()
    with site({"f.safetensors": data}, ranges=source == "url") as server:
        named = URL if source in ("url", "without ranges") else {"from": source}
        found = js.ask(data, **named, url=server.url("f.safetensors"), pieces=5000, ways=["stream"], abort=abort)
    if source == "bytes" and "loaded" in abort:
        assert "error" not in found  # nothing is fetched
    else:
        assert found["error"]["name"] == "AbortError"
