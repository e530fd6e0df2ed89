"""The calls that read a file back into dense tensors: `load` and `load_state_dict`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from opq.errors import MismatchError
from opq.file.folder_reader import FolderReader, open_reader, parts_of
from opq.file.reader import MAX_EXPANSION
from opq.models.wrappers import unwrapped
from opq.sources import open_source
from opq.sources.base import TensorSpec

Model = TypeVar("Model", bound=nn.Module)


def load(
    path: str | os.PathLike[str], model: Model, *, strict: bool = True, max_expansion: float = MAX_EXPANSION
) -> Model:
    """Fills `model` with the tensors of a file, or of a folder of shards, and returns it: dense again, ready to run.

    It may be inside `torch.compile` or `DistributedDataParallel`.

    Args:
        strict: names must be the same on both sides; a name that the model ties to another may be absent in the file.
        max_expansion: the most dense bytes that each byte of the file may stand for; `math.inf` to trust the file.

    Raises:
        MismatchError: names or shapes differ; the model is left untouched.
        FileFormatError: the file is foreign, newer, truncated, corrupt or too large (one subclass each). All checksums
            are looked at before the model is touched.

    Example:
        >>> import os, tempfile, opq
        >>> from opq import demo
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "digits.opq.safetensors")
        ...     opq.compress("demo:digits", bits=4, probe=False).save(path)
        ...     model = opq.load(path, demo.load())
        >>> model.training
        False
    """
    inner = unwrapped(model)
    with open_reader(path, max_expansion=max_expansion) as reader:
        shapes = {t.name: t.shape for t in reader.plan}
        wrong = _differences(shapes, open_source(inner).specs, strict)
        if wrong:
            raise MismatchError(f"{os.fspath(path)} does not fit {type(inner).__name__}", got="; ".join(wrong))
        if isinstance(reader, FolderReader):
            reader.verify()  # before the first shard goes into the model
        for part in parts_of(reader):
            inner.load_state_dict(part.state_dict(), strict=False)
    return model


def _differences(shapes: Mapping[str, tuple[int, ...]], own: Sequence[TensorSpec], strict: bool) -> list[str]:
    """What keeps the tensors of a file from being those of a model, one clause each."""
    ties: dict[str, list[str]] = {}
    for spec in own:
        ties.setdefault(spec.like or spec.name, []).append(spec.name)
    given = {name for group in ties.values() if any(n in shapes for n in group) for name in group}
    wrong = [f"{spec.name} missing in the file" for spec in own if strict and spec.name not in given]
    wrong += [f"{name} not in the model" for name in shapes if strict and name not in {s.name for s in own}]
    return wrong + [
        f"{s.name} {shapes[s.name]} in the file, {s.shape} in the model"
        for s in own
        if s.name in shapes and s.shape != shapes[s.name]
    ]


def load_state_dict(path: str | os.PathLike[str], *, max_expansion: float = MAX_EXPANSION) -> dict[str, torch.Tensor]:
    """The dense state dict of a file or of a folder of shards; tied names share one tensor.

    Args:
        max_expansion: as of `load`.

    Raises:
        FileFormatError: the file is foreign, newer, truncated or corrupt (one subclass each).

    Example:
        >>> import os, tempfile, torch, opq
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "w.opq.safetensors")
        ...     opq.compress({"w": torch.randn(64, 32)}, bits=4).save(path)
        ...     state = opq.load_state_dict(path)
        >>> state["w"].shape
        torch.Size([64, 32])
    """
    with open_reader(path, max_expansion=max_expansion) as reader:
        return reader.state_dict()
