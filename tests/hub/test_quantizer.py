"""The from_pretrained of transformers opens folders that hold an opq file: to the tensors that the file decodes to."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from stream_helpers import small_llama

import opq
import opq.hub
from opq.errors import CorruptFileError, FileFormatError, OpqWarning, SourceError, WrongBaseError
from opq.file.loading import load_state_dict
from opq.hub import quantizer, registration
from opq.streaming import compress_folder, save_dense_folder

transformers = pytest.importorskip("transformers")

DATA = "model.opq.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "bert"
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 300}
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=900, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def repository(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `opq export --to hub` fills it."""
    file = tmp_path_factory.mktemp("file") / "bert.opq.safetensors"
    opq.compress(source, bits=5, probe=False).save(file)
    return opq.hub.save_pretrained(file, file.parent / "up", source)


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repository, tmp_path / "copy"))


def changed(folder: Path, **settings: Any) -> None:
    """Other settings in the folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "opq", **settings}
    (folder / "config.json").write_text(json.dumps(config))


def same(model: Any, state: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> bool:
    own = model.state_dict()
    return set(own) <= set(state) and all(torch.equal(v, state[k].to(dtype)) for k, v in own.items())


def test_a_folder_loads_as_any_other_model(repository: Path) -> None:
    wanted = load_state_dict(repository / DATA)
    model, info = transformers.AutoModel.from_pretrained(repository, output_loading_info=True)
    assert same(model, wanted)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert not model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_come_in_the_type_and_on_the_device_that_were_asked_for(repository: Path, dtype: torch.dtype) -> None:
    model = transformers.BertModel.from_pretrained(repository, dtype=dtype, device_map={"": "cpu"})
    assert same(model, load_state_dict(repository / DATA), dtype)
    assert transformers.AutoModel.from_pretrained(repository, dtype="auto").dtype == torch.float32


def test_a_head_that_the_file_lacks_is_made_and_told(repository: Path) -> None:
    kind = transformers.AutoModelForSequenceClassification
    model, info = kind.from_pretrained(repository, num_labels=3, output_loading_info=True)
    assert sorted(info["missing_keys"]) == ["classifier.bias", "classifier.weight"]
    assert same(model.bert, load_state_dict(repository / DATA))
    assert 0 < model.classifier.weight.std() < 0.1, "drawn as transformers draws it"


def test_shards_of_a_language_model_with_tied_weights_load_and_it_speaks(tmp_path: Path) -> None:
    small_llama(tied=True).save_pretrained(tmp_path / "model")
    compress_folder(tmp_path / "model", tmp_path / "out", bits=6, probe=False, shard_size=1 << 15)
    assert len(list((tmp_path / "out").glob("*.opq.safetensors"))) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    state = load_state_dict(tmp_path / "out")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False).shape == (1, 5)
    ours = opq.hub.from_pretrained(tmp_path / "out")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in ours.state_dict().items())


def test_what_transformers_leaves_of_a_gguf_file_is_no_other_method(source: Path, tmp_path: Path) -> None:
    """It saves plain weights, with a configuration that still names the file from which they were read."""
    model = Path(shutil.copytree(source, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    left = {"quant_method": "gguf", "gguf_file": "bert.gguf", "dequantize": False}
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": left}))
    compress_folder(model, tmp_path / "folder", bits=6, probe=False)
    opq.compress(model, bits=6, probe=False).save(tmp_path / "bert.opq.safetensors")
    opq.hub.save_pretrained(tmp_path / "bert.opq.safetensors", tmp_path / "file", model)
    for made in (tmp_path / "folder", tmp_path / "file"):
        assert json.loads((made / "config.json").read_text())["quantization_config"]["quant_method"] == "opq"
        file = made if made.name == "folder" else made / DATA
        assert same(transformers.AutoModel.from_pretrained(made), load_state_dict(file))
    save_dense_folder(tmp_path / "folder", tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())


def test_what_was_loaded_is_an_ordinary_model_and_is_saved_dense(repository: Path, tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(repository)
    assert not model.is_quantized
    assert not hasattr(model, "hf_quantizer")
    model.half().float().train()
    size = sum(4 * p.numel() for p in model.parameters())
    with pytest.warns(
        OpqWarning, match=rf"writes the dense weights that {DATA} decoded to, {size:,} bytes, .*compress"
    ):
        copy.deepcopy(model).save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in config
    assert "transformers_weights" not in config
    assert (tmp_path / "dense" / "model.safetensors").stat().st_size > 4 * (repository / DATA).stat().st_size
    again = transformers.AutoModel.from_pretrained(tmp_path / "dense")
    again.save_pretrained(tmp_path / "again")  # of a dense folder nothing is said
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_way_back_to_a_dense_folder_forgets_the_method(source: Path, tmp_path: Path) -> None:
    from opq.export import save_folder
    from opq.streaming import save_dense_folder

    compress_folder(source, tmp_path / "out", bits=6, probe=False)
    save_dense_folder(tmp_path / "out", tmp_path / "dense")
    opq.compress(source, bits=6, probe=False).save(tmp_path / "one.opq.safetensors")
    save_folder(tmp_path / "one.opq.safetensors", tmp_path / "hf", tmp_path / "out")
    for name in ("dense", "hf"):
        text = (tmp_path / name / "config.json").read_text()
        assert json.loads(text) == json.loads((source / "config.json").read_text()), name


PROGRAM = """
import sys
from transformers import AutoModel
print(float(sum(p.double().abs().sum() for p in AutoModel.from_pretrained(sys.argv[1]).parameters())))
"""


def test_without_the_import_transformers_says_that_there_are_no_weights_it_knows(repository: Path) -> None:
    """No random weights in silence: what loads without this package is nothing."""
    code = "import conftest\n" + PROGRAM
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (tests.parent, tests, tests / "helpers", tests.parent / "examples" / "bench")))
    done = subprocess.run(
        [sys.executable, "-c", code, str(repository)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode
    assert "no file named model.safetensors" in done.stderr


# --- what is wrong with a repository ---------------------------------------------------------


def test_a_repository_with_two_files_is_one_clear_error(copied: Path) -> None:
    changed(copied)
    assert same(transformers.AutoModel.from_pretrained(copied), load_state_dict(copied / DATA)), "one needs no name"
    shutil.copy(copied / DATA, copied / "other.opq.safetensors")
    with pytest.raises(SourceError, match=r"more than one opq file in the folder: got model.opq.*, other.opq"):
        transformers.AutoModel.from_pretrained(copied)
    changed(copied, file="other.opq.safetensors")
    assert same(transformers.AutoModel.from_pretrained(copied), load_state_dict(copied / DATA))
    assert same(opq.hub.from_pretrained(copied), load_state_dict(copied / DATA))
    (copied / "config.json").unlink()
    with pytest.raises(SourceError, match="does not hold one opq file"):
        opq.hub.from_pretrained(copied)


@pytest.mark.parametrize("file", ["../model.opq.safetensors", "model.safetensors", "", 3, "a/b.opq.safetensors"])
def test_a_configuration_that_names_no_opq_file_beside_it_is_refused(copied: Path, file: Any) -> None:
    changed(copied, file=file)
    with pytest.raises(SourceError, match=r"config.json names no opq file"):
        transformers.AutoModel.from_pretrained(copied)


def test_a_file_that_is_cut_or_damaged_is_refused(copied: Path) -> None:
    data = (copied / DATA).read_bytes()
    (copied / DATA).write_bytes(data[:-1])
    with pytest.raises(FileFormatError, match="cut off"):
        transformers.AutoModel.from_pretrained(copied)
    start = 8 + int.from_bytes(data[:8], "little")
    (copied / DATA).write_bytes(data[: start + 40] + bytes([data[start + 40] ^ 1]) + data[start + 41 :])
    with pytest.raises(CorruptFileError, match="checksum"):
        transformers.AutoModel.from_pretrained(copied)


def test_a_file_of_differences_is_refused_with_the_way_to_load_it(source: Path, copied: Path) -> None:
    old = {name: value + 0.01 for name, value in load_state_of(source).items()}
    opq.compress(load_state_of(source), bits=4, base=old).save(copied / DATA)
    with pytest.raises(WrongBaseError, match=r"differences to another network.*opq.load\(file, model, base="):
        transformers.AutoModel.from_pretrained(copied)


def test_weights_do_not_stay_on_disk(repository: Path, tmp_path: Path) -> None:
    places = {"": "cpu", "encoder": "disk"}
    with pytest.raises(SourceError, match="cannot stay on disk"):
        transformers.AutoModel.from_pretrained(repository, device_map=places, offload_folder=tmp_path)


def test_a_model_is_not_compressed_while_it_is_loaded(source: Path) -> None:
    auto = sys.modules["transformers.quantizers.auto"]
    settings = auto.AUTO_QUANTIZATION_CONFIG_MAPPING["opq"]()
    with pytest.raises(ValueError, match="pre-quantized"):
        transformers.AutoModel.from_pretrained(source, quantization_config=settings)


def test_another_method_s_configuration_stays(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    changed(folder, quant_method="gptq", bits=4)
    opq.compress(load_state_of(source), bits=6).save(file := tmp_path / "m.opq.safetensors")
    up = opq.hub.save_pretrained(file, tmp_path / "up", folder)
    assert (up / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def load_state_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# --- transformers itself ---------------------------------------------------------------------


def test_registering_twice_is_registering_once() -> None:
    auto = sys.modules["transformers.quantizers.auto"]
    before = auto.AUTO_QUANTIZER_MAPPING["opq"]
    opq.hub.register()
    assert auto.AUTO_QUANTIZER_MAPPING["opq"] is before
    quantizer.open_opq_files()
    first = sys.modules["transformers.modeling_utils"].safe_open
    quantizer.open_opq_files()
    assert sys.modules["transformers.modeling_utils"].safe_open is first
    quantizer.tell_what_is_saved()
    save = transformers.PreTrainedModel.save_pretrained
    quantizer.tell_what_is_saved()
    assert transformers.PreTrainedModel.save_pretrained is save


@pytest.mark.parametrize("why", ["version", "functions"])
def test_an_old_transformers_is_named_with_its_version(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = sys.modules["transformers"]
    if why == "version":
        monkeypatch.setattr(there, "__version__", "4.57.1")
    else:
        monkeypatch.delattr(sys.modules["transformers.quantizers.auto"], "register_quantizer")
    with pytest.raises(SourceError, match=rf"too old .*: got transformers {there.__version__}, wanted 5.0"):
        opq.hub.register()
    with pytest.warns(OpqWarning, match=f"transformers {there.__version__} cannot open opq files"):
        registration.register_if_able()


def test_without_transformers_the_module_is_there_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def register() -> None:
        raise AssertionError("there is nothing to register with")

    monkeypatch.setattr(registration, "register", register)
    monkeypatch.setattr(registration.importlib.util, "find_spec", lambda name: None)
    registration.register_if_able()
