"""Out of the file again: ONNX is small and says the same, folders load elsewhere, what does not map is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from plans import planned
from stream_helpers import small_llama
from torch import nn

import opq
import opq.hub
from opq import demo
from opq.cli import app
from opq.errors import ExportError, MismatchError, MissingExtraError, OptionError, SourceError, TruncatedFileError
from opq.export.compressed_tensors import LARGEST_CODE, _integers, _width, save_compressed_tensors
from opq.export.dense import save_dense
from opq.export.hf_folder import save_folder
from opq.export.onnx_model import save_onnx
from opq.export.web_site import save_web
from opq.file.writer import Grid, pack
from opq.plan import Plan
from opq.sources.digits import WEIGHTS, load

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.opq.safetensors"
    opq.compress("demo:digits", bits=3, probe=False).save(path)
    return path


def run(path: Path, *inputs: torch.Tensor) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]


def initializers(path: Path) -> dict[str, Any]:
    import onnx

    return {t.name: t for t in onnx.load(path).graph.initializer}


def test_onnx_is_small_and_says_the_same(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "digits.onnx"
    made = save_onnx(digits, path, load())
    assert made.bytes == path.stat().st_size < WEIGHTS.stat().st_size
    assert made.dense == ()
    x = demo.test_split()[0]
    with torch.no_grad():
        wanted = opq.load(digits, load())(x).numpy()
    got = run(path, x)  # 449 images: the batch dimension was left open
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


def test_onnx_holds_the_codes_themselves(digits: Path, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "digits.onnx"
    made = save_onnx(digits, path, load())
    held = initializers(path)
    with opq.Reader(digits) as reader:
        for name, kind in made.integers.items():
            codes = onnx.numpy_helper.to_array(held[f"{name}.codes"])
            assert held[f"{name}.codes"].data_type == onnx.TensorProto.DataType.Value(kind.upper())
            np.testing.assert_array_equal(codes.astype(np.int16).ravel(), reader.codes(name).ravel())


class Odd(nn.Module):
    """Transposed products, a tied embedding, few levels: what exporters rename and rearrange."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.down(self.up(self.table(ids)).relu())
        return x @ self.table.weight.T


def test_onnx_of_transposed_tied_and_four_bit_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file, path = Odd().eval(), tmp_path / "odd.opq.safetensors", tmp_path / "odd.onnx"
    opq.compress(model, bits=2.8, probe=False).save(file)
    ids = torch.randint(50, (3, 7))
    made = save_onnx(file, path, model, example_inputs=(ids,))
    assert set(made.integers) == {"table.weight", "up.weight", "down.weight"}
    assert "int4" in made.integers.values()
    with torch.no_grad():
        wanted = opq.load(file, Odd()).eval()(ids[:2, :5])
    np.testing.assert_allclose(run(path, ids[:2, :5]), wanted.numpy(), atol=1e-5)


class Named(nn.Module):
    """Two inputs of one batch, outputs under names of its own, one of them within another."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 40)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        hidden = self.head(self.table(ids)) * mask[..., None]
        return {"last_hidden": hidden, "more": {"pooled": hidden.mean(1)}}


def test_onnx_has_one_batch_axis_and_the_model_s_own_names(tmp_path: Path) -> None:
    import onnx

    torch.manual_seed(0)
    model, file, path = Named().eval(), tmp_path / "n.opq.safetensors", tmp_path / "n.onnx"
    opq.compress(model, bits=6, probe=False).save(file)
    ids, mask = torch.randint(50, (3, 7)), torch.ones(3, 7, dtype=torch.int64)
    save_onnx(file, path, model, example_inputs=(ids, mask))
    graph = onnx.load(path).graph
    axes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in (*graph.input, *graph.output)}  # fmt: skip
    assert axes == {
        "ids": ["batch", "sequence"],
        "mask": ["batch", "sequence"],
        "last_hidden": ["batch", "sequence", 40],
        "more.pooled": ["batch", 40],
    }
    onnx.checker.check_model(path, full_check=True)
    with torch.no_grad():
        wanted = opq.load(file, Named()).eval()(ids[:2, :5], mask[:2, :5])["last_hidden"]
    np.testing.assert_allclose(run(path, ids[:2, :5], mask[:2, :5]), wanted.numpy(), atol=1e-5)


class Recurrent(nn.Module):
    """A layer of each kind, the first both ways, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, batch_first=True, bidirectional=True)
        self.gru, self.rnn = nn.GRU(32, 24, batch_first=True), nn.RNN(24, 20, batch_first=True)
        self.head = nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.gru(self.lstm(x)[0])[0])[0][:, -1])


def test_onnx_of_recurrent_layers_holds_their_codes_in_its_order_of_gates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file, path = Recurrent().eval(), tmp_path / "r.opq.safetensors", tmp_path / "r.onnx"
    opq.compress(model, bits=6, probe=False).save(file)
    x = torch.randn(3, 9, 12)
    made = save_onnx(file, path, model, example_inputs=x)
    assert made.dense == ()
    assert len(made.integers) == 9
    with torch.no_grad():
        wanted = opq.load(file, Recurrent()).eval()(x)
    np.testing.assert_allclose(run(path, x), wanted.numpy(), atol=1e-5)


def test_onnx_of_recurrent_layers_holds_steps_by_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file, path = Recurrent().eval(), tmp_path / "r.opq.safetensors", tmp_path / "r.onnx"
    steep = ("lstm.weight_hh_l0", "gru.weight_ih_l0", "rnn.weight_ih_l0")
    with torch.no_grad():
        for name in steep:
            weight = model.get_parameter(name)
            weight.mul_(torch.logspace(-1.5, 0.5, len(weight))[torch.randperm(len(weight))][:, None])
    opq.compress(model, bits=6, probe=False).save(file)
    with opq.Reader(file) as reader:
        assert {name for name in steep if reader.plan[name].by_row} == set(steep)
    x = torch.randn(3, 9, 12)
    made = save_onnx(file, path, model, example_inputs=x)
    assert made.dense == ()
    with torch.no_grad():
        wanted = opq.load(file, Recurrent()).eval()(x)
    np.testing.assert_allclose(run(path, x), wanted.numpy(), atol=1e-5)


def test_compressed_tensors_have_a_scale_for_each_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "r.opq.safetensors"
    opq.compress({"weight_ih": torch.randn(24, 32) * torch.logspace(-2, 0, 24)[:, None]}, bits=7).save(file)
    with opq.Reader(file) as reader:
        tensor = reader.plan["weight_ih"]
        assert tensor.by_row
        made = _integers(reader, tensor, 8)
        words = made["weight_ih_packed"].numpy().view(np.uint8).astype(np.int32) - 128
        restored = torch.from_numpy(words.astype(np.float32)) * made["weight_ih_scale"]
        assert torch.equal(restored, reader.tensor("weight_ih"))


@pytest.mark.parametrize(("largest", "width"), [(1, 4), (7, 4), (8, 8), (127, 8)])
def test_integers_have_four_bits_where_these_hold_every_code(largest: int, width: int) -> None:
    """The layout keeps -8 to 7 in four bits; a code of 8 would come back as -8."""
    codes = np.array([[largest, 0, -largest], [1, -1, 0]], np.int16)
    plan = planned("up.weight", codes.shape)
    packed = pack(Plan(method="rd", tensors=(plan,)), [Grid("up.weight", torch.from_numpy(codes))])
    with opq.Reader(packed) as reader:
        assert _width(reader, {"up.weight"}) == width
        words = _integers(reader, plan, width)["up.weight_packed"].numpy().view(np.uint32)
        fields = words[:, :, None] >> np.arange(0, 32, width, dtype=np.uint32) & np.uint32((1 << width) - 1)
        assert np.array_equal(fields.reshape(2, -1)[:, :3].astype(int) - (1 << width - 1), codes)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_onnx_of_half_precision_holds_codes_and_restores_them_to_the_bit(kind: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file, path = Odd().eval().to(kind), tmp_path / "h.opq.safetensors", tmp_path / "h.onnx"
    opq.compress(model, bits=6, probe=False).save(file)
    ids = torch.randint(50, (3, 7))
    made = save_onnx(file, path, model, example_inputs=(ids,))
    assert set(made.integers) == {"table.weight", "up.weight", "down.weight"}
    held, state = initializers(path), opq.load_state_dict(file)
    dense = {tuple(t.flatten().tolist()) for w in state.values() if w.dim() == 2 for t in (w, w.T)}
    for name in (name.removesuffix(".codes") for name in held if name.endswith(".codes")):
        codes, scale = (torch.tensor(_array(held[f"{name}.{part}"])) for part in ("codes", "scale"))
        assert tuple((codes * scale).to(kind).flatten().tolist()) in dense, name
    if kind == torch.float16:  # onnxruntime has few operators in bfloat16
        with torch.no_grad():
            wanted = opq.load(file, Odd().half()).eval()(ids)
        np.testing.assert_allclose(run(path, ids).astype(float), wanted.double().numpy(), atol=2e-2)


def _array(tensor: Any) -> np.ndarray:
    import onnx

    return onnx.numpy_helper.to_array(tensor).astype(np.float32)


def test_onnx_leaves_the_model_as_it_was(digits: Path, tmp_path: Path) -> None:
    model = load()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save_onnx(digits, tmp_path / "x.onnx", model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_onnx_of_what_cannot_be_exported(tmp_path: Path) -> None:
    class Python(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if x.sum() > 0 else x  # depends on the values

    file = tmp_path / "p.opq.safetensors"
    opq.compress(Python(), bits=8, probe=False).save(file)
    with pytest.raises(ExportError, match="torch cannot export Python"):
        save_onnx(file, tmp_path / "p.onnx", Python(), example_inputs=torch.zeros(2, 64))
    assert not (tmp_path / "p.onnx").exists()


def test_onnx_of_another_model(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError):
        save_onnx(digits, tmp_path / "x.onnx", nn.Linear(3, 3))


def test_onnx_without_the_extra(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r'pip install "opq\[onnx\]"'):
        save_onnx(digits, tmp_path / "x.onnx", load())


def test_onnx_of_mobilenet(shared: Path, tmp_path: Path) -> None:
    model, file, path = zoo.mobilenet(shared), tmp_path / "m.opq.safetensors", tmp_path / "m.onnx"
    opq.compress(model, bits=4, probe=False, trellis=False).save(file)
    made = save_onnx(file, path, model)
    assert made.dense == ()
    assert path.stat().st_size < 2.9e6  # on a trellis codes are nearly twice as large, and some need 16 bits
    x = zoo.normalised(zoo.imagenet_like(2, shared).pixels, model.input_hint)
    with torch.no_grad():
        wanted = opq.load(file, zoo.MobileNetV1()).eval()(x).numpy()
    np.testing.assert_allclose(run(path, x), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT in a folder, one of its weights far out."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 50}
    folder = tmp_path_factory.mktemp("bert") / "small-bert"
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=90, max_position_embeddings=16, **sizes))
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 4] = 40.0
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("a\nb\n")
    return folder


@pytest.fixture(scope="module")
def bert_file(bert: Path) -> Path:
    path = bert.parent / "bert.opq.safetensors"
    plain = [opq.constraints.code_bits("*", max=15)]  # one step a tensor: steps by row would bring the large weight in
    opq.compress(f"hf:{bert}", bits=4, probe=False, constraints=plain).save(path)
    return path


def test_hugging_face_folder(bert: Path, bert_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    size = save_folder(bert_file, tmp_path / "dense", bert)
    assert size == (tmp_path / "dense" / "model.safetensors").stat().st_size
    assert (tmp_path / "dense" / "vocab.txt").read_text() == "a\nb\n"
    model = AutoModel.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    wanted = opq.load_state_dict(bert_file)
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())


def test_the_folder_it_came_from_is_not_overwritten(bert: Path, bert_file: Path) -> None:
    with pytest.raises(OptionError, match="the output is the input"):
        save_folder(bert_file, bert, bert)


def test_hub_folder_loads_in_two_lines(bert: Path, bert_file: Path, tmp_path: Path) -> None:
    folder = opq.hub.save_pretrained(bert_file, tmp_path / "up", bert)
    model = opq.hub.from_pretrained(folder)
    wanted = opq.load_state_dict(bert_file)
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())
    card = (folder / "README.md").read_text()
    assert f"{bert_file.stat().st_size:,} bytes" in card
    assert "`small-bert`" in card
    assert str(bert) not in card


def test_hub_folder_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="does not hold one opq file"):
        opq.hub.from_pretrained(tmp_path)


def unpacked(state: dict[str, torch.Tensor], name: str, width: int = 8) -> torch.Tensor:
    """A weight as the layout is described: 32 bits a group, the first code lowest, offset 128 or 8, one scale a row."""
    rows, columns = state[f"{name}_shape"].tolist()
    words = state[f"{name}_packed"].long() & 0xFFFFFFFF
    codes = torch.stack([words >> at & (1 << width) - 1 for at in range(0, 32, width)], -1).reshape(rows, -1)
    return (codes[:, :columns].float() - (1 << width - 1)) * state[f"{name}_scale"]


def test_compressed_tensors_where_the_grid_maps(bert: Path, bert_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    far = "encoder.layer.1.output.dense"
    with pytest.raises(ExportError, match=rf"'{far}.weight' has no place .* 8-bit layout: got a code of"):
        save_compressed_tensors(bert_file, tmp_path / "ct", bert)
    save_compressed_tensors(bert_file, tmp_path / "ct", bert, strict=False)
    state, wanted = load_file(tmp_path / "ct" / "model.safetensors"), opq.load_state_dict(bert_file)
    packed = [name.removesuffix("_packed") for name in state if name.endswith("_packed")]
    assert len(packed) == 2 * 6 + 1 - 1  # six Linears a layer and the pooler, but the one far out
    assert all(torch.equal(unpacked(state, name), wanted[name]) for name in packed)
    config = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == [far]
    with opq.Reader(bert_file) as reader:
        assert np.abs(reader.codes(f"{far}.weight")).max() > LARGEST_CODE


@pytest.mark.parametrize(("width", "budget"), [(8, 6), (4, 3)])
def test_codes_of_a_width_that_was_asked_for_are_never_refused(
    width: int, budget: float, bert: Path, tmp_path: Path
) -> None:
    """One weight of this network is 40 times as large as it should be: 8 bits would not hold its code by default."""
    from safetensors.torch import load_file

    file = tmp_path / "m.opq.safetensors"
    few = opq.constraints.code_bits("*", max=width)
    result = opq.compress(f"hf:{bert}", bits=budget, probe=False, constraints=[few])
    result.save(file)
    assert result.bits <= budget
    size = save_compressed_tensors(file, tmp_path / "ct", bert)
    state, wanted = load_file(tmp_path / "ct" / "model.safetensors"), opq.load_state_dict(file)
    packed = [name.removesuffix("_packed") for name in state if name.endswith("_packed")]
    assert len(packed) == 2 * 6 + 1
    assert all(torch.equal(unpacked(state, name, width), wanted[name]) for name in packed)
    config = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["num_bits"] == width
    assert not config["ignore"]
    assert file.stat().st_size < size


def test_a_linear_that_shares_the_embedding_stays_dense(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = small_llama(tied=True)
    model.save_pretrained(tmp_path / "model")
    few = opq.constraints.code_bits("*", max=8)
    opq.compress(model, bits=5, probe=False, constraints=[few]).save(file := tmp_path / "m.opq.safetensors")
    save_compressed_tensors(file, tmp_path / "ct", tmp_path / "model")
    config = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head"]
    state = load_file(tmp_path / "ct" / "model.safetensors")
    assert torch.equal(state["model.embed_tokens.weight"], opq.load_state_dict(file)["model.embed_tokens.weight"])


@pytest.fixture(scope="module")
def columned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A BERT in a folder whose layers are wide enough for factors by column, but for one; its file, and the folder."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    folder = tmp_path_factory.mktemp("columned") / "bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=90, max_position_embeddings=16, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    file = folder.parent / "bert.opq.safetensors"
    opq.compress(f"hf:{folder}", bits=4, trellis=False).save(file)
    return file, folder


def test_compressed_tensors_have_no_place_for_factors_by_column(columned: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    file, folder = columned
    with pytest.raises(ExportError, match=r"has no place .* got a factor for each column"):
        save_compressed_tensors(file, tmp_path / "ct", folder)
    assert not (tmp_path / "ct").exists()
    save_compressed_tensors(file, tmp_path / "ct", folder, strict=False)
    state, wanted = load_file(tmp_path / "ct" / "model.safetensors"), opq.load_state_dict(file)
    with opq.Reader(file) as reader:
        by_column = {t.name.removesuffix(".weight") for t in reader.plan if reader.columns(t.name) is not None}
    config = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    assert set(config["ignore"]) == by_column
    packed = {name.removesuffix("_packed") for name in state if name.endswith("_packed")}
    assert packed == {"encoder.layer.0.intermediate.dense.weight"}
    assert all(torch.equal(unpacked(state, name, _width_in(config)), wanted[name]) for name in packed)
    dense = {name for name in state if not name.endswith(("_packed", "_scale", "_shape"))}
    assert dense == set(wanted) - packed
    assert all(torch.equal(state[name], wanted[name]) for name in dense)


def _width_in(config: dict[str, Any]) -> int:
    return int(config["config_groups"]["group_0"]["weights"]["num_bits"])


def test_factors_by_column_give_way_to_codes_of_a_width(columned: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "few.opq.safetensors"
    opq.compress(f"hf:{columned[1]}", bits=4, constraints=[opq.constraints.code_bits("*", max=8)]).save(file)
    save_compressed_tensors(file, tmp_path / "ct", columned[1])
    config = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    assert not config["ignore"]


def test_folders_and_dense_files_hold_weights_with_factors_by_column(
    columned: tuple[Path, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModel

    file, folder = columned
    wanted = opq.load_state_dict(file)
    save_folder(file, tmp_path / "dense", folder)
    model = AutoModel.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    assert all(torch.equal(v, wanted[k]) for k, v in model.state_dict().items())
    save_dense(file, tmp_path / "dense.safetensors")
    state = load_file(tmp_path / "dense.safetensors")
    assert all(torch.equal(v, wanted[k]) for k, v in state.items())
    hub = opq.hub.from_pretrained(opq.hub.save_pretrained(file, tmp_path / "up", folder))
    assert all(torch.equal(v, wanted[k]) for k, v in hub.state_dict().items())


def test_graphs_of_a_model_with_factors_by_column(columned: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoModel

    file, folder = columned
    model, path, ids = AutoModel.from_pretrained(folder).eval(), tmp_path / "m.onnx", torch.randint(90, (2, 11))
    made = save_onnx(file, path, model, example_inputs={"input_ids": ids})
    with opq.Reader(file) as reader:
        by_column = {t.name for t in reader.plan.compressed if reader.columns(t.name) is not None}
        compressed = {t.name for t in reader.plan.compressed}
    assert by_column < set(made.integers)
    site = save_web(file, tmp_path / "site", model, example_inputs={"input_ids": ids})
    assert compressed <= set(site.tensors.values())
    with torch.no_grad():
        wanted = opq.load(file, model)(input_ids=ids)[0].numpy()
    np.testing.assert_allclose(run(path, ids), wanted, atol=1e-5)


def test_compressed_tensors_refuses_what_was_kept(bert: Path, tmp_path: Path) -> None:
    file = tmp_path / "k.opq.safetensors"
    opq.compress(f"hf:{bert}", bits=8, probe=False, overrides={"pooler*": "keep", "*.1.output*": "keep"}).save(file)
    with pytest.raises(ExportError, match=r"has no place .* got keep: (override|1)"):
        save_compressed_tensors(file, tmp_path / "ct", bert)
    assert not (tmp_path / "ct").exists()


def test_compressed_tensors_loads_in_its_own_package(bert: Path, bert_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="the package compressed-tensors is not installed")
    from transformers import AutoModel

    save_compressed_tensors(bert_file, tmp_path / "ct", bert, strict=False)
    model, dense = (
        AutoModel.from_pretrained(tmp_path / "ct").eval(),
        opq.hub.from_pretrained(opq.hub.save_pretrained(bert_file, tmp_path / "up", bert)),
    )
    ids = torch.randint(90, (1, 9))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids)[0], dense(input_ids=ids)[0])


def test_a_folder_that_is_no_model(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no Hugging Face folder"):
        save_folder(digits, tmp_path / "out", tmp_path)


def test_a_truncated_file(digits: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.opq.safetensors"
    cut.write_bytes(digits.read_bytes()[:-100])
    with pytest.raises(TruncatedFileError):
        save_onnx(cut, tmp_path / "x.onnx", load())
    assert not (tmp_path / "x.onnx").exists()


def test_command(digits: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    path = tmp_path / "d.onnx"
    call = ["export", str(digits), "-o", str(path), "--json"]
    ran = CliRunner().invoke(app, [*call, "--to", "onnx", "--model", "demo:digits"])
    assert json.loads(ran.stdout)["bytes"] == path.stat().st_size
    for wrong, message in ((["--to", "gguf"], "unknown --to"), (["--to", "onnx"], "needs --model")):
        refused = CliRunner().invoke(app, [*call, *wrong])
        assert isinstance(refused.exception, OptionError)
        assert message in str(refused.exception)


@pytest.mark.parametrize(("to", "weights"), [("hub", "model.opq.safetensors"), ("hf", "model.safetensors")])
def test_the_command_writes_the_folder_that_is_asked_for(
    to: str, weights: str, bert: Path, bert_file: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    call = ["export", str(bert_file), "--to", to, "--model", f"hf:{bert}", "-o", str(tmp_path / "out"), "--json"]
    ran = CliRunner().invoke(app, call, catch_exceptions=False)
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == [weights]
    held = tmp_path / "out" if to == "hub" else tmp_path / "out" / weights
    found = sum(path.stat().st_size for path in (held.iterdir() if held.is_dir() else [held]))
    assert json.loads(ran.stdout)["bytes"] == found
