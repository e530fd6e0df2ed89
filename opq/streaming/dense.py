"""From a compressed folder back to an ordinary one that `from_pretrained` loads, in bounded memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opq.base.arrays import Codes
from opq.base.atomic import refuse_inputs, written_aside
from opq.base.dtypes import torch_dtype
from opq.base.format_v1 import RUN
from opq.base.pool import Pool, pool
from opq.coding import entropy
from opq.errors import WriteError
from opq.file.folder_reader import FolderReader
from opq.file.reader import Reader
from opq.plan import LARGEST_CODE, TensorPlan
from opq.quantizing import trellis
from opq.quantizing.grid import dequantize
from opq.sources import hub_config, side_files
from opq.sources.folders import weights_name
from opq.streaming.work_folder import check_space, shard_name


def save_dense_folder(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    workers: int | None = None,
    base: Any = None,
) -> int:
    """Writes every shard of a compressed folder as an ordinary safetensors file, with index and side files.

    Tied names are written out under each name, as `opq.export.save_dense` does.

    Args:
        folder: a folder that `opq.compress_folder` has written.
        output: the folder to fill; it is created if needed.
        workers: threads; by default one for each core.
        base: of a folder of differences, the network that it was compressed against.

    Returns:
        bytes of the new weight files.

    Raises:
        FileFormatError: a shard is incomplete or damaged.
        WrongBaseError: the folder has a base, and none or another one is given. Nothing was written.
        WriteError: the output cannot be written; no incomplete file remains in it.
    """
    target = Path(output)
    with FolderReader(folder, base=base) as reader, pool(workers) as threads:
        reader.check_base()
        origin = reader.index.parent
        refuse_inputs(target, [origin])
        try:
            target.mkdir(parents=True, exist_ok=True)
            side_files.check(origin, target, instead=hub_config.dense(origin))
            check_space(target, sum(_nbytes(t) for t in reader.plan))
        except OSError as error:
            raise WriteError(f"cannot write into {target}", got=error.strerror or error) from error
        where: dict[str, str] = {}
        stem = weights_name(origin)
        total = 0
        for k, part in enumerate(reader.parts()):
            alone = len(reader.shards) == 1 and stem != "model"
            name = f"{stem}.safetensors" if alone else shard_name(k, len(reader.shards), ".safetensors", stem=stem)
            total += _save(part, target / name, threads)
            where |= dict.fromkeys(part.names, name)
        side_files.copy(origin, target, instead=hub_config.dense(origin))
        total_size = sum(_nbytes(t) for t in reader.plan)
        index = {"metadata": {"total_size": total_size}, "weight_map": {name: where[name] for name in reader.names}}
        with written_aside(target / f"{stem}.safetensors.index.json") as out:
            out.write((json.dumps(index, indent=2) + "\n").encode())
    return total


def _save(part: Reader, path: Path, threads: Pool) -> int:
    from opq.file.header import header

    with written_aside(path) as out:
        out.write(header(part.plan))
        for tensor in part.plan:
            for data in pieces(part, tensor, threads):
                out.write(data)
        return out.tell()


def _nbytes(tensor: TensorPlan) -> int:
    return tensor.size * torch_dtype(tensor.dtype).itemsize


def pieces(reader: Reader, tensor: TensorPlan, threads: Pool) -> Iterator[bytes]:
    """The bytes of a dense tensor, in order; large tensors chunk by chunk, decoded in parallel."""
    holder = reader.plan[tensor.like or tensor.name]
    kind = reader.kind(holder.name)
    if reader.base is not None or kind not in ("grid", "trellis") or not entropy.is_large(holder.shape):
        flat = reader.tensor(tensor.name).contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return
    large, rebuild = entropy.Large.of(reader._payload(holder.name), holder.shape), Rebuild(holder)
    if kind == "grid":
        yield from threads.ordered(lambda k: rebuild(large.codes(k)), range(len(large.chunks)))
        return
    chunks, width = threads.ordered(large.codes, range(len(large.chunks))), holder.size // holder.shape[0]
    rows = (chunk.reshape(-1, width) for chunk in chunks)
    if width * RUN > entropy.CHUNK:
        follow = trellis.Follower()
        yield from (rebuild(follow(k).reshape(-1)) for k in rows)
    else:
        yield from threads.ordered(lambda k: rebuild(trellis.numbers(k, out=k).reshape(-1)), _whole_runs(rows))


def _whole_runs(chunks: Iterator[Codes]) -> Iterator[Codes]:
    """Rows of codes, at least `RUN` a chunk but for the last, as whole runs of a trellis, but for the last."""
    left = next(chunks)
    for chunk in chunks:
        rows = np.concatenate([left, chunk])
        whole = len(rows) // RUN * RUN
        yield rows[:whole]
        left = rows[whole:]
    yield left


class Rebuild:
    """`opq.quantizing.grid.dequantize` for pieces of codes, as bytes; by a lookup table, since there are few codes."""

    def __init__(self, plan: TensorPlan):
        dtype = torch_dtype(plan.dtype)
        every = torch.arange(-LARGEST_CODE - 1, LARGEST_CODE + 1, dtype=torch.int32)
        self._width = f"u{dtype.itemsize}"
        values = dequantize(every, plan, dtype)
        self._table = np.roll(values.view(torch.uint8).numpy().view(self._width), -LARGEST_CODE - 1)

    def __call__(self, codes: Codes) -> bytes:
        return self._table.take(codes.view(np.uint16)).tobytes()
