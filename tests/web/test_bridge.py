"""transformers.js in Node: its requests for a model.onnx are answered from an opq file, with the same numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import node
import numpy as np
import pytest
from paths import ROOT, TESTS
from small_networks import PARTS, VOCABULARY, hidden_states, text_graph, text_network
from web_server import site

from opq.file.reader import Reader

pytestmark = pytest.mark.skipif(node.missing() is not None, reason=str(node.missing()))
onnx = pytest.importorskip("onnx")
tokenizers = pytest.importorskip("tokenizers")

WEB = node.MODULE.parent
LIBRARY = ROOT / "examples/web/node_modules/@huggingface/transformers/dist/transformers.node.mjs"
npm = pytest.mark.skipif(not LIBRARY.is_file(), reason="transformers.js is not installed: npm install in examples/web")
TEXT = "small files is downloaded a file"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models with one, as transformers.js wants them, its model.onnx missing."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "bert").mkdir(parents=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(dict(VOCABULARY), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "bert/tokenizer.json"))
    told = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]", "model_max_length": 32}
    (folder / "bert/tokenizer_config.json").write_text(json.dumps(told))
    (folder / "bert/config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    text_network(folder / "bert/onnx")
    return folder


@pytest.fixture
def broken(models: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be broken."""
    return Path(shutil.copytree(models, tmp_path / "models"))


@pytest.fixture(scope="module")
def wanted(models: Path) -> Any:
    """What the dense weights from the same file give."""
    ids = tokenizers.Tokenizer.from_file(str(models / "bert/tokenizer.json")).encode(TEXT).ids
    assert len(ids) == 10
    return hidden_states(models / "bert/onnx", ids)[None]


def asked(*questions: dict[str, Any]) -> list[dict[str, Any]]:
    told = json.dumps([{"texts": TEXT, **question} for question in questions])
    command = ["node", str(TESTS / "web/bridge.mjs"), WEB.as_uri(), LIBRARY.as_uri(), told]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def outputs(found: dict[str, Any]) -> Any:
    assert "error" not in found, found["error"]
    return np.array(found["data"], np.float32).reshape(found["dims"])


@npm
def test_a_local_folder_gives_what_the_dense_model_gives(models: Path, wanted: Any) -> None:
    by_name, by_path = asked(
        {"way": "cache", "model": "bert", "local": str(models)},
        {"way": "cache", "model": str(models / "bert"), "local": "/nowhere/"},
    )
    for found in (by_name, by_path):
        np.testing.assert_allclose(outputs(found), wanted, atol=1e-4)
        assert found["cached"] == []


@npm
@pytest.mark.parametrize("way", ["cache", "fetch"])
def test_a_repository_behind_an_address_gives_it_too(models: Path, wanted: Any, way: str) -> None:
    folder = models / "bert"
    files = {f"org/bert/resolve/main/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with site(files) as server:
        (found,) = asked({"way": way, "model": "org/bert", "remote": server.url("")})
        np.testing.assert_allclose(outputs(found), wanted, atol=1e-4)
        names = {name.rsplit("/")[-1] for name, _ in server.asked}
    assert {*PARTS, "tokenizer.json"} <= names
    assert ("model.onnx" in found["cached"]) == (way == "fetch")
    assert "tokenizer.json" in found["cached"]


@npm
def test_what_is_wrong_is_said_by_who_finds_it(broken: Path) -> None:
    onnx_folder = broken / "bert" / "onnx"
    kept = {name: (onnx_folder / name).read_bytes() for name in PARTS}
    described = json.loads(kept["network.json"])
    place = next(iter(described["tensors"]))
    others = {**described["tensors"], place: described["tensors"]["tensor1"]}
    cases = [
        ("model.opq.safetensors", kept["model.opq.safetensors"][:-9], "truncated", "is cut off"),
        ("model.opq.safetensors", None, "missing", "cannot open"),
        ("network.onnx", kept["network.onnx"][:-9], "corrupt", "no ONNX file"),
        ("network.onnx", None, "missing", "the graph network.onnx is not there"),
        ("network.json", b"{", "corrupt", "is not JSON"),
        ("network.json", b"null", "corrupt", "describes no network"),
        ("network.json", json.dumps({**described, "tensors": {}}).encode(), "mismatch", "got nothing for tensor"),
        ("network.json", json.dumps({**described, "tensors": others}).encode(), "mismatch", "bytes of projection"),
        ("network.json", None, None, "not found locally"),
    ]  # fmt: skip
    folders = []
    for k, (name, data, _, _) in enumerate(cases):
        folder = Path(shutil.copytree(broken / "bert", broken / f"bert{k}"))
        (folder / "onnx" / name).unlink() if data is None else (folder / "onnx" / name).write_bytes(data)
        folders.append({"way": "cache", "model": folder.name, "local": str(broken)})
    for (name, _, code, fact), found in zip(cases, asked(*folders), strict=True):
        assert found.get("code") == code, (name, found)
        assert fact in found["error"] or code is None, (name, found)


def node_says(code: str) -> str:
    code = f"import * as bridge from {json.dumps((WEB / 'bridge.js').as_uri())};{code}"
    command = ["node", "--input-type=module", "-e", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_joined_file_is_an_onnx_file_of_the_decoded_weights(models: Path, tmp_path: Path) -> None:
    """Needs no transformers.js: what the bridge answers, read by Python."""
    code = """
    import { writeFileSync } from "node:fs";
    const env = { remoteHost: "http://127.0.0.1:9/", remotePathTemplate: "{model}/" };
    const answer = await bridge.bridgedCache(env).match(%s);
    writeFileSync(%s, new Uint8Array(await answer.arrayBuffer()));
    console.log(answer.headers.get("content-length"));
    """ % (json.dumps(str(models / "bert/onnx/model.onnx")), json.dumps(str(tmp_path / "model.onnx")))  # noqa: UP031
    assert int(node_says(code)) == (tmp_path / "model.onnx").stat().st_size
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    whole = onnx.load(tmp_path / "model.onnx")
    places = json.loads((models / "bert/onnx/network.json").read_text())["tensors"]
    filled = text_graph()
    with Reader(models / "bert/onnx/model.opq.safetensors") as reader:
        for empty in filled.graph.initializer:
            if empty.data_location == onnx.TensorProto.EXTERNAL:
                tensor = reader.tensor(places[empty.external_data[0].value]).float()
                empty.raw_data = tensor.numpy().tobytes()
                del empty.external_data[:]
                empty.ClearField("data_location")
    assert whole == filled


def test_a_request_for_the_length_costs_no_weight(models: Path) -> None:
    """transformers.js asks for the first byte to learn how long a file is."""
    files = {f"onnx/{name}": (models / "bert/onnx" / name).read_bytes() for name in PARTS}
    with site(files) as server:
        code = """
        const answer = await bridge.bridgedFetch()(%s, { headers: { Range: "bytes=0-0" } });
        const [total] = /[0-9]+$/.exec(answer.headers.get("content-range"));
        const other = await bridge.bridgedFetch()(%s);
        console.log(answer.status, (await answer.arrayBuffer()).byteLength, total, other.status);
        """ % (json.dumps(server.url("onnx/model.onnx")), json.dumps(server.url("onnx/other.onnx")))  # noqa: UP031
        status, first, total, other = map(int, node_says(code).split())
        asked_for = [name for name, _ in server.asked]
    assert (status, first, other) == (206, 1, 404)
    assert total > sum(len(data) for data in files.values())
    assert asked_for == ["onnx/network.json", "onnx/network.onnx", "onnx/other.onnx"]


def test_a_graph_beyond_what_onnx_can_hold_is_refused_before_it_is_made(broken: Path) -> None:
    changed = onnx.load(broken / "bert/onnx/network.onnx", load_external_data=False)
    for entry in changed.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = str(2**31)
    (broken / "bert/onnx/network.onnx").write_bytes(changed.SerializeToString())
    code = """
    const env = { remoteHost: "http://127.0.0.1:9/", remotePathTemplate: "{model}/" };
    const answer = await bridge.bridgedCache(env).match(%s);
    const error = await answer.arrayBuffer().catch((error) => error);
    console.log(error.code, error.message);
    """ % json.dumps(str(broken / "bert/onnx/model.onnx"))  # noqa: UP031
    told = node_says(code)
    assert told.startswith("too-large the joined ONNX file is larger than one can be")
    assert "network.js" in told
