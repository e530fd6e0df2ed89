"""`opq.js` and files that are wrong: one error class, Python's reason, no hang, bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzz
import limits
import node
import numpy as np
import pytest
import torch
from file_helpers import with_index
from paths import GOLDEN
from plans import planned
from web_server import site

from opq.base.dtypes import DTYPES
from opq.coding import entropy
from opq.errors import FileFormatError
from opq.file.folder_reader import INDEX
from opq.file.payload import Place
from opq.file.stored import Grid
from opq.file.writer import pack
from opq.plan import Plan

pytestmark = pytest.mark.skipif(node.missing() is not None, reason=str(node.missing()))

CASES = [5_000, pytest.param(fuzz.FULL, marks=pytest.mark.slow)]
MEMORY = 256 << 20
"""Bytes by which Node may grow over all cases: its heap is tidied when it likes."""
CODES = {
    "CorruptFileError": "corrupt",
    "NewerFormatError": "newer",
    "FileTooLargeError": "too-large",
    "ForeignFileError": "foreign",
    "TruncatedFileError": "truncated",
    "MissingFileError": "missing",
}
GOOD = GOLDEN / "v1/entries.opq.safetensors"


def differences(found: dict[str, Any], data: bytes) -> Iterator[str]:
    """What JavaScript makes of the bytes that Python does not."""
    try:
        _, state = fuzz.everything(data)
    except FileFormatError as error:
        if "error" not in found:
            yield f"read, though: {error}"
        elif not found["error"]["ours"]:
            yield found["error"]["stack"]
        elif found["error"]["code"] != CODES[type(error).__name__]:
            yield f"{found['error']['message']}, in Python {error}"
        return
    if "error" in found:
        yield found["error"]["stack"]
        return
    for told in found["tensor"]:
        tensor = state[told["name"]]
        if DTYPES[told["dtype"]] != tensor.dtype or tuple(told["shape"]) != tuple(tensor.shape):
            yield f"{told['name']} is {told['dtype']} {told['shape']}"
        elif told["digest"] != node.digest(tensor):
            here = torch.from_numpy(np.frombuffer(node.elements(told), np.uint8).copy())
            ours = here.view(tensor.dtype).reshape(tensor.shape).double()
            if not torch.equal(ours.nan_to_num(3e200), tensor.double().nan_to_num(3e200)):  # NaN has many bits
                yield f"{told['name']}: {ours}, in Python {tensor}"


@pytest.mark.parametrize("cases", CASES)
@limits.narrowed(**fuzz.NARROW)
def test_wrong_files_are_refused_as_in_python_or_read_to_the_same(cases: int, js: node.Node) -> None:
    """The cases of the Python reader's fuzzer."""
    before = js.ask(GOOD.read_bytes(), narrowed=[fuzz.NARROW[name] for name in ("memory", "large", "chunk")])["rss"]
    options = {"maxExpansion": fuzz.EXPANSION, "workers": 0}
    wrong, outcomes, peak = list[str](), Counter[str](), before
    for k, (_, case) in enumerate(fuzz.some(0, cases)):
        found = js.ask(case.data, options=options, whole=case.signed)
        peak = max(peak, found["rss"])
        outcomes[found["error"]["code"] if "error" in found else "read"] += 1
        wrong += [f"case {k}, {case.kind}: {what}" for what in differences(found, case.data)]
    assert wrong == []
    assert set(outcomes) == {"read", *CODES.values()} - {"missing"}
    assert peak - before < MEMORY


def test_the_comparison_sees_what_is_wrong(js: node.Node) -> None:
    good = GOOD.read_bytes()
    found = js.ask(good, whole=True)
    assert list(differences(found, good)) == []
    assert "read, though" in next(differences(found, good[:-1]))
    assert "corrupt" not in found
    refused = js.ask(good[:-1])
    assert list(differences(refused, good[:-1])) == []
    assert len(list(differences(refused, good))) == 1
    assert len(list(differences(refused, b"<html>" + good))) == 1
    told = next(t for t in found["tensor"] if t["name"] == "grid")
    for changed in ({"digest": "", "bytes": "AAAA" * (len(told["bytes"]) // 4)}, {"shape": [1]}, {"dtype": "I32"}):
        other = {**found, "tensor": [{**told, **changed}]}
        assert len(list(differences(other, good))) == 1


@pytest.mark.parametrize(
    ("data", "code", "fact"),
    [
        (b"", "truncated", "has no header"),
        (b"<!doctype html><title>404</title>", "foreign", "is not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}", "foreign", "was not written by opq"),
        (GOOD.read_bytes()[:-9], "truncated", "is cut off"),
        (GOOD.read_bytes() + b"\0", "corrupt", "goes on after its end"),
        (GOOD.read_bytes().replace(b'"opq":"1"', b'"opq":"2"'), "newer", "is of a newer format"),
        (GOOD.read_bytes()[:-1] + b"\1", "corrupt", "wrong checksum"),
    ],
)
@pytest.mark.parametrize("source", ["bytes", "blob", "stream", "url", "without ranges", "untold"])
def test_a_file_that_is_none_is_refused_from_every_source(
    js: node.Node, data: bytes, code: str, fact: str, source: str
) -> None:
    if source in ("url", "without ranges", "untold"):
        with site({"f.safetensors": data}, ranges=source != "without ranges", told=source != "untold") as server:
            found = js.ask(**{"from": "url"}, url=server.url("f.safetensors"), options={"workers": 0})
    else:
        found = js.ask(data, **{"from": source}, pieces=7, options={"workers": 0})
    assert (found["error"]["code"], found["error"]["ours"]) == (code, True)
    assert fact in found["error"]["message"]


def test_the_error_of_a_damaged_tensor_bears_its_name(js: node.Node) -> None:
    data = bytearray(GOOD.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start] ^= 1  # the first entry of its own
    found = js.ask(bytes(data))
    assert (found["error"]["code"], found["error"]["name"]) == ("corrupt", "OpqError")
    assert found["error"]["tensor"] in ("grid", "half", "fine")
    assert f'tensor "{found["error"]["tensor"]}": wrong checksum' in found["error"]["message"]


@pytest.mark.parametrize(("path", "refused"), [(16383, False), (-16383, False), (16384, True), (-16384, True)])
def test_a_path_whose_codes_need_more_than_16_bits_is_refused(js: node.Node, path: int, refused: bool) -> None:
    payload = entropy.encode(np.array([[path, 0], [1, 2]], np.int16))
    plan = Plan(method="rd", tensors=(planned("w", (2, 2), codebook="trellis"),))
    found = js.ask(with_index(plan, [Place("trellis", len(payload))], payload))
    assert ("a path beyond 16 bits" in found.get("error", {}).get("message", "")) == refused


def bomb() -> bytes:
    tensors = (planned("w", (1 << 14, 1 << 14)), planned("v", (1 << 13, 1 << 13)))
    items = [Grid(t.name, np.broadcast_to(np.int16(3), t.shape)) for t in tensors]
    return b"".join(pack(Plan(method="rd", tensors=tensors), items).parts)


def test_a_file_that_decodes_to_too_much_is_refused_before_anything_is_allocated(js: node.Node) -> None:
    data = bomb()
    assert len(data) < 1000
    before = js.ask(GOOD.read_bytes(), narrowed=[1 << 26, 1 << 19, 1 << 22])["rss"]
    found = js.ask(data)
    assert found["error"]["code"] == "too-large"
    assert "maxExpansion" in found["error"]["message"]
    assert found["rss"] - before < 64 << 20
    assert "error" not in js.ask(data, ways=[], options={"maxExpansion": 1e9})


def test_a_stream_that_never_ends_is_left_once_the_file_has(js: node.Node) -> None:
    found = js.ask(GOOD.read_bytes(), **{"from": "endless"})
    assert found["error"]["code"] == "corrupt"
    assert "goes on after its end" in found["error"]["message"]
    assert int(found["error"]["message"].split()[-2]) <= 3


def test_a_name_that_is_not_there_and_a_model_that_was_closed(js: node.Node) -> None:
    found = js.ask(GOOD.read_bytes(), one="toString")
    assert (found["error"]["code"], found["error"]["tensor"]) == ("mismatch", "toString")
    found = js.ask(GOOD.read_bytes(), one="grid", close=True)
    assert found["error"]["code"] == "closed"


Files = dict[str, bytes]
MAP = b'{"metadata":{"opq":"1"},"weight_map":{%s}}'


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {k: v for k, v in files.items() if k != name}


def indexed(data: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, INDEX: data}


def renamed(old: bytes, new: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, INDEX: files[INDEX].replace(old, new)}


@pytest.mark.parametrize(
    ("change", "code", "fact"),
    [
        (without("model-00002-of-00002.opq.safetensors"), "missing", "00002-of-00002"),
        (indexed(b"nothing"), "corrupt", "is not JSON"),
        (indexed(b'{"weight_map":{"a":"b"}}'), "foreign", "was not written by opq"),
        (indexed(MAP % b""), "corrupt", "is no index"),
        (indexed(MAP % b'"a":"../b"'), "corrupt", "outside"),
        (indexed(MAP % b'"a":"http:b"'), "corrupt", "outside"),
        (indexed(MAP % b'"a":"b","a":"c"'), "corrupt", "twice"),
        (renamed(b'"b.bias"', b'"b.more"'), "corrupt", "does not place"),
        (renamed(b"00001-", b"00002-"), "corrupt", "does not hold"),
        (lambda files: {**files, "model-00001-of-00002.opq.safetensors": GOOD.read_bytes()}, "corrupt", "not place"),
    ],
)
def test_a_folder_that_does_not_agree_is_refused(
    js: node.Node, change: Callable[[Files], Files], code: str, fact: str, tmp_path: Path
) -> None:
    files = change({p.name: p.read_bytes() for p in (GOLDEN / "v1/shards").iterdir()})
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = js.ask(**{"from": "files"}, paths=[str(p) for p in tmp_path.iterdir()])
    assert found["error"]["code"] == code
    assert fact in found["error"]["message"]
    with site(files) as server:
        found = js.ask(**{"from": "url"}, url=server.url(INDEX))
    assert found["error"]["code"] == code
    assert fact in found["error"]["message"]
