"""Every example of docs/finetune.md, run: plain PyTorch, Hugging Face Trainer, Lightning, torchrun."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from paths import ROOT

from opq.file.loading import load_state_dict

TEXT = (ROOT / "docs" / "finetune.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def block(word: str) -> str:
    """The one example that holds this word."""
    (found,) = [b for b in BLOCKS if word in b]
    return found


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the first example leaves behind; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found: dict[str, object] = {"__name__": "example"}
    exec(block('run.ckpt")\ntrained.save'), found)
    return found


def test_pictures_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("better.save"), {"__name__": "example"})
    assert "0.weight" in load_state_dict("better.opq.safetensors")


def test_the_short_loop(scope: dict[str, object], tmp_path: Path) -> None:
    assert (tmp_path / "run.ckpt").exists()
    assert set(load_state_dict("model.opq.safetensors")) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def fresh(scope: dict[str, object]) -> None:
    """Gives the examples that follow an unattached model again."""
    import opq

    opq.detach(scope["model"])
    Path("model.opq.safetensors").unlink()


def test_a_plain_loop(scope: dict[str, object]) -> None:
    fresh(scope)
    exec(block("nn.functional.cross_entropy(model(x), y).backward()"), scope)
    state = load_state_dict("model.opq.safetensors")
    assert torch.allclose(state["1.weight"], scope["model"][1].weight.detach(), rtol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="the Trainer needs accelerate")
def test_the_hugging_face_trainer(scope: dict[str, object]) -> None:
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        exec(block("transformers.Trainer"), scope)
    state = load_state_dict("bert.opq.safetensors")
    weight = scope["bert"].classifier.weight.detach()  # type: ignore[attr-defined]
    assert torch.allclose(state["classifier.weight"], weight, rtol=1e-6)


def test_lightning(scope: dict[str, object]) -> None:
    fresh(scope)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        pytest.importorskip("lightning")
        exec(block("LightningModule"), scope)
    state = load_state_dict("model.opq.safetensors")
    assert torch.allclose(state["1.weight"], scope["model"][1].weight.detach(), rtol=1e-6)


def test_torchrun(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(block("torchrun --nproc-per-node 2"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(load_state_dict(tmp_path / "model.opq.safetensors")) == {"0.weight", "0.bias", "2.weight", "2.bias"}
