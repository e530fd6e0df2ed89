"""Weights that are in memory: a module or a mapping of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from opq.base.dtypes import DTYPES
from opq.base.process_state import turn
from opq.errors import SourceError
from opq.sources.base import Origin, Source, TensorSpec, guess_kinds, not_empty
from opq.sources.hints import hint_of_module

NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "params", "weights")
"""Keys under which checkpoints are known to hide their state dict, tried in this order."""


def from_module(model: nn.Module, *, label: str | None = None, origin: Origin = "module") -> Source:
    """A live module; its own tensors are read, nothing of it is changed.

    Raises:
        EmptyModelError: the module has no floating-point tensor.
        SourceError: a tensor has no values (meta device, lazy module) or no dense layout.
    """
    label = label or type(model).__name__
    with turn():  # another thread may be looking what other weights do in this model
        held = tensors_of(model.state_dict(keep_vars=True), label=label)
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    specs = tuple(
        dataclasses.replace(spec, kind="parameter" if spec.name in parameters else "buffer") for spec in held.specs
    )
    source = Source(
        label=label,
        origin=origin,
        specs=specs,
        read=held.tensors.__getitem__,
        make=lambda: model,
        ignored=held.ignored,
        hint=lambda: hint_of_module(model),
    )
    return not_empty(source)


def from_mapping(mapping: Mapping[str, Any], *, label: str = "state dict") -> Source:
    """A state dict, perhaps nested in a checkpoint under one of `NESTED`; arrays count as tensors.

    Raises:
        EmptyModelError: it holds no floating-point tensor.
        SourceError: a name is not a string, or a tensor has no values or no dense layout.
    """
    held = tensors_of(unnest(mapping), label=label)
    read, specs = held.tensors.__getitem__, guess_kinds(held.specs)
    return not_empty(Source(label=label, origin="state_dict", specs=specs, read=read, ignored=held.ignored))


def unnest(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """The innermost state dict: the mapping itself unless only a mapping in it holds tensors."""
    while not any(_tensor(value) is not None for value in mapping.values()):
        inner = next((mapping[k] for k in NESTED if isinstance(mapping.get(k), Mapping)), None)
        if inner is None:
            break
        mapping = inner
    return mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """A mapping taken apart: its tensors, what they are, and the names of what is no tensor."""

    tensors: Mapping[str, Tensor]
    specs: tuple[TensorSpec, ...]
    ignored: tuple[str, ...]


def tensors_of(mapping: Mapping[str, Any], *, label: str) -> Held:
    """The tensors of a mapping, ties found by storage; `SourceError` where one has no plain values."""
    tensors = {name: t for name, value in mapping.items() if (t := _tensor(value)) is not None}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise SourceError(f"{label}: the name of a tensor is not a string", got=repr(name), wanted="a str")
        _check_dense(name, tensor, label)
    ignored = tuple(sorted(str(name) for name in mapping if name not in tensors))
    return Held(tensors, tuple(_specs(tensors)), ignored)


def _tensor(value: object) -> Tensor | None:
    """The value as a tensor, sharing its memory; None where it is something else."""
    if isinstance(value, Tensor):
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and getattr(value.dtype, "kind", "") in "biuf":
        return torch.as_tensor(value)
    return None


def _specs(tensors: Mapping[str, Tensor]) -> Iterator[TensorSpec]:
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        like = first.setdefault(_identity(name, tensor), name)
        yield TensorSpec(name, tuple(tensor.shape), tensor.dtype, like=None if like == name else like)


def _check_dense(name: str, tensor: Tensor, label: str) -> None:
    """Raises `SourceError` unless the tensor holds plain values."""
    if is_lazy(tensor):
        remedy = "Run one forward pass first, so that the lazy module makes its weights."
        raise SourceError(f"{label}: tensor {name!r} is not initialised", got=type(tensor).__name__, remedy=remedy)
    if tensor.is_meta:
        remedy = "Load the weights first (model.to_empty(), then load_state_dict)."
        raise SourceError(f"{label}: tensor {name!r} has no values", got="device meta", remedy=remedy)
    if tensor.layout != torch.strided or tensor.is_quantized:
        got = f"{tensor.layout}, {tensor.dtype}"
        remedy = "Convert it with .to_dense() or .dequantize()."
        raise SourceError(f"{label}: tensor {name!r} is not a dense tensor", got=got, remedy=remedy)
    if tensor.dtype not in DTYPES.values():
        remedy = "Convert it to another element type, or leave it out."
        raise SourceError(f"{label}: tensor {name!r} has a type that no file can hold", got=tensor.dtype, remedy=remedy)


def _identity(name: str, tensor: Tensor) -> object:
    """Equal for two names exactly where they are one tensor; views and slices of one storage stay distinct."""
    if tensor.numel() == 0:
        return name
    where = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*where, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
