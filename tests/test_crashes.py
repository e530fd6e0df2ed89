"""Killed, on a full disk and in a sealed folder: what was there before stays, whole, and work goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from paths import HELPERS
from training_helpers import learnable_batches, mlp, plan_of

import opq
from opq.errors import WriteError
from opq.export.dense import save_dense
from opq.training import checkpoint


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_killed_at_any_moment() -> None:
    program = [sys.executable, str(HELPERS / "kills.py"), "--kills", "24"]
    done = subprocess.run(program, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {name: (figures["kills"], figures["wrong"]) for name, figures in found.items()} == {
        "save": (12, 0),
        "folder": (6, 0),
        "finetune": (6, 0),
    }


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_old_file(full: Path) -> None:
    path = full / "m.opq.safetensors"
    small, big = (opq.compress({"w": torch.randn(300, 900)}, bits=bits) for bits in (2, 8))
    small.save(path)
    before = path.read_bytes()
    for write in (lambda: big.save(path), lambda: save_dense(path, full / "dense.safetensors")):
        with pytest.raises(WriteError, match="No space left"):
            write()
        assert path.read_bytes() == before
        assert os.listdir(full) == [path.name]
    with pytest.raises(WriteError):
        checkpoint.save(full / "ckpt.pt", {"w": torch.zeros(100_000)})
    with pytest.raises(WriteError, match=r"No space left|no room"):
        opq.compress_folder({"w": torch.randn(600, 900)}, full / "out", bits=8)
    assert opq.load_state_dict(path)["w"].shape == (300, 900)
    assert not list(full.rglob("*.part"))


def test_a_full_disk_leaves_the_last_checkpoint(full: Path) -> None:
    plan, path = plan_of(mlp()), full / "ckpt.pt"
    opq.finetune(mlp(), plan, learnable_batches(), epochs=1, checkpoint=path)
    before = path.read_bytes()
    (full / "fill").write_bytes(bytes(shutil.disk_usage(full).free))
    with pytest.raises(WriteError, match=r"ckpt\.pt"):
        opq.finetune(mlp(), plan, learnable_batches(), epochs=1, checkpoint=path, resume=False)
    assert path.read_bytes() == before
    assert checkpoint.load(path, plan)["epoch"] == 1


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written: by a read-only mount for root, by its permissions for others."""
    folder = tmp_path / "sealed"
    folder.mkdir()
    (folder / "m.opq.safetensors").write_bytes(b"before")
    (folder / "ckpt.pt").write_bytes(b"before")
    if os.geteuid():
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    bound = subprocess.run(["mount", "--bind", folder, folder], capture_output=True)
    if bound.returncode:
        pytest.skip(f"root writes everywhere, and no read-only mount can be made: {bound.stderr.decode().strip()}")
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_folder_that_cannot_be_written_keeps_what_it_has(sealed: Path) -> None:
    result = opq.compress({"w": torch.randn(64, 64)}, bits=6)
    for write in (
        lambda: result.save(sealed / "m.opq.safetensors"),
        lambda: result.save(sealed / "new.opq.safetensors"),
        lambda: checkpoint.save(sealed / "ckpt.pt", {}),
        lambda: opq.compress_folder({"w": torch.randn(64, 64)}, sealed / "out", bits=6),
    ):
        with pytest.raises(WriteError, match=r"Read-only file system|Permission denied"):
            write()
    assert {p.name: p.read_bytes() for p in sealed.iterdir()} == {"m.opq.safetensors": b"before", "ckpt.pt": b"before"}
