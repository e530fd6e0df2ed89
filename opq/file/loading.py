"""The calls that read a file back into dense tensors: `load` and `load_state_dict`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from opq.errors import MismatchError, OptionError, SourceError
from opq.file.folder_reader import FolderReader, open_reader, parts_of
from opq.file.reader import MAX_EXPANSION, Reader
from opq.models.targets import Targets
from opq.models.wrappers import unwrapped
from opq.sources.base import TensorSpec
from opq.sources.memory import specs_of
from opq.sources.names import fitting

Model = TypeVar("Model", bound=nn.Module)


def load(
    path: str | os.PathLike[str],
    model: Model,
    *,
    strict: bool = True,
    max_expansion: float = MAX_EXPANSION,
    base: Any = None,
) -> Model:
    """Fills `model` with the dense tensors of a file, or of a folder of shards, and returns the model, ready to run.

    The model may be wrapped in `torch.compile` or `DistributedDataParallel`, on the meta device, lazy or sharded. The
    names in the file may have a prefix that the model's names do not have (`module.`, `_orig_mod.`, `model.`), or the
    other way round; for a model of transformers they may be the names of its checkpoint.

    Args:
        strict: whether both must have the same names. A name that the model ties to another may be absent in the file.
        max_expansion: how many bytes the dense tensors may take for each byte of the file; `math.inf` to trust the
            file.
        base: for a file of differences (`compress(..., base=)`): the network to which they are added, in any form that
            `open_source` takes, or an opq file. Its SHA-256 is checked.

    Raises:
        OptionError: `model` is no module.
        WrongBaseError: the file has a base, and none or another one is given; the model is unchanged.
        MismatchError: names or shapes differ; the model is unchanged.
        FileFormatError: the file is foreign, newer, truncated, corrupt or too large (one subclass each). All checksums
            are verified before the model is changed.

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
    if not isinstance(model, nn.Module):
        raise OptionError("model=", got=repr(model), wanted="a module to fill, built by its own code")
    inner = unwrapped(model)
    with open_reader(path, max_expansion=max_expansion, base=base) as reader:
        targets = Targets(inner)
        own = tuple(specs_of(targets.entries))
        names = fitting([t.name for t in reader.plan], [s.name for s in own], _prefix(inner))
        shapes = {names[t.name]: t.shape for t in reader.plan}
        wrong = _differences(shapes, own, strict, targets.lazy)
        if not wrong and (empty := targets.without_values(given=_given(shapes, own))):
            wrong = [f"{name} has no values, and the file holds none" for name in empty]
        if isinstance(reader, FolderReader):
            reader.verify()  # before the first shard goes into the model
        if wrong and _converted(reader, inner):
            return model
        if wrong:
            raise MismatchError(f"{os.fspath(path)} does not fit {type(inner).__name__}", got=_some(wrong))
        for part in parts_of(reader):
            part.check_base()
            try:
                targets.fill({names[name]: tensor for name, tensor in part.state_dict().items()})
            except KeyError as error:  # a module that holds more than tensors, as quantized ones do
                fact = f"{type(inner).__name__} needs more than tensors"
                raise MismatchError(fact, got=f"no {error.args[0]} in {os.fspath(path)}") from error
    return model


def _prefix(model: nn.Module) -> str:
    return str(getattr(model, "base_model_prefix", "") or "")


def _converted(reader: Reader | FolderReader, model: nn.Module) -> bool:
    """Fills the model as transformers does with its checkpoints, renaming and fusing tensors; False if it cannot.

    This takes three times the memory of the model.
    """
    if not type(model).__module__.startswith("transformers.models."):
        return False
    from opq.sources.hf_models import UNBUILDABLE, filled

    try:
        filled(model, reader.state_dict())
    except (SourceError, *UNBUILDABLE):
        return False
    return True


def _some(clauses: Sequence[str], most: int = 8) -> str:
    more = f"; and {len(clauses) - most} more" if len(clauses) > most else ""
    return "; ".join(clauses[:most]) + more


def _given(shapes: Mapping[str, tuple[int, ...]], own: Iterable[TensorSpec]) -> set[str]:
    """The model's names that the file fills, including names tied to one of them."""
    ties: dict[str, list[str]] = {}
    for spec in own:
        ties.setdefault(spec.like or spec.name, []).append(spec.name)
    return {name for group in ties.values() if any(n in shapes for n in group) for name in group}


def _differences(
    shapes: Mapping[str, tuple[int, ...]], own: Sequence[TensorSpec], strict: bool, lazy: set[str]
) -> list[str]:
    """How the tensors of a file differ from those of a model, one clause for each difference."""
    given, known = _given(shapes, own), {s.name for s in own}
    wrong = [f"{spec.name} missing in the file" for spec in own if strict and spec.name not in given]
    wrong += [f"{name} not in the model" for name in shapes if strict and name not in known]
    there = {s.name: s.shape for s in own if s.name not in lazy}
    return wrong + [
        f"{name} {shapes[name]} in the file, {shape} in the model"
        for name, shape in there.items()
        if name in shapes and shapes[name] != shape
    ]


def load_state_dict(
    path: str | os.PathLike[str], *, max_expansion: float = MAX_EXPANSION, base: Any = None
) -> dict[str, torch.Tensor]:
    """The dense state dict of a file or of a folder of shards; tied names share one tensor.

    Args:
        max_expansion: as in `load`.
        base: as in `load`.

    Raises:
        FileFormatError: the file is foreign, newer, truncated or corrupt (one subclass each).
        WrongBaseError: as of `load`.

    Example:
        >>> import os, tempfile, torch, opq
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "w.opq.safetensors")
        ...     opq.compress({"w": torch.randn(64, 32)}, bits=4).save(path)
        ...     state = opq.load_state_dict(path)
        >>> state["w"].shape
        torch.Size([64, 32])
    """
    with open_reader(path, max_expansion=max_expansion, base=base) as reader:
        return reader.state_dict()
