"""The streamed path where something is wrong with the disk or with what was written."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stream_helpers import SHARD, checkpoint, contents, weights
from torch import nn

import opq
from opq.errors import CorruptFileError, WriteError
from opq.file.folder_reader import INDEX, FolderReader
from opq.streaming.dense import save_dense_folder
from opq.streaming.run import compress_folder

# --- damage found late ---------------------------------------------------------------------------


class Named(nn.Module):
    """A model with the names and shapes of a state dict."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_buffer(last, torch.full_like(tensor, 3))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards whose tensors have checksums of their own."""
    folder = tmp_path_factory.mktemp("large")
    source = checkpoint(
        folder / "model", [{"a.weight": weights(400, 512, seed=1)}, {"b.weight": weights(400, 512, seed=2)}]
    )
    compress_folder(source, folder / "out", bits=4, shard_size=100_000)
    assert len(list((folder / "out").glob("model-*"))) == 2
    return folder / "out"


def damaged(folder: Path, number: int) -> str:
    """Changes one bit in the largest payload of a shard; the tensor's name."""
    path = sorted(folder.glob("model-*"))[number]
    with opq.Reader(path) as reader:
        name, (start, stop) = max(reader._spans.items(), key=lambda item: item[1][1] - item[1][0])
    data = bytearray(path.read_bytes())
    data[(start + stop) // 2] ^= 4
    path.write_bytes(data)
    return name


@pytest.mark.parametrize("number", [0, -1])
def test_a_damaged_shard_leaves_the_model_as_it_was(number: int, large: Path, tmp_path: Path) -> None:
    model = Named(opq.load_state_dict(large))
    copy = Path(shutil.copytree(large, tmp_path / "copy"))
    name = damaged(copy, number)
    with pytest.raises(CorruptFileError, match=f"tensor '{name}'.*checksum"):
        opq.load(copy, model)
    assert all(bool((tensor == 3).all()) for tensor in model.state_dict().values())
    opq.load(large, model)
    state = opq.load_state_dict(large)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_damaged_shard_gives_no_dense_file(large: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(large, tmp_path / "copy"))
    damaged(copy, 1)
    with pytest.raises(CorruptFileError, match="checksum"):
        save_dense_folder(copy, tmp_path / "dense")
    assert [p.name for p in (tmp_path / "dense").iterdir()] == ["model-00001-of-00002.safetensors"]


def test_checksums_of_a_folder(large: Path, tmp_path: Path) -> None:
    with FolderReader(large) as reader:
        reader.verify()
    copy = Path(shutil.copytree(large, tmp_path / "copy"))
    damaged(copy, 1)
    with FolderReader(copy) as reader, pytest.raises(CorruptFileError, match=r"model-00002-of-00002.*checksum"):
        reader.verify()


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leaves no room on a disk."""
    with open(folder / "filler", "wb", buffering=0) as out:
        try:
            while out.write(bytes(4096)):
                pass
        except OSError:
            return


@pytest.mark.parametrize(("stage", "at"), [("statistics", 1), ("statistics", 7), ("shards", 1), ("shards", 3)])
def test_a_disk_that_is_full(stage: str, at: int, disk: Path, source: Path, whole: Path) -> None:
    def spoil(name: str, done: int, total: int) -> None:
        if (name, done) == (stage, at):
            fill(disk)

    before = contents(source)
    with pytest.raises(WriteError, match=r"cannot write|no room"):
        compress_folder(source, disk / "out", bits=4, shard_size=SHARD, progress=spoil)
    assert not (disk / "out" / INDEX).exists()
    assert not list((disk / "out").glob(".*.part"))
    written = {p.name: p.read_bytes() for p in (disk / "out").glob("model-*")}
    assert all(written[name] == (whole / name).read_bytes() for name in written)
    assert contents(source) == before
    (disk / "filler").unlink()
    compress_folder(source, disk / "out", bits=4, shard_size=SHARD)
    assert contents(disk / "out") == contents(whole)


def test_a_dense_folder_on_a_full_disk(disk: Path, whole: Path) -> None:
    (disk / "filler").write_bytes(bytes(250_000))
    with pytest.raises(WriteError, match="no room in"):
        save_dense_folder(whole, disk / "dense")
    assert not list((disk / "dense").iterdir())


def test_a_disk_that_cannot_be_written(disk: Path, source: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(WriteError, match=r"cannot write into .*Read-only file system"):
        compress_folder(source, disk / "out", bits=4)
