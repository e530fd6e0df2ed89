"""The `int-quantized` layout of compressed-tensors, where the plan's uniform grid is exactly that: one scale a tensor.

transformers (with the package compressed-tensors) and vLLM read it. A Linear weight `W = step x codes` becomes int8
`weight` and `weight_scale = step`; every other tensor is written dense.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import nn

from opq.aside import written_aside
from opq.container import Reader
from opq.errors import ExportError
from opq.export.folder import config_folder, copy_side_files
from opq.plan import Plan, TensorPlan
from opq.sources import open_source

LARGEST_CODE = 127
"""Codes of 8 bits, symmetric."""


def save_compressed_tensors(
    file: str | os.PathLike[str], folder: str | os.PathLike[str], like: str | os.PathLike[str]
) -> int:
    """Writes a Hugging Face folder whose Linear weights are int8 codes and one scale a tensor, the grid exactly.

    Args:
        file: an opq file of a Hugging Face model.
        folder: the folder to fill; made where it is not there.
        like: the folder (or `hf:ORG/NAME`) that the model came from.

    Returns:
        the size of `model.safetensors` in bytes.

    Raises:
        ExportError: a tensor does not map exactly: codes beyond 8 bits, a codebook that is no uniform grid, a Linear
            that was kept or shares its weight; or `like` is no Hugging Face folder.
        WriteError: the output cannot be written.
    """
    origin, target = config_folder(like), Path(folder)
    linears = _linear_weights(open_source(f"hf:{origin}").build())
    with Reader(file) as reader:
        _refuse_what_does_not_map(reader.plan, linears)
        state: dict[str, torch.Tensor] = {}
        for tensor in (t for t in reader.plan if t.like is None):
            if tensor.name in linears:
                state |= _integers(reader, tensor)
            else:
                state[tensor.name] = reader.tensor(tensor.name)
    copy_side_files(origin, target)
    data = to_bytes({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})
    with written_aside(target / "model.safetensors") as out:
        out.write(data)
    with written_aside(target / "config.json") as out:
        out.write(_config(origin).encode())
    return len(data)


def _linear_weights(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _refuse_what_does_not_map(plan: Plan, linears: set[str]) -> None:
    remedy = "Export to onnx or to a dense folder instead, or compress again without that override."
    for tensor in plan:
        if tensor.name not in linears:
            continue
        fact = f"tensor {tensor.name!r} has no place in compressed-tensors' int-quantized layout"
        if tensor.action != "compress":
            raise ExportError(fact, got=f"{tensor.action}: {tensor.reason}", wanted="a compressed weight", remedy=remedy)
        if tensor.codebook != "grid":
            raise ExportError(fact, got=f"a codebook of kind {tensor.codebook!r}", wanted="a uniform grid", remedy=remedy)


def _integers(reader: Reader, tensor: TensorPlan) -> dict[str, torch.Tensor]:
    codes = reader.codes(tensor.name)
    largest = int(np.abs(codes).max(initial=0))
    if largest > LARGEST_CODE:
        raise ExportError(
            f"tensor {tensor.name!r} has no place in compressed-tensors' int-quantized layout",
            got=f"a code of {largest}",
            wanted=f"codes up to {LARGEST_CODE}",
            remedy="Compress with fewer bits, or export to onnx, which takes 16-bit codes.",
        )
    prefix = tensor.name.removesuffix("weight")
    return {
        tensor.name: torch.from_numpy(codes.astype(np.int8)),
        f"{prefix}weight_scale": torch.tensor([tensor.step], dtype=torch.float32),
    }


def _config(origin: Path) -> str:
    """The model's config.json with the layout described."""
    config: dict[str, Any] = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [],
    }
    return json.dumps(config, indent=2) + "\n"
