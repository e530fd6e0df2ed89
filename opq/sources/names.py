"""How names in a checkpoint correspond to names in the model that loads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import nn

from opq.sources.base import Source, TensorSpec

_OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}
"""TensorFlow's names of LayerNorm vectors, still found in checkpoints, and the names in a module."""


def fit_names(source: Source, skeleton: nn.Module) -> Source | None:
    """The source under the names of the model, with the model's ties; None if the files do not have all its tensors.

    `skeleton` has the model's names, kinds and ties; it needs no values.
    """
    entries = {n: t for n, t in skeleton.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
    ties = _ties(entries)
    prefix = str(getattr(skeleton, "base_model_prefix", "") or "")
    file_name = {model_name(spec.name, entries, prefix): spec.name for spec in source.specs}
    covered = {ties[name] for name in file_name if name in entries}
    needed = {ties[name] for name, tensor in entries.items() if tensor.is_floating_point()}
    if not needed <= covered or len(file_name) != len(source.specs):
        return None
    parameters = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
    return dataclasses.replace(
        source,
        specs=_fitted(source, entries, ties, file_name, parameters),
        read=lambda name: source.tensor(file_name[name]),
        files={name: source.files[old] for name, old in file_name.items() if name in entries},
        ignored=(*source.ignored, *sorted(old for name, old in file_name.items() if name not in entries)),
    )


def _fitted(
    source: Source,
    entries: Mapping[str, torch.Tensor],
    ties: Mapping[str, str],
    file_name: Mapping[str, str],
    parameters: Collection[str],
) -> tuple[TensorSpec, ...]:
    """The specs that the model loads, in the file's order; names that the file omits come last."""
    holders: dict[str, TensorSpec] = {}
    specs: list[TensorSpec] = []
    for name in [*file_name, *(n for n in entries if n not in file_name)]:
        if name not in entries:
            continue
        holder = holders.get(ties[name])
        if holder is None and name in file_name:
            held = source.by_name[file_name[name]]
            kind = "parameter" if name in parameters else "buffer"
            holder = dataclasses.replace(held, name=name, kind=kind, like=None)  # type: ignore[arg-type]
            holders[ties[name]] = holder
            specs.append(holder)
        elif holder is not None:
            same = name not in file_name or _equal(source, file_name[name], file_name[holder.name])
            held = holder if name not in file_name else source.by_name[file_name[name]]
            specs.append(dataclasses.replace(held, name=name, kind=holder.kind, like=holder.name if same else None))
    return tuple(specs)


def _equal(source: Source, one: str, other: str) -> bool:
    """Whether the file has equal values under both names, as it should if the model ties them."""
    specs = source.by_name
    alike = (specs[one].shape, specs[one].dtype) == (specs[other].shape, specs[other].dtype)
    return alike and torch.equal(source.tensor(one), source.tensor(other))


def _ties(entries: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Every name with the first name of the same parameter."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in entries.items()}


def model_name(name: str, known: Collection[str], prefix: str) -> str:
    """The model's name for a name in the file; the name itself if there is no other."""
    for old, new in _OLD_ENDINGS.items():
        if name not in known and name.endswith(old):
            name = name.removesuffix(old) + new
    if name in known or not prefix:
        return name
    for candidate in (f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in known:
            return candidate
    return name


_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
"""Parts that wrappers insert anywhere in names: DataParallel, torch.compile, checkpointing, sharding."""


def fitting(names: Collection[str], known: Collection[str], prefix: str = "") -> dict[str, str]:
    """The model's name for every name in a file: the name itself, or the name with a prefix removed or added.

    Such prefixes are parts inserted by wrappers, one prefix that all names of the file have (`model.`, `generator.`),
    and the architecture's own `prefix`. A renaming is used only if all its results are different names of the model.
    """
    own = set(known)
    bare = {_unwrapped(name): name for name in own}
    for renamed in _renamings(list(names), prefix):
        found = {old: bare.get(_unwrapped(new), new) for old, new in renamed.items()}
        if len(set(found.values())) == len(found) and own & set(found.values()) and set(found.values()) <= own:
            return found
    partly = {name: name if name in own else model_name(name, own, prefix) for name in names}
    return partly if len(set(partly.values())) == len(partly) else {name: name for name in names}


def _renamings(names: list[str], prefix: str) -> Iterator[dict[str, str]]:
    yield {name: name for name in names}
    common = ""
    while names and (first := names[0][len(common) :].partition(".")[0]):
        common += f"{first}."
        if not all(name.startswith(common) and len(name) > len(common) for name in names):
            break
        yield {name: name[len(common) :] for name in names}
    if prefix:
        yield {name: f"{prefix}.{name}" for name in names}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS) or name
