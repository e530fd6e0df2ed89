"""What lies beside the weights: which files belong to the model, and whose files are never touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stream_helpers import checkpoint, contents, small_llama

import opq
from opq.errors import OccupiedFolderError, OpqWarning
from opq.export import save_compressed_folder, save_compressed_tensors, save_folder
from opq.sources import side_files
from opq.streaming import compress_folder, save_dense_folder


def filled(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


MODULES = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}])


def sentence_model(folder: Path) -> Path:
    """A folder as sentence-transformers writes it, with much beside that is none of this model."""
    return filled(
        folder,
        {
            "config.json": "{}",
            "modules.json": MODULES,
            "tokenizer.json": "{}",
            "README.md": "# theirs",
            "LICENSE": "free",
            "model.safetensors": "weights",
            "model.safetensors.index.json": "{}",
            "pytorch_model.bin": "weights",
            ".git/config": "hidden",
            ".gitattributes": "hidden",
            "1_Pooling/config.json": "{}",
            "2_Dense/config.json": "{}",
            "2_Dense/model.safetensors": "weights of a module that nobody compressed",
            "assets/deep/vocabulary.txt": "words",
            "onnx/model.onnx": "weights",
            "onnx/config.json": "of another model",
            "checkpoint-500/pytorch_model.bin": "weights",
            "checkpoint-500/trainer_state.json": "{}",
        },
    )


OURS = {
    *("config.json", "modules.json", "tokenizer.json", "README.md", "LICENSE", "1_Pooling/config.json"),
    *("2_Dense/config.json", "2_Dense/model.safetensors", "assets/deep/vocabulary.txt"),
}


def test_sub_folders_of_the_model_belong_to_it_and_other_models_do_not(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "model")
    assert {str(path) for path in side_files.listed(folder)} == OURS
    side_files.copy(folder, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == OURS
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").read_text().startswith("weights of a module")


def test_an_output_within_the_source_is_not_copied_into_itself(tmp_path: Path) -> None:
    folder = sentence_model(tmp_path / "model")
    for _ in range(2):
        side_files.copy(folder, folder / "out")
    assert set(contents(folder / "out")) == OURS


@pytest.mark.parametrize(
    "text", ["{", "[1]", '[{"path": "../other"}]', '[{"path": 3}]', '{"path": "x"}', "[" * 100_000]
)
def test_a_list_of_modules_that_makes_no_sense_names_none(text: str, tmp_path: Path) -> None:
    folder = filled(tmp_path / "model", {"modules.json": text, "other/model.bin": "w", "1_Pooling/config.json": "{}"})
    assert {str(path) for path in side_files.listed(folder)} == {"modules.json", "1_Pooling/config.json"}


def test_a_link_out_of_the_folder_is_not_followed_and_that_is_said(tmp_path: Path) -> None:
    secret = filled(tmp_path, {"secret.txt": "key", "folder/secret.json": "key"})
    folder = filled(tmp_path / "model", {"config.json": "{}", "vocabulary/a.txt": "a"})
    (folder / "tokenizer.json").symlink_to(secret / "secret.txt")
    (folder / "extra").symlink_to(secret / "folder")
    (folder / "same.json").symlink_to("config.json")
    (folder / "gone.txt").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.txt")
    with pytest.warns(OpqWarning, match=r"links out of .*model: extra, tokenizer.json$"):
        side_files.copy(folder, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"config.json", "same.json", "vocabulary/a.txt"}


def test_links_of_the_hugging_face_cache_lead_to_its_blobs(tmp_path: Path) -> None:
    cache = filled(tmp_path / "models--a--b", {"blobs/12": "{}", "blobs/34": "pooling"})
    folder = cache / "snapshots" / "main"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").symlink_to("../../blobs/12")
    (folder / "1_Pooling" / "config.json").symlink_to("../../../blobs/34")
    side_files.copy(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == {"config.json": b"{}", "1_Pooling/config.json": b"pooling"}


def linked(place: Path, to: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(to)


TAKEN: dict[str, Callable[[Path], object]] = {
    "another text": lambda out: filled(out, {"README.md": "mine"}),
    "a folder": lambda out: filled(out, {"README.md/mine.txt": "mine"}),
    "a link": lambda out: linked(filled(out, {"mine.md": "# theirs"}) / "README.md", "mine.md"),
    "a dangling link": lambda out: linked(out / "README.md", "nowhere"),
    "a file for a folder": lambda out: filled(out, {"1_Pooling": "mine"}),
    "a link for a folder": lambda out: linked(filled(out, {"x/config.json": "{}"}) / "1_Pooling", "x"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_strangers_file_is_never_replaced_and_nothing_is_written_then(kind: str, tmp_path: Path) -> None:
    folder, out = sentence_model(tmp_path / "model"), tmp_path / "out"
    TAKEN[kind](out)
    before = contents(out)
    with pytest.raises(OccupiedFolderError, match=r"another file of that name: got (README.md|1_Pooling/config.json)"):
        side_files.copy(folder, out)
    assert contents(out) == before


def test_what_is_there_already_and_the_same_stays_as_it_is(tmp_path: Path) -> None:
    folder, out = sentence_model(tmp_path / "model"), tmp_path / "out"
    side_files.copy(folder, out)
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    side_files.copy(folder, out)
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before


# --- every way out keeps the rule --------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama with a pooling folder beside it."""
    folder = tmp_path / "model"
    small_llama().save_pretrained(folder)
    return filled(folder, {"1_Pooling/config.json": "{}", "README.md": "# theirs"})


def test_folders_and_exports_take_sub_folders_along(model: Path, tmp_path: Path) -> None:
    compress_folder(model, tmp_path / "folder", bits=6, probe=False)
    save_dense_folder(tmp_path / "folder", tmp_path / "dense")
    opq.compress(model, bits=6, probe=False).save(tmp_path / "m.opq.safetensors")
    save_folder(tmp_path / "m.opq.safetensors", tmp_path / "hf", model)
    save_compressed_folder(tmp_path / "m.opq.safetensors", tmp_path / "hub", model)
    save_compressed_tensors(tmp_path / "m.opq.safetensors", tmp_path / "ct", model, strict=False)
    for name in ("folder", "dense", "hf", "hub", "ct"):
        assert (tmp_path / name / "1_Pooling" / "config.json").read_text() == "{}", name
        ours = "Compressed with opq" if name == "hub" else "# theirs"
        assert ours in (tmp_path / name / "README.md").read_text()
    for again in (save_folder, save_compressed_folder):
        again(tmp_path / "m.opq.safetensors", tmp_path / again.__name__, model)
        again(tmp_path / "m.opq.safetensors", tmp_path / again.__name__, model)
    save_compressed_tensors(tmp_path / "m.opq.safetensors", tmp_path / "ct", model, strict=False)


@pytest.mark.parametrize("kind", ["folder", "dense", "hf", "hub", "ct"])
def test_no_way_out_replaces_a_strangers_file(kind: str, model: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "m.opq.safetensors", tmp_path / "out"
    opq.compress(model, bits=6, probe=False).save(file)
    compress_folder(model, tmp_path / "folder", bits=6, probe=False)
    name = "config.json" if kind == "ct" else "README.md"
    filled(out, {name: "mine", ".x.part": "mine too"})
    before = contents(out)
    ways: dict[str, Callable[[], object]] = {
        "folder": lambda: compress_folder(model, out, bits=6, probe=False),
        "dense": lambda: save_dense_folder(tmp_path / "folder", out),
        "hf": lambda: save_folder(file, out, model),
        "hub": lambda: save_compressed_folder(file, out, model),
        "ct": lambda: save_compressed_tensors(file, out, model, strict=False),
    }
    with pytest.raises(OccupiedFolderError, match=f"another file of that name: got {name}"):
        ways[kind]()
    assert contents(out).items() >= before.items()
    assert not list(out.glob("*safetensors*"))


def test_sentence_transformers_loads_a_folder_that_was_compressed(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "text"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    reader = modules.Transformer(str(tmp_path / "bert"))
    pooling = modules.Pooling(32, pooling_mode="cls")
    dense = modules.Dense(32, 8)
    whole = library.SentenceTransformer(modules=[reader, pooling, dense], device="cpu")
    whole.save(str(tmp_path / "model"))
    compress_folder(tmp_path / "model", tmp_path / "out", bits=8, probe=False)
    save_dense_folder(tmp_path / "out", tmp_path / "dense")
    loaded = library.SentenceTransformer(str(tmp_path / "dense"), device="cpu")
    wanted, found = (torch.from_numpy(m.encode(["a small text"])) for m in (whole, loaded))
    assert found.shape == (1, 8)
    assert torch.nn.functional.cosine_similarity(wanted, found).item() > 0.99
    import opq.hub  # noqa: F401  (teaches transformers, which sentence-transformers loads by)

    small = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert torch.equal(torch.from_numpy(small.encode(["a small text"])), found)


def test_a_strangers_file_in_a_folder_that_is_filled_stays(tmp_path: Path) -> None:
    source, out = checkpoint(tmp_path / "model"), tmp_path / "out"
    mine = {"notes.txt": "mine", ".x.part": "mine", ".model.opq.safetensors.0123abcd.part": "mine"}
    filled(out, mine)
    compress_folder(source, out, bits=4)
    after = contents(out)
    assert {name: after[name].decode() for name in mine} == mine


def test_weights_are_no_side_files(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, filled(tmp_path / "m", {"a.txt": "a", "x.gguf": "w"}) / "model.safetensors")
    assert side_files.listed(tmp_path / "m") == [Path("a.txt")]


@pytest.mark.parametrize("config", ["{}", '{"layers": 3}'])
def test_a_configuration_that_says_little_makes_a_folder_a_models_own(config: str, tmp_path: Path) -> None:
    filled(tmp_path / "model", {"config.json": config, "tokenizer.json": "theirs"})
    save_file({"a.weight": torch.randn(64, 64)}, tmp_path / "model" / "model.safetensors")
    compress_folder(tmp_path / "model", tmp_path / "small", bits=4)
    beside = {name: contents(tmp_path / "small")[name] for name in ("config.json", "tokenizer.json")}
    assert beside == {"config.json": config.encode(), "tokenizer.json": b"theirs"}
