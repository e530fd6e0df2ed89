"""What reports and exports read of a folder of shards is what they read of one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stream_helpers import SHARD, small_llama

import opq
from opq.errors import ExportError, OptionError
from opq.export import save_compressed_folder, save_dense, save_folder
from opq.report import save_page

MODEL = "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and beside it what it was compressed to."""
    place = tmp_path_factory.mktemp("shards")
    small_llama(layers=2).save_pretrained(place / MODEL, max_shard_size="100KB")
    opq.compress_folder(place / MODEL, place / "out", bits=4, shard_size=SHARD, probe=False)
    return place


def test_a_report_shows_every_tensor(folder: Path, tmp_path: Path) -> None:
    save_page(folder / "out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    with opq.file.folder_reader.open_reader(folder / "out") as reader:
        assert all(name in page for name in reader.names)


def test_dense_tensors_are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    wanted = opq.load_state_dict(folder / "out")
    save_dense(folder / "out", tmp_path / "dense.safetensors")
    found = load_file(tmp_path / "dense.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    save_folder(folder / "out", tmp_path / "hf", folder / MODEL)
    assert load_file(tmp_path / "hf" / "model.safetensors").keys() == found.keys()


def test_what_takes_one_file_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"a repository is made of one file.*Upload the folder itself"):
        save_compressed_folder(folder / "out", tmp_path / "hub", folder / MODEL)
    assert not (tmp_path / "hub").exists()
    with pytest.raises(OptionError, match=r"fine-tuning starts from one file.*into one file"):
        opq.finetune(small_llama(layers=2), folder / "out", texts="own")
