"""Small sharded checkpoints for the tests of the streamed path."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


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
    where = {}
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
