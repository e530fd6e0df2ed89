"""Weights in memory: a module or a mapping of tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from opq.base.dtypes import DTYPES
from opq.base.process_state import turn
from opq.errors import SourceError
from opq.sources.base import Origin, Source, TensorSpec, checked, guess_kinds
from opq.sources.hints import hint_of_module
from opq.sources.quantized import marked

NESTED = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "params_ema", "params", "weights"),
    *("generator", "netG", "ema_state_dict", "model_ema", "ema"),
)
"""Keys under which checkpoints are known to hold their state dict, tried in this order."""
EXPANSION, SMALL = 10_000, 1 << 26
"""Tensors may take at most this many times the bytes of their storage, but always this many bytes: the same limits as
for opq files (`format_v1.MAX_EXPANSION`)."""


def from_module(model: nn.Module, *, label: str | None = None, origin: Origin = "module") -> Source:
    """A live module. Its own tensors are read, and it is not changed.

    Raises:
        EmptyModelError: the module has no floating-point tensor.
        SourceError: a tensor has no values (meta device, lazy module) or no dense layout.
    """
    label = label or type(model).__name__
    with turn():  # another thread may have put other weights into this model for a while
        held = tensors_of(model.state_dict(keep_vars=True), label=label)
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    parameters |= {name for name, tensor in held.tensors.items() if isinstance(tensor, nn.Parameter)}
    specs = tuple(
        dataclasses.replace(spec, kind="parameter" if spec.name in parameters else "buffer") for spec in held.specs
    )
    source = Source(
        label=label,
        origin=origin,
        specs=marked(specs),
        read=lambda name: plain(held.tensors[name]),
        make=lambda: _outside_inference(model),
        ignored=held.ignored,
        hint=lambda: hint_of_module(model),
    )
    return checked(source)


def _outside_inference(model: nn.Module) -> nn.Module:
    """The model; if it was built under `torch.inference_mode`, a copy through which gradients can flow."""
    if not any(t.is_inference() for t in (*model.parameters(), *model.buffers())):
        return model
    with torch.inference_mode(False):
        return copy.deepcopy(model)


def from_mapping(mapping: Mapping[str, Any], *, label: str = "state dict") -> Source:
    """A state dict, perhaps nested in a checkpoint under one of `NESTED`; arrays count as tensors.

    Raises:
        EmptyModelError: it holds no floating-point tensor.
        SourceError: a name is not a string, or a tensor has no values or no dense layout.
    """
    found = unnest(mapping, label=label)
    held = tensors_of(found.mapping, label=label)
    specs = marked(guess_kinds(held.specs))
    return checked(
        Source(
            label=label,
            origin="state_dict",
            specs=specs,
            read=lambda name: plain(held.tensors[name]),
            ignored=(*found.beside, *held.ignored),
        )
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Nest:
    """The state dict in a checkpoint."""

    mapping: Mapping[str, Any]
    path: tuple[str, ...] = ()
    """The keys that lead to it."""
    beside: tuple[str, ...] = ()
    """The names of what is next to it in the mappings on the way, and is left out."""


def unnest(mapping: Mapping[str, Any], *, label: str = "state dict") -> Nest:
    """The state dict in a checkpoint: the mapping itself, or one inside it.

    The latter is a mapping under one of the keys `NESTED` with at least as many elements as the tensors next to it; or,
    if there are no tensors next to it, the only mapping that has tensors.

    Raises:
        SourceError: several mappings have tensors, and it is not clear which one is the state dict.
    """
    nest, seen = Nest(mapping), {id(mapping)}
    while (key := _inner(nest.mapping, label, seen)) is not None:
        beside = tuple(sorted(".".join((*nest.path, str(k))) for k in nest.mapping if k != key))
        nest = Nest(nest.mapping[key], (*nest.path, key), (*nest.beside, *beside))
        seen.add(id(nest.mapping))
    return nest


def _inner(mapping: Mapping[str, Any], label: str, seen: Collection[int]) -> str | None:
    """The key of the inner mapping that is the state dict; None if this mapping itself is."""
    own = _elements(mapping)
    inside = {k: _deep(v) for k, v in mapping.items() if isinstance(v, Mapping) and id(v) not in seen}
    known = next((k for k in NESTED if inside.get(k, 0) > 0), None)
    if known is not None and inside[known] >= own:
        return known
    holding = [str(k) for k, elements in inside.items() if elements > 0]
    if own or not holding:
        return None
    if len(holding) > 1:
        remedy = "Pass the one that you mean, as a state dict."
        got = ", ".join(map(repr, holding[:5]))
        raise SourceError(f"{label} holds several state dicts", got=got, wanted="one of them", remedy=remedy)
    return holding[0]


def _elements(mapping: Mapping[str, Any]) -> int:
    """Elements of the floating-point tensors directly in a mapping."""
    tensors = (t for value in mapping.values() if (t := _tensor(value)) is not None)
    return sum(t.numel() for t in tensors if not is_lazy(t) and t.is_floating_point())


def _deep(mapping: Mapping[str, Any]) -> int:
    """Elements of the floating-point tensors in a mapping and in all mappings inside it, each counted once."""
    found, new = {id(mapping): mapping}, [mapping]
    while new:
        inner = (v for m in new for v in m.values() if isinstance(v, Mapping))
        new = list({id(v): v for v in inner if id(v) not in found}.values())
        found |= {id(v): v for v in new}
    return sum(map(_elements, found.values()))


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """The contents of a mapping: its tensors, their specs, and the names of entries that are not tensors."""

    tensors: Mapping[str, Tensor]
    specs: tuple[TensorSpec, ...]
    ignored: tuple[str, ...]


def tensors_of(mapping: Mapping[str, Any], *, label: str) -> Held:
    """The tensors of a mapping, with ties found by storage; raises `SourceError` if one has no plain values."""
    tensors = {name: t for name, value in mapping.items() if (t := _tensor(value)) is not None}
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise SourceError(f"{label}: the name of a tensor is not a string", got=repr(name), wanted="a str")
        _check_dense(name, tensor, label)
    ignored = tuple(sorted(str(name) for name in mapping if name not in tensors))
    return Held(tensors, tuple(specs_of(tensors)), ignored)


def _tensor(value: object) -> Tensor | None:
    """The value as a tensor that shares its memory; None if it is something else."""
    if isinstance(value, Tensor):
        return value
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and getattr(value.dtype, "kind", "") in "biufc":
        return torch.as_tensor(value)
    return None


PAIRS = "complex128, as pairs of float64"
"""The reason given for keeping a complex128 tensor, which is stored as pairs: no file has that type."""


def specs_of(tensors: Mapping[str, Tensor]) -> Iterator[TensorSpec]:
    """The specs of tensors, with ties found by storage; for tensors without values, by identity."""
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        like = first.setdefault(_identity(name, tensor), name)
        shape, pairs = () if is_lazy(tensor) else tuple(tensor.shape), tensor.dtype == torch.complex128
        yield TensorSpec(
            name,
            (*shape, 2) if pairs else shape,
            torch.float64 if pairs else tensor.dtype,
            kind="buffer" if pairs else "parameter",
            like=None if like == name else like,
            exact=PAIRS if pairs else "",
        )


def plain(tensor: Tensor) -> Tensor:
    """The values of a tensor as files hold them: those of a sharded one gathered, complex128 as pairs."""
    tensor = tensor.detach()
    if callable(gathered := getattr(tensor, "full_tensor", None)):
        tensor = gathered()
    if tensor.dtype == torch.complex128:
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.as_subclass(Tensor) if type(tensor) is not Tensor else tensor


def _check_dense(name: str, tensor: Tensor, label: str) -> None:
    """Raises `SourceError` unless the tensor holds plain values."""
    if is_lazy(tensor):
        remedy = "Run one forward pass first, so that the lazy module makes its weights."
        raise SourceError(f"{label}: tensor {name!r} is not initialised", got=type(tensor).__name__, remedy=remedy)
    if tensor.is_meta:
        remedy = "Load the weights first (model.to_empty(), then load_state_dict)."
        raise SourceError(f"{label}: tensor {name!r} has no values", got="device meta", remedy=remedy)
    if tensor.layout != torch.strided or tensor.is_quantized or _wraps(tensor):
        got = type(tensor).__name__ if _wraps(tensor) else f"{tensor.layout}, {tensor.dtype}"
        remedy = "Convert it with .to_dense() or .dequantize()."
        raise SourceError(f"{label}: tensor {name!r} is not a dense tensor", got=got, remedy=remedy)
    if tensor.dtype not in DTYPES.values() and tensor.dtype != torch.complex128:
        remedy = "Convert it to another element type, or leave it out."
        raise SourceError(f"{label}: tensor {name!r} has a type that no file can hold", got=tensor.dtype, remedy=remedy)
    if _too_wide(tensor):
        got = f"{tensor.nbytes:,} bytes in a storage of {tensor.untyped_storage().nbytes():,}"
        remedy = "Pass it as small as it is, without expand()."
        raise SourceError(f"{label}: tensor {name!r} is expanded", got=got, remedy=remedy)


def _too_wide(tensor: Tensor) -> bool:
    """Whether a tensor repeats so little memory (by a stride of 0) that it cannot be weights."""
    if tensor.nbytes <= SMALL or _has_parts(tensor):
        return False
    return tensor.nbytes > EXPANSION * tensor.untyped_storage().nbytes()


def _has_parts(tensor: Tensor) -> bool:
    """Whether the tensor is a wrapper around others: a shard of a distributed tensor, or another package's class."""
    return hasattr(tensor, "__tensor_flatten__")


def _wraps(tensor: Tensor) -> bool:
    """Whether its values are inside other tensors, and cannot be had as a whole."""
    return _has_parts(tensor) and not callable(getattr(tensor, "full_tensor", None))


def _identity(name: str, tensor: Tensor) -> object:
    """Equal for two names if, and only if, they are the same tensor; views and slices of one storage are different."""
    if is_lazy(tensor) or tensor.is_meta or _has_parts(tensor):
        return id(tensor)
    if tensor.numel() == 0:
        return name
    where = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*where, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
