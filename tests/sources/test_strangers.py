"""Checkpoints and folders of strangers: found, bounded, named in the report, and never run."""

from __future__ import annotations

import json
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import opq
from opq.compression import coders
from opq.errors import CorruptSourceError, OpqError, ProbeError, ProbeWarning, SourceError
from opq.sources import files, hf_models, open_source

State = dict[str, Any]


def state(scale: float = 1.0) -> State:
    torch.manual_seed(0)
    return {name: t * scale for name, t in nn.Linear(64, 64).state_dict().items()}


def refusal(call: Callable[[], object]) -> str:
    """What a call is refused with, empty where it is not."""
    try:
        call()
    except OpqError as error:
        return str(error)
    return ""


# --- which of its mappings is the state dict ----------------------------------------------------


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "params_ema", "generator", "netG", "whatever"])
def test_a_tensor_beside_the_state_dict_does_not_hide_it(key: str, tmp_path: Path) -> None:
    held: State = {key: state(), "epoch": 3, "optimizer": {"lr": 0.1}}
    if key != "whatever":
        held["best_acc1"] = torch.tensor(71.0)
    torch.save(held, tmp_path / "m.pt")
    for source in (open_source(held), open_source(tmp_path / "m.pt")):
        assert source.names == ("weight", "bias")
        assert set(source.ignored) == set(held) - {key}


def test_of_two_versions_the_averaged_one_is_taken() -> None:
    found = open_source({"params": state(), "params_ema": state(2.0)})
    assert torch.equal(found.tensor("weight"), state(2.0)["weight"])
    assert found.ignored == ("params",)


def test_several_state_dicts_under_unknown_keys_are_not_guessed_between() -> None:
    with pytest.raises(SourceError, match="holds several state dicts: got 'a', 'b'"):
        open_source({"a": state(), "b": state()})


def test_a_checkpoint_that_holds_itself_is_read_or_refused_but_ends(tmp_path: Path) -> None:
    alone: State = {"epoch": 1}
    alone["model"] = alone
    beside: State = state()
    beside["model"] = beside
    for held, names in ((alone, None), (beside, ("weight", "bias"))):
        torch.save(held, tmp_path / "m.pt")
        for source in (held, tmp_path / "m.pt"):
            if names is None:
                with pytest.raises(SourceError, match="holds no weights"):
                    open_source(source)
            else:
                assert open_source(source).names == names


# --- what a source may expand to ---------------------------------------------------------------


def test_a_small_checkpoint_of_a_large_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 14, 1 << 15)}, tmp_path / "wide.pt")
    torch.save({f"w{i}": torch.zeros(2)[:1].expand(1 << 23) for i in range(9)}, tmp_path / "many.pt")
    torch.save({"w": torch.zeros(1 << 25)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "flat.pt", "w", 8) as flat:
        for name in plain.namelist():
            flat.writestr(name, plain.read(name))
    assert (tmp_path / "flat.pt").stat().st_size < 200_000
    for name in ("wide.pt", "many.pt"):
        with pytest.raises(SourceError, match=r"is expanded|expands beyond its size"):
            open_source(tmp_path / name)
    start = files.EXPANSION
    assert (tmp_path / "flat.pt").stat().st_size * start > 1 << 27, "within what is allowed"
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8, compresslevel=9) as bomb:
        bomb.writestr("m/data/0", bytes(1 << 26))
        bomb.writestr("m/data/1", bytes(1 << 26))
    with pytest.raises(SourceError):
        open_source(tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    ("bad", "fact"),
    [
        ({"a\ud800": torch.ones(64, 64)}, "its name is no text"),
        ({"x" * 5000: torch.ones(64, 64)}, "its name is too long"),
        ({"w": torch.ones(64, 64), "e": torch.empty(0, 2**50)}, "its shape is beyond all bounds"),
        ({"w": torch.zeros(1).expand(10**6, 10**6)}, "'w' is expanded"),
    ],
)
def test_what_no_file_can_hold_is_one_error(bad: State, fact: str) -> None:
    with pytest.raises(SourceError, match=fact):
        opq.compress(bad, bits=8)


@pytest.mark.parametrize("bits", [1e12, 1e30, 1e300, 1e-30, 1e-300])
def test_a_budget_beyond_all_bounds_is_one_error_or_a_file(bits: float) -> None:
    said = refusal(lambda: opq.compress({"w": torch.randn(64, 64)}, bits=bits))
    assert not said if 1 < bits < 1e31 else "budget" in said or "bounds" in said


# --- reading -------------------------------------------------------------------------------------


def test_a_header_is_parsed_once_for_all_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {f"w{i}": torch.full((5,), float(i)) for i in range(200)} | {"e": torch.empty(0, 3), "s": torch.tensor(3.0)}
    save_file(held, tmp_path / "m.safetensors")
    opened: list[object] = []
    real = files.safe_open

    def counted(*a: Any, **k: Any) -> Any:
        opened.append(a)
        return real(*a, **k)

    monkeypatch.setattr(files, "safe_open", counted)
    source = open_source(tmp_path / "m.safetensors")
    assert all(torch.equal(source.tensor(name), tensor) for name, tensor in held.items())
    assert len(opened) == 1


def test_a_file_that_changed_under_us_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(state(), path)
    source = open_source(path)
    time.sleep(0.02)
    save_file(state(2.0), path)
    with pytest.raises(CorruptSourceError, match="has changed since it was opened"):
        source.tensor("weight")


# --- vectors that are no parameters --------------------------------------------------------------


def test_frequencies_schedules_and_masks_of_bare_weights_are_kept_exactly() -> None:
    exact = {
        "rotary.inv_freq": 1.0 / 10000 ** (torch.arange(0, 128, 2) / 128),
        "betas": torch.linspace(1e-4, 0.02, 100) ** 2,
        "alphas_cumprod": torch.linspace(1, 1e-5, 100),
        "A_log": torch.linspace(-9, 9, 64),
        "attn.mask": torch.full((32, 32), -torch.inf).triu(1),
        "rope.cos_cached": torch.cos(torch.arange(64.0)).view(8, 8),
    }
    ordinary = {"norm.weight": torch.rand(64) + 1, "ls.gamma_1": torch.rand(64), "q.bias_ih_l0": torch.randn(64)}
    result = opq.compress(exact | ordinary | {"l.weight": torch.randn(256, 256)}, bits=4)
    assert all(torch.equal(result.tensor(name), value) for name, value in exact.items())
    assert not any(torch.equal(result.tensor(name), value) for name, value in ordinary.items())


# --- what is left out --------------------------------------------------------------------------------


class Extra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"scale": 3}

    def set_extra_state(self, state: object) -> None: ...


@pytest.mark.filterwarnings("ignore:_extra_state")
def test_every_thing_left_out_is_in_the_report(tmp_path: Path) -> None:
    from rich.console import Console

    save_file(state(), tmp_path / "m.safetensors", metadata={"format": "pt", "author": "me"})
    for source, name in ((Extra(64, 64), "_extra_state"), (tmp_path / "m.safetensors", "metadata 'author'")):
        result = opq.compress(source, bits=6, probe=False)
        assert result.left_out == (name,)
        console = Console(width=200)
        with console.capture() as drawn:
            console.print(result.report())
        assert f"Left out: {name}." in drawn.get()
        assert "By the weights alone: no probe was asked for." in drawn.get()
        assert name.split("'")[0] in result._repr_html_()
    streamed = opq.compress_folder(tmp_path / "m.safetensors", tmp_path / "out", bits=6)
    assert streamed.left_out == ("metadata 'author'",)


# --- folders of transformers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                                    image_size=32, patch_size=8)  # fmt: skip
    folder = tmp_path_factory.mktemp("vit") / "vit"
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def mixtral() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64,
        num_local_experts=4, vocab_size=128, max_position_embeddings=64,
    )  # fmt: skip
    model: nn.Module = transformers.MixtralForCausalLM(config)
    return model


def test_a_streamed_checkpoint_goes_back_into_a_model_that_renames_its_tensors(tmp_path: Path, vit: Path) -> None:
    import transformers

    model = mixtral()
    model.save_pretrained(tmp_path / "mixtral")
    for name, folder, target in (
        ("m", tmp_path / "mixtral", model),
        ("v", vit, transformers.ViTForImageClassification.from_pretrained(vit)),
    ):
        before = {n: t.clone() for n, t in target.state_dict().items()}
        opq.compress_folder(folder, tmp_path / name, bits=10, probe=False)
        opq.load(tmp_path / name, target)
        after = target.state_dict()
        assert all(float((after[n] - t).norm()) <= 0.02 * float(t.norm()) for n, t in before.items())
        assert any(not torch.equal(after[n], t) for n, t in before.items())


NONSENSE: list[State] = [
    {"hidden_size": None},
    {"hidden_size": "big"},
    {"hidden_size": 10**12},
    {"hidden_size": 2**31},
    {"num_hidden_layers": 4 * 10**9},
    {"model_type": "nonsense"},
    {"model_type": ["x"]},
    {"architectures": [["x"]]},
    {"architectures": ["os"]},
    {"patch_size": 0},
    {"image_size": []},
    {"dtype": "nonsense"},
]


@pytest.mark.parametrize("change", NONSENSE, ids=str)
def test_a_configuration_of_nonsense_is_one_error_or_weights_alone(change: State, vit: Path, tmp_path: Path) -> None:
    shutil.copytree(vit, tmp_path / "m")
    config = json.loads((vit / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | change))
    assert opq.compress(tmp_path / "m", bits=12, probe=False).plan.compressed
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = opq.compress(tmp_path / "m", bits=12)
    probed = result.basis.startswith("a probe")
    assert probed or any("is compressed by its weights alone" in str(w.message) for w in seen)
    said = refusal(lambda: opq.compress(f"hf:{tmp_path / 'm'}", bits=12))
    assert not said or "probe=False" in said
    assert opq.compress(f"hf:{tmp_path / 'm'}", bits=12, probe=False).plan.compressed


def test_a_folder_is_probed_as_a_named_model_is_unless_it_is_large(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=99)).save_pretrained(tmp_path)
    named, result = opq.compress(f"hf:{tmp_path}", bits=4), opq.compress(tmp_path, bits=4)
    assert result.basis == named.basis
    assert result.basis.startswith("a probe of the model on synthetic inputs")
    told = [{t.name: (t.sensitivity, t.codebook) for t in r.plan.compressed} for r in (named, result)]
    assert told[0] == told[1]
    with pytest.warns(ProbeWarning, match=r"have other names in the model: got vit\..* Name it hf:.*vit"):
        assert opq.compress(vit, bits=4).basis.startswith("the weights alone")
    monkeypatch.setattr(coders, "WHOLE", 1 << 10)
    result = opq.compress(tmp_path, bits=4)
    assert result.basis.startswith("the weights alone: a model of more than 0 GiB in files is probed by probe=True")
    assert opq.compress(tmp_path, bits=4, probe=True).basis == named.basis


def test_a_named_model_that_cannot_be_probed_is_an_error_and_a_module_a_warning(vit: Path, tmp_path: Path) -> None:
    shutil.copytree(vit, tmp_path / "m")
    config = json.loads((vit / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"model_type": "nonsense"}))
    with pytest.raises(SourceError, match=r"cannot be probed: .*probe=False \(--no-probe\)"):
        opq.compress(f"hf:{tmp_path / 'm'}", bits=12)
    assert opq.compress(f"hf:{tmp_path / 'm'}", bits=12, probe=False).basis.startswith("the weights alone")
    assert opq.compress(f"hf:{vit}", bits=12).basis.startswith("a probe of the model on synthetic inputs")

    class Odd(nn.Linear):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError("no")

    with pytest.warns(opq.errors.ProbeWarning):
        assert opq.compress(Odd(64, 64), bits=8).basis == "the weights alone: the model could not be probed"
    with pytest.raises(ProbeError):
        opq.compress(Odd(64, 64), bits=8, probe=True)


# --- code of strangers --------------------------------------------------------------------------------


@pytest.fixture
def own_code(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose model is Python code of its own, which leaves a trace where it is run."""
    folder = tmp_path / "own"
    shutil.copytree(vit, folder)
    config = json.loads((vit / "config.json").read_text())
    auto = {"AutoConfig": "mine.C", "AutoModel": "mine.M"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mine", "auto_map": auto}))
    (folder / "mine.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'trace')!r}).write_text('ran')\n"
        "from transformers import ViTConfig, ViTModel\n"
        "class C(ViTConfig): model_type = 'mine'\nclass M(ViTModel): config_class = C\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return folder


CALLS: dict[str, Callable[[Path, Path], object]] = {
    "named": lambda own, out: opq.compress(f"hf:{own}", bits=12),
    "named, unprobed": lambda own, out: opq.compress(f"hf:{own}", bits=12, probe=False),
    "folder": lambda own, out: opq.compress(own, bits=12),
    "folder, probed": lambda own, out: opq.compress(own, bits=12, probe=True),
    "streamed": lambda own, out: opq.compress_folder(own, out, bits=12),
    "streamed, probed": lambda own, out: opq.compress_folder(own, out, bits=12, probe=True),
    "built": lambda own, out: open_source(f"hf:{own}").build(),
    "hinted": lambda own, out: open_source(own).input_hint,
}


@pytest.mark.filterwarnings("ignore::opq.errors.ProbeWarning")
@pytest.mark.parametrize("call", CALLS)
def test_no_code_of_a_folder_is_run_whatever_stands_on_standard_input(
    call: str, own_code: Path, tmp_path: Path
) -> None:
    said = refusal(lambda: CALLS[call](own_code, tmp_path / "out"))
    assert not said or "trust_remote_code=True" in said
    assert not (tmp_path / "trace").exists()


def test_the_hub_runs_no_code_either(own_code: Path, vit: Path, tmp_path: Path) -> None:
    import opq.hub

    opq.compress(own_code, bits=12, probe=False).save(own_code / "model.opq.safetensors")
    with pytest.raises(SourceError, match="runs Python code of its own"):
        opq.hub.from_pretrained(own_code)
    assert not (tmp_path / "trace").exists()


def test_code_is_run_where_the_user_trusts_it(own_code: Path, tmp_path: Path) -> None:
    assert type(open_source(own_code, trust_remote_code=True).build()).__name__ == "M"
    assert (tmp_path / "trace").read_text() == "ran"


def test_a_kernel_that_a_configuration_asks_for_is_code_too(vit: Path, tmp_path: Path) -> None:
    shutil.copytree(vit, tmp_path / "m")
    config = json.loads((vit / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"attn_implementation": "someone/kernel"}))
    with pytest.raises(SourceError, match=r"runs Python code of its own|someone/kernel"):
        opq.compress(f"hf:{tmp_path / 'm'}", bits=12)


# --- names that other libraries look for ------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "content", "stem"),
    [
        ("adapter_config.json", {"peft_type": "LORA"}, "adapter_model"),
        ("config.json", {"_class_name": "UNet2DModel", "_diffusers_version": "0.30"}, "diffusion_pytorch_model"),
        ("config.json", {"hidden_size": 3}, "model"),
    ],
)
def test_a_folder_comes_back_under_the_names_that_its_library_looks_for(
    description: str, content: State, stem: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / description).write_text(json.dumps(content))
    save_file(state(), tmp_path / "in" / f"{stem}.safetensors")
    opq.compress_folder(tmp_path / "in", tmp_path / "small", bits=8)
    opq.streaming.save_dense_folder(tmp_path / "small", tmp_path / "dense")
    assert json.loads((tmp_path / "dense" / description).read_text()) == content
    weights = [p.name for p in (tmp_path / "dense").glob("*.safetensors")]
    assert weights == [f"{stem}.safetensors" if stem != "model" else "model-00001-of-00001.safetensors"]
    assert set(open_source(tmp_path / "dense").names) == set(state())


def test_a_model_that_transformers_cannot_build_is_said(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 50}
    transformers.BertModel(transformers.BertConfig(vocab_size=90, **sizes)).save_pretrained(tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
    with pytest.raises(SourceError, match=r"transformers cannot build the model in .*bert: got .*multiple"):
        hf_models.build_transformers(tmp_path / "bert")
