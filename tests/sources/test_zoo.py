"""Models by name: Hugging Face folders and caches, timm, torchvision; what is missing is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from source_helpers import assert_holds
from torch import nn

import opq
import opq.hub
from opq import evaluation
from opq.base.extras import need
from opq.errors import MissingExtraError, MissingShardError, SourceError
from opq.export.onnx_model import save_onnx
from opq.sources import open_source
from opq.sources.base import Source
from opq.sources.digits import load

transformers = pytest.importorskip("transformers")


def saved(model: nn.Module, folder: Path, **options: Any) -> Path:
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder


def gpt2() -> Any:
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=1, eos_token_id=2, **size))


def assert_fits(source: Source) -> None:
    """The source has the names, shapes, ties and values of the model that it builds."""
    live = open_source(source.build())
    assert set(source.names) == set(live.names)
    assert_holds(source, {name: value.to(source.by_name[name].dtype) for name, value in live.state_dict().items()})
    assert {n for n in live.names if live.by_name[n].like} == {n for n in source.names if source.by_name[n].like}
    assert {(s.name, s.kind) for s in source} == {(s.name, s.kind) for s in live}
    assert not source.build().training


# --- Hugging Face ----------------------------------------------------------------------------


def test_minilm_is_read_under_the_model_s_names() -> None:
    source = open_source(f"hf:{zoo.minilm_folder()}")
    assert_fits(source)
    assert (source.origin, source.elements, source.ignored) == ("hf", 22_713_216, ("embeddings.position_ids",))
    assert source.folder == zoo.minilm_folder()
    hint = source.input_hint
    assert (hint.modality, hint.vocabulary, hint.tokens, hint.token_types, hint.pad) == ("text", 30_522, 512, 2, 0)


def test_a_plain_folder_in_hugging_face_layout_keeps_the_file_s_names_and_can_be_built() -> None:
    source = open_source(zoo.minilm_folder())
    assert_holds(source, load_file(zoo.minilm_folder() / "model.safetensors"))
    assert source.buildable
    assert source.input_hint.vocabulary == 30_522
    assert type(source.build()).__name__ == "BertModel"


@pytest.mark.parametrize("shard", ["5GB", "4KB"])
def test_tied_output_embeddings_that_the_file_omits_are_ties(tmp_path: Path, shard: str) -> None:
    source = open_source(f"hf:{saved(gpt2(), tmp_path, max_shard_size=shard)}")
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "4KB")
    assert source.by_name["lm_head.weight"].like == "transformer.wte.weight"
    assert_fits(source)
    assert source.input_hint.bos == 1


def test_tied_embeddings_that_the_file_repeats_are_ties_unless_they_differ(tmp_path: Path) -> None:
    path = saved(gpt2(), tmp_path) / "model.safetensors"
    state = load_file(path)
    save_file({**state, "lm_head.weight": state["transformer.wte.weight"].clone()}, path, {"format": "pt"})
    names = {"lm_head.weight", "transformer.wte.weight"}
    (shared,) = [s for s in open_source(f"hf:{tmp_path}") if s.like]
    assert {shared.name, shared.like} == names
    save_file({**state, "lm_head.weight": state["transformer.wte.weight"] + 1}, path, {"format": "pt"})
    assert not [s for s in open_source(f"hf:{tmp_path}") if s.like]


@pytest.mark.parametrize("change", ["without prefix", "old LayerNorm names"])
def test_a_checkpoint_under_older_names_comes_under_the_model_s(tmp_path: Path, change: str) -> None:
    model = gpt2()
    path = saved(model, tmp_path) / "model.safetensors"
    state = load_file(path)
    if change == "without prefix":
        state = {name.removeprefix("transformer."): value for name, value in state.items()}
        state["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    else:
        state = {name.replace("ln_f.weight", "ln_f.gamma"): value for name, value in state.items()}
    save_file(state, path, {"format": "pt"})
    source = open_source(f"hf:{tmp_path}")
    assert source.ignored == (("h.0.attn.bias",) if change == "without prefix" else ())
    assert_holds(source, model.state_dict())


@pytest.mark.parametrize("kind", ["mixtral", "vit"])
def test_tensors_that_transformers_renames_or_fuses_are_the_model_s(tmp_path: Path, kind: str) -> None:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "vit":
        config = transformers.ViTConfig(**size, image_size=32, patch_size=8)
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.MixtralConfig(**size, num_key_value_heads=2, vocab_size=50, num_local_experts=4)
        model = transformers.MixtralForCausalLM(config).to(torch.bfloat16)
    source = open_source(f"hf:{saved(model, tmp_path)}")
    assert_fits(source)
    assert source.folder == tmp_path
    assert_holds(source, model.state_dict())
    assert source.input_hint.image_size == ((3, 32, 32) if kind == "vit" else None)


def test_a_head_that_the_checkpoint_lacks_is_not_made_up(tmp_path: Path) -> None:
    path = saved(gpt2(), tmp_path) / "model.safetensors"
    state = load_file(path)
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, path, {"format": "pt"})
    source = open_source(f"hf:{tmp_path}")
    assert_holds(source, state)
    with pytest.raises(SourceError, match=r"lacks transformer\.h\.1\.mlp\.c_fc\.weight"):
        source.build()


def test_a_model_unknown_to_transformers_is_still_weights(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    source = open_source(f"hf:{tmp_path}")
    assert source.names == ("w",)
    with pytest.raises(SourceError, match="transformers does not know the model"):
        source.build()
    with pytest.raises(SourceError, match="transformers does not know the model"):
        open_source(tmp_path).build()


def cached(cache: Path, name: str) -> Path:
    """A snapshot folder in a Hugging Face cache, as a download leaves it."""
    entry = cache / f"models--{name.replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    return entry / "snapshots" / ("0" * 40)


def test_a_name_is_found_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = saved(gpt2(), cached(tmp_path, "org/tiny"))
    source = open_source("hf:org/tiny")
    assert (source.label, source.folder.resolve()) == ("hf:org/tiny", folder.resolve())
    assert_fits(source)


@pytest.mark.parametrize("name", ["org/none", "org/none@v1", "no such name!"])
def test_a_name_that_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=rf"hf:{name} cannot be had: got \w+Error: .*network"):
        open_source(f"hf:{name}")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        open_source(f"hf:{tmp_path}/none")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    with pytest.raises(MissingShardError):
        open_source(f"hf:{tmp_path}")


# --- timm and torchvision --------------------------------------------------------------------


def test_a_timm_model_says_what_it_takes() -> None:
    pytest.importorskip("timm")
    source = open_source("timm:mobilenetv3_small_050?pretrained=false")
    assert source.label == "timm:mobilenetv3_small_050"
    assert_fits(source)
    assert source.input_hint.image_size == (3, 224, 224)
    assert all(group.eps for group in source.batchnorms.values())
    assert len(source.batchnorms) == 34


@pytest.mark.parametrize(
    ("name", "side"), [("squeezenet1_1", 224), ("mobilenet_v3_small", 224), ("lraspp_mobilenet_v3_large", 224)]
)
def test_a_torchvision_model_says_what_it_takes(name: str, side: int) -> None:
    pytest.importorskip("torchvision")
    source = open_source(f"torchvision:{name}", pretrained=False)
    assert_fits(source)
    assert source.input_hint.image_size == (3, side, side)
    assert source.input_hint.mean == (0.485, 0.456, 0.406)


def test_random_weights_are_the_same_every_time_and_leave_the_generator_alone() -> None:
    pytest.importorskip("torchvision")
    before = torch.get_rng_state()
    one, two = (open_source("torchvision:squeezenet1_1?pretrained=false") for _ in range(2))
    assert_holds(one, two.state_dict())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("timm:resnet81", r"timm has no model 'resnet81': wanted a name such as .*resnet18"),
        ("torchvision:resnett18", r"torchvision has no model 'resnett18': wanted a name such as resnet18"),
        ("timm:resnet18?color=red", r"option not understood: got 'color=red', wanted timm:resnet18\?pretrained=false"),
        ("timm:", "names nothing"),
        ("hf:", "names nothing"),
    ],
)
def test_a_wrong_name_is_said(name: str, fact: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    with pytest.raises(SourceError, match=fact):
        open_source(name)


def test_weights_that_cannot_be_fetched_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sys.modules["torch.hub"], "download_url_to_file", offline)
    assert models.list_models()
    with pytest.raises(SourceError, match=r"weights cannot be had: got OSError: no route .*\?pretrained=false"):
        open_source("torchvision:resnet18")


# --- extras ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("timm:resnet18", "timm", "timm"),
        ("torchvision:resnet18", "torchvision", "torchvision"),
        ("hf:org/name", "transformers", "hf"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, source: str, package: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf'{package} is not installed.*pip install "opq\[{extra}\]"'):
        open_source(source)


@pytest.mark.parametrize("error", ["RuntimeError('operator torchvision::nms does not exist')", "ImportError('no .so')"])
def test_a_broken_package_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    (tmp_path / "opq_broken_package.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match="opq_broken_package does not import") as caught:
        need("opq_broken_package", "hf")
    assert not isinstance(caught.value, MissingExtraError)


EXTRAS = [
    ("matplotlib", "report", lambda path: opq.compress("demo:digits", bits=3, probe=False).plot()),
    ("jinja2", "report", lambda path: opq.compress("demo:digits", bits=3, probe=False).to_html(path / "r.html")),
    ("PIL", "images", lambda path: evaluation.open_images(path)),
    ("huggingface_hub", "hf", lambda path: opq.hub.from_pretrained("org/name")),
    ("onnxscript", "onnx", lambda path: save_onnx(path / "x", path / "y", load())),
]


@pytest.mark.parametrize(("package", "extra", "use"), EXTRAS, ids=[package for package, *_ in EXTRAS])
def test_a_feature_without_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, use: Any
) -> None:
    """As where the package is not installed, its modules included."""
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf'{package}.* is not installed.*pip install "opq\[{extra}\]"'):
        use(tmp_path)


def test_a_package_of_another_torch_is_named_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("opq.base.extras.importlib.import_module", broken)
    with pytest.raises(SourceError, match=r"Install a build of torchvision for torch \d"):
        need("torchvision.transforms.v2", "finetune")
