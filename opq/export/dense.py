"""Out of the file again: dense tensors for whoever does not have this package."""

from __future__ import annotations

import json
import os

import torch

from opq.aside import written_aside
from opq.container import Reader
from opq.dtypes import torch_dtype
from opq.plan import Plan


def save_dense(file: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Writes every tensor of an opq file as an ordinary safetensors file, one tensor in memory at a time.

    Tied names are written out under each name, so that any loader finds them all.

    Returns:
        the size of the new file in bytes.

    Raises:
        FileFormatError: the file is not whole.
        WriteError: the output cannot be written; nothing is left behind.
    """
    with Reader(file) as reader, written_aside(path) as out:
        out.write(header(reader.plan))
        for tensor in reader.plan:
            flat = reader.tensor(tensor.name).contiguous().reshape(-1)
            if flat.numel():
                out.write(flat.view(torch.uint8).numpy().tobytes())
        return out.tell()


def header(plan: Plan) -> bytes:
    """The header of a dense safetensors file of the plan's tensors, in the plan's order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in plan:
        end = position + tensor.size * torch_dtype(tensor.dtype).itemsize
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
