"""The `pack-quantized` layout of compressed-tensors (4 or 8 bits, symmetric), for plans that it can express exactly.

transformers reads it with the package compressed-tensors. A Linear weight `W = step x codes` becomes three tensors:
`weight_packed`, `weight_scale` (the step, repeated for each row) and `weight_shape`. Each int32 of `weight_packed`
holds eight sums code + 8, if all codes of all Linear weights fit 4 bits, or otherwise four sums code + 128; the first
is in the lowest bits. Every other tensor is written dense.
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

from opq.base.atomic import refuse_inputs, written_aside
from opq.errors import ExportError, OccupiedFolderError
from opq.export.hf_folder import config_folder
from opq.file.folder_reader import FolderReader, open_reader
from opq.file.reader import Reader
from opq.plan import TensorPlan
from opq.quantizing.rows import steps as row_steps
from opq.sources import open_source, side_files

LARGEST_CODE = 127
"""The largest magnitude of symmetric codes of 8 bits."""
WIDTHS = (4, 8)
"""Bits of a packed code."""


def save_compressed_tensors(
    file: str | os.PathLike[str], folder: str | os.PathLike[str], like: str | os.PathLike[str], *, strict: bool = True
) -> int:
    """Writes a Hugging Face folder whose Linear weights are packed integer codes and a step; no value changes.

    Codes take 4 bits if those of all Linear weights are at most 7 in magnitude, otherwise 8 bits. A file that was
    compressed with `constraints=[opq.constraints.code_bits("*", max=8)]`, or with `max=4`, is never refused for its
    codes.

    Args:
        file: an opq file of a Hugging Face model.
        folder: the folder to fill; it is created if needed.
        like: the folder (or `hf:ORG/NAME`) from which the model came.
        strict: whether a Linear weight that cannot be expressed is an error. Otherwise it is written dense and listed
            under `ignore`. A Linear that shares its weight with an embedding is written dense in either case.

    Returns:
        The size of `model.safetensors` in bytes.

    Raises:
        ExportError: a tensor cannot be expressed exactly (codes beyond 8 bits, factors by column, a codebook that is
            not a uniform grid, a Linear that was kept), or `like` is not a Hugging Face folder.
        WriteError: the output cannot be written.
    """
    origin, target = config_folder(like), Path(folder)
    refuse_inputs(target, [origin])
    refuse_inputs(target / "model.safetensors", [file])
    linears = _linear_weights(open_source(f"hf:{origin}").build())
    with open_reader(file) as reader:
        mapped, dense = _sorted(reader, linears, strict)
        width = _width(reader, mapped)
        state: dict[str, torch.Tensor] = {}
        for tensor in (t for t in reader.plan if t.like is None or t.name in linears):
            packed = tensor.name in mapped
            state |= _integers(reader, tensor, width) if packed else {tensor.name: reader.tensor(tensor.name).clone()}
    config = _config(origin, dense, width).encode()
    place = target / "config.json"
    if place.exists() and place.read_bytes() != config:
        raise OccupiedFolderError(f"{target} holds another file of that name", got=place.name, wanted="none")
    side_files.copy(origin, target, but=(place.name,))
    data = to_bytes({name: value.contiguous() for name, value in state.items()}, {"format": "pt"})
    with written_aside(target / "model.safetensors") as out:
        out.write(data)
    with written_aside(place) as out:
        out.write(config)
    return len(data)


def _linear_weights(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _sorted(reader: Reader | FolderReader, linears: set[str], strict: bool) -> tuple[set[str], list[str]]:
    """The Linear weights that can be packed, by name, and the layers whose weights are written dense."""
    mapped, dense = set[str](), list[str]()
    for tensor in (t for t in reader.plan if t.name in linears):
        error = _obstacle(reader, tensor)
        if error is not None and strict and tensor.like is None:
            raise error
        if error is None:
            mapped.add(tensor.name)
        else:
            dense.append(tensor.name.removesuffix(".weight"))
    return mapped, dense


def _width(reader: Reader | FolderReader, names: set[str]) -> int:
    """The fewest bits that hold all codes of these tensors."""
    largest = max((int(np.abs(reader.codes(name)).max(initial=0)) for name in sorted(names)), default=0)
    return next(width for width in WIDTHS if largest < 1 << width - 1)


def _obstacle(reader: Reader | FolderReader, tensor: TensorPlan) -> ExportError | None:
    """An error that says why a weight cannot be written as int8 codes and one scale; None if it can."""
    fact = f"tensor {tensor.name!r} has no place in compressed-tensors' 8-bit layout"
    remedy = "Export to onnx or to a dense folder, or leave such tensors dense with strict=False."
    if tensor.action != "compress":
        return ExportError(fact, got=f"{tensor.action}: {tensor.reason}", wanted="a compressed weight", remedy=remedy)
    if not tensor.stepped:
        return ExportError(fact, got=f"a codebook of kind {tensor.codebook!r}", wanted="a uniform grid", remedy=remedy)
    if tensor.by_column:
        return ExportError(fact, got="a factor for each column", wanted="a step for each row", remedy=remedy)
    if tensor.by_row and tensor.turned:
        return ExportError(fact, got="a step for each column", wanted="a step for each row", remedy=remedy)
    largest = int(np.abs(reader.codes(tensor.name)).max(initial=0))
    if largest > LARGEST_CODE:
        return ExportError(fact, got=f"a code of {largest}", wanted=f"codes up to {LARGEST_CODE}", remedy=remedy)
    return None


def _integers(reader: Reader | FolderReader, tensor: TensorPlan, width: int) -> dict[str, torch.Tensor]:
    rows, columns = tensor.shape
    each = 32 // width
    padded = np.zeros((rows, -(-columns // each) * each), np.uint32)
    padded[:, :columns] = reader.codes(tensor.name).astype(np.int32) + (1 << width - 1)
    words = np.bitwise_or.reduce(padded.reshape(rows, -1, each) << np.arange(0, 32, width, dtype=np.uint32), axis=2)
    exponents = reader.exponents(tensor.name)
    steps = np.full(rows, tensor.step, np.float32) if exponents is None else row_steps(tensor.step, exponents)
    return {
        f"{tensor.name}_packed": torch.from_numpy(words.view(np.int32)),
        f"{tensor.name}_scale": torch.from_numpy(steps).reshape(rows, 1),
        f"{tensor.name}_shape": torch.tensor(tensor.shape),
    }


def _config(origin: Path, dense: list[str], width: int) -> str:
    """The model's config.json with a description of the layout."""
    config: dict[str, Any] = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    weights = {"num_bits": width, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": dense,
    }
    return json.dumps(config, indent=2) + "\n"
