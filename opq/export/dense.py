"""Dense tensors from a file, for programs that do not know this package."""

from __future__ import annotations

import os
from typing import Any

from opq.base.atomic import refuse_inputs, written_aside
from opq.file.folder_reader import open_reader
from opq.file.header import header
from opq.file.stored import raw_view


def save_dense(file: str | os.PathLike[str], path: str | os.PathLike[str], *, base: Any = None) -> int:
    """Writes all tensors of an opq file into an ordinary safetensors file, with one tensor in memory at a time.

    Tied tensors are written under each of their names, so that any loader finds them; they are decoded once.

    Args:
        file: an opq file.
        path: the safetensors file to write.
        base: the network that the file was compressed against, if it was compressed with `base=`; see `opq.load`.

    Returns:
        The size of the new file in bytes.

    Raises:
        FileFormatError: the file is incomplete or damaged.
        WrongBaseError: the file was compressed against a base, and no base or another one is given.
        WriteError: the output cannot be written, or a tensor has a name that safetensors does not allow; no incomplete
            file remains.
        OptionError: the output is the file itself.
    """
    refuse_inputs(path, [file])
    with open_reader(file, base=base) as reader, written_aside(path) as out:
        out.write(header(reader.plan))
        places: dict[str, list[int]] = {}
        end = out.tell()
        for tensor in reader.plan:
            places.setdefault(tensor.like or tensor.name, []).append(end)
            end += tensor.nbytes
        for name, starts in places.items():
            data = raw_view(reader.tensor(name))
            for start in starts:
                out.seek(start)
                out.write(data)
        return end
