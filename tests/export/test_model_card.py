"""The card of a hub folder: what the original's says stays, where it lay on a disk stays unsaid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import opq
from opq.export import front_matter, save_compressed_folder
from opq.export.model_card import hub_name, model_card

ORIGINAL = """---
license: apache-2.0
language:
- en
- de
tags: [sentence-similarity, 'bert']
base_model: somebody/else
model-index:
- name: small
  results:
  - value: 99
pipeline_tag: sentence-similarity
---

# Small model

Use it well.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "LICENSE").write_text("Apache")
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "m.opq.safetensors"
    opq.compress(torch.nn.Linear(64, 64), bits=6, probe=False).save(path)
    return path


def card_of(file: Path, folder: Path, out: Path) -> str:
    return (save_compressed_folder(file, out, folder) / "README.md").read_text(encoding="utf-8")


def test_licence_language_and_tags_go_on_and_scores_do_not(file: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text(ORIGINAL)
    blocks, text = front_matter.split(card_of(file, folder, tmp_path / "up"))
    assert blocks["license"] == "license: apache-2.0"
    assert front_matter.items(blocks["language"]) == ["en", "de"]
    assert front_matter.items(blocks["tags"]) == ["sentence-similarity", "bert", "opq", "compressed"]
    assert blocks["pipeline_tag"] == "pipeline_tag: sentence-similarity"
    assert not {"model-index", "base_model"} & set(blocks)  # a folder's name is no repository
    assert text.index("## Compressed with opq") < text.index("# Small model") < text.index("Use it well.")


def test_a_folder_without_a_card_gets_one_that_does_not_say_where_it_lay(
    file: Path, folder: Path, tmp_path: Path
) -> None:
    card = card_of(file, folder, tmp_path / "up")
    assert str(folder) not in card
    assert "`small`" in card
    assert "base_model" not in card
    assert "original model card" not in card


def test_a_folder_named_as_a_source_stays_unsaid_too(file: Path, folder: Path) -> None:
    with opq.Reader(file) as reader:
        card = model_card(reader, source=f"hf:{folder}")
    assert str(folder) not in card
    assert "base_model" not in card


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf:org/name", "org/name"),
        ("hf:org/name@v1", "org/name"),
        ("hf:name", "name"),
        ("hf:/home/me/name", None),
        ("hf:./name", None),
        ("hf:~/name", None),
        ("/home/me/name", None),
        ("org/name", None),
        ("hf:a\nb: c", None),
    ],
)
def test_only_a_name_on_the_hub_is_a_base_model(source: str, name: str | None) -> None:
    assert hub_name(source) == name


def test_a_folder_here_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("hf:org/name") is None


def test_a_card_made_twice_is_the_same(file: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text(ORIGINAL)
    assert card_of(file, folder, tmp_path / "up") == card_of(file, folder, tmp_path / "up")


@given(st.text(alphabet=" -:#\n[]'abt", max_size=60))
def test_any_text_is_split_and_joined_again(text: str) -> None:
    blocks, body = front_matter.split(text)
    assert front_matter.split(front_matter.joined(blocks) + body)[0] == blocks
    for block in blocks.values():
        front_matter.items(block)


def test_a_model_of_transformers_names_the_library_and_its_call_unless_the_original_names_another(
    file: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')
    card = card_of(file, folder, tmp_path / "up")
    assert front_matter.split(card)[0]["library_name"] == "library_name: transformers"
    assert 'AutoModel.from_pretrained("ORG/NAME")' in card
    (folder / "README.md").write_text("---\nlibrary_name: sentence-transformers\n---\n")
    blocks, _ = front_matter.split(card_of(file, folder, tmp_path / "other"))
    assert blocks["library_name"] == "library_name: sentence-transformers"
    (folder / "config.json").write_text("{}")
    (folder / "README.md").unlink()
    card = card_of(file, folder, tmp_path / "third")
    assert "library_name" not in card
    assert "opq.hub.from_pretrained" in card
