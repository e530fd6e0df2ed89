"""A folder for a page: the graph without weights says the same once it is given what the file decodes to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from site_helpers import asked, digits_site
from torch import nn

import opq
from opq.errors import ExportError, MismatchError
from opq.export.web_site import RUNTIME, save_web

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    (folder / "dist").mkdir()
    for name in RUNTIME:
        (folder / "dist" / name).write_bytes(name.encode())
    return digits_site(folder, runtime=folder / "dist")[0]


def test_the_graph_holds_no_weights_and_is_small(file: Path) -> None:
    site = file.parent / "site"
    held = {path.name for path in site.iterdir() if path.is_file()}
    assert held == {"index.html", "network.js", "opq.js", "network.json", "network.onnx", "model.opq.safetensors"}
    assert {path.name: path.read_text() for path in (site / "ort").iterdir()} == {name: name for name in RUNTIME}
    assert (site / "model.opq.safetensors").read_bytes() == file.read_bytes()
    assert (site / "network.onnx").stat().st_size < 20_000
    described = json.loads((site / "network.json").read_text())
    with opq.Reader(file) as reader:
        assert {t.name for t in reader.plan.compressed} <= set(described["tensors"].values())


def test_with_the_decoded_tensors_as_external_data_it_says_what_the_dense_model_says(file: Path) -> None:
    site = file.parent / "site"
    for place, name in json.loads((site / "network.json").read_text())["tensors"].items():
        (site / place).write_bytes(opq.load_state_dict(file)[name].float().numpy().tobytes())
    session = onnxruntime.InferenceSession(site / "network.onnx", providers=["CPUExecutionProvider"])
    x, wanted = asked(file)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    for place in site.glob("tensor*"):
        place.unlink()


def test_a_language_model_keeps_its_weights_out_of_the_graph_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=900, max_position_embeddings=64, **sizes)).eval()
    opq.compress(model, bits=6, probe=False).save(file := tmp_path / "m.opq.safetensors")
    made = save_web(file, tmp_path / "site", model)
    site = tmp_path / "site"
    dense, state = opq.load(file, model), opq.load_state_dict(file)
    with opq.Reader(file) as reader:
        assert {t.name for t in reader.plan.compressed} <= set(made.tensors.values())
    assert made.inside < 20_000
    for place, name in made.tensors.items():
        (site / place).write_bytes(state[name].float().numpy().tobytes())
    session = onnxruntime.InferenceSession(site / "network.onnx", providers=["CPUExecutionProvider"])
    ids = torch.randint(900, (2, 11))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, {name: given[name].numpy() for name in names})[0]
    with torch.no_grad():
        wanted = dense(**{name: given[name] for name in names})[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_what_cannot_be_is_said(file: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    with pytest.raises(ExportError, match=f"not the dist folder of onnxruntime-web: got no {RUNTIME[0]}"):
        save_web(file, tmp_path / "out", nn.Linear(3, 3), runtime=tmp_path / "dist")
    with pytest.raises(MismatchError, match="does not fit Linear"):
        save_web(file, tmp_path / "out", nn.Linear(3, 3))
    small = tmp_path / "small.opq.safetensors"
    opq.compress(nn.Linear(3, 3), bits=400, probe=False).save(small)
    with pytest.raises(ExportError, match="none of the file's tensors"):
        save_web(small, tmp_path / "out", nn.Linear(3, 3), example_inputs=torch.randn(2, 3))
    assert not (tmp_path / "out").exists()
