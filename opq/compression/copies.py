"""Tensors of one source that are equal, for example in a model with tied weights that was saved without the ties.

The file holds them once, like tensors that share their storage.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping

import torch

from opq.file.stored import raw_bytes
from opq.sources.base import Source, TensorSpec

WORTH = 1 << 12
"""Elements of the smallest tensor that is compared with others. A choice: smaller ones would save next to nothing."""


def without_copies(source: Source) -> Source:
    """The source with equal tensors tied to the first of them. Only tensors with the shape of another one are read."""
    alike: dict[Hashable, list[str]] = {}
    for spec in source.specs:
        if spec.like is None and spec.size >= WORTH:
            alike.setdefault((spec.shape, spec.dtype), []).append(spec.name)
    digests = {name: _digest(source, name) for names in alike.values() if len(names) > 1 for name in names}

    def equal(one: str, other: str) -> bool:
        return raw_bytes(source.tensor(one)) == raw_bytes(source.tensor(other))

    return tied(source, copies(source.by_name, {n: d for n, d in digests.items() if d is not None}, equal))


def _digest(source: Source, name: str) -> bytes | None:
    """A digest of a tensor's bytes; None if all its elements are equal, since it is stored in a few bytes anyway."""
    values = source.tensor(name)
    rows = values.reshape(-1).view(torch.uint8).view(-1, values.dtype.itemsize)
    return None if bool((rows == rows[0]).all()) else hashlib.blake2b(rows.numpy().data, digest_size=16).digest()


def copies(
    specs: Mapping[str, TensorSpec], digests: Mapping[str, Hashable], equal: Callable[[str, str], bool]
) -> dict[str, str]:
    """The names of tensors that are equal to an earlier one, each with the name of the first such tensor.

    Args:
        digests: of the tensors to compare, in order; equal tensors have equal digests.
        equal: whether two tensors are the same, element by element.
    """
    groups: dict[Hashable, list[str]] = {}
    for name, digest in digests.items():
        if specs[name].size >= WORTH:
            groups.setdefault((digest, specs[name].shape, specs[name].dtype), []).append(name)
    same: dict[str, str] = {}
    for names in groups.values():
        for k, name in enumerate(names):
            first = next((other for other in names[:k] if other not in same and equal(other, name)), None)
            if first is not None:
                same[name] = first
    return same


def tied(source: Source, same: Mapping[str, str]) -> Source:
    """The source with these names tied to others; every tie leads directly to the tensor that holds the values."""
    if not same:
        return source
    return dataclasses.replace(source, specs=tuple(_untangled(source.specs, same)))


def _untangled(specs: Iterable[TensorSpec], same: Mapping[str, str]) -> Iterable[TensorSpec]:
    for spec in specs:
        holder = same.get(spec.name, spec.like)
        yield spec if holder is None else dataclasses.replace(spec, like=same.get(holder, holder))
