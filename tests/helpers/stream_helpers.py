"""Small sharded checkpoints for the tests of the streamed path."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import HELPERS, ROOT, TESTS
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
SHARD = 26_000
"""Bytes: four output shards of the checkpoint at 4 bits."""
SMALL = {"vocab_size": 300, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
"""Of the configurations of transformers' decoders."""


def weights(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Laplacian weights whose rows differ in scale."""
    g = torch.Generator().manual_seed(seed)
    signed = torch.rand(shape, generator=g) - 0.5
    laplacian = -torch.sign(signed) * torch.log1p(-2 * signed.abs())
    scale = 0.5 + torch.rand((shape[0],) + (1,) * (len(shape) - 1), generator=g)
    return (0.03 * scale * laplacian).to(dtype)


def decoder(layers: int = 3, width: int = 96, dtype: torch.dtype = torch.bfloat16) -> list[State]:
    """A decoder in three shards, with experts, norms and an output matrix tied to the embedding by value."""
    embedding = weights(600, width, seed=1, dtype=dtype)
    shards: list[State] = [
        {"embed.weight": embedding},
        {},
        {"head.weight": embedding.clone(), "steps": torch.tensor([7])},
    ]
    for k in range(layers):
        shards[1 + k % 2] |= {
            f"layers.{k}.norm.weight": 1 + weights(width, seed=10 + k, dtype=dtype),
            f"layers.{k}.up.weight": weights(256, width, seed=20 + k, dtype=dtype),
            f"layers.{k}.experts": weights(4, width, 64, seed=30 + k, dtype=dtype),
        }
    return shards


def checkpoint(folder: Path, shards: list[State] | None = None) -> Path:
    """Writes shards with their index and the small files of a Hugging Face folder."""
    folder.mkdir()
    where: dict[str, str] = {}
    shards = decoder() if shards is None else shards
    for k, state in enumerate(shards):
        name = f"model-{k + 1:05}-of-{len(shards):05}.safetensors"
        save_file(state, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(state, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["Decoder"]}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def small_llama(layers: int = 2, *, tied: bool = False) -> Any:
    """A Llama of random weights, always the same."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**SMALL, num_hidden_layers=layers, tie_word_embeddings=tied)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def interrupted(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *, stop: int, after: bool = False) -> bool:
    """Works until the `stop`-th file gets its name, and is interrupted before or after that; whether it got so far."""
    real, calls = os.replace, [0]

    def replace(*names: Any) -> None:
        calls[0] += 1
        if calls[0] < stop or (calls[0] == stop and after):
            real(*names)
        if calls[0] >= stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("opq.base.atomic.os.replace", replace)
        try:
            work()
        except KeyboardInterrupt:
            return True
    return False


def killed(source: Path, out: Path, *, at: str, bits: float, shard_size: int) -> None:
    """Compresses in a process that is killed before a file with `at` in its name gets that."""
    program = (
        "import os, signal, conftest, opq.base.atomic as a\n"
        "from opq.streaming import compress_folder\n"
        "real = a.os.replace\n"
        "def replace(x, y):\n"
        f"    if {at!r} in str(y): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(x, y)\n"
        "a.os.replace = replace\n"
        f"compress_folder({str(source)!r}, {str(out)!r}, bits={bits}, shard_size={shard_size})\n"
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS, HELPERS, ROOT / "examples" / "bench"))),
    }
    ended = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
