"""Out of the file again: dense tensors for whoever does not have this package."""

from __future__ import annotations

import os

import torch

from opq.base.atomic import refuse_inputs, written_aside
from opq.file.header import header
from opq.file.reader import Reader


def save_dense(file: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Writes every tensor of an opq file as an ordinary safetensors file, one tensor in memory at a time.

    Tied names are written out under each name, so that any loader finds them all.

    Returns:
        the size of the new file in bytes.

    Raises:
        FileFormatError: the file is not whole.
        WriteError: the output cannot be written; nothing is left behind.
        OptionError: the output is the file itself.
    """
    refuse_inputs(path, [file])
    with Reader(file) as reader, written_aside(path) as out:
        out.write(header(reader.plan))
        for tensor in reader.plan:
            flat = reader.tensor(tensor.name).contiguous().reshape(-1)
            if flat.numel():
                out.write(flat.view(torch.uint8).numpy().tobytes())
        return out.tell()
