"""A batch of a model's inputs, whatever its forward takes."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from opq.models.observe import device_of


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """The arguments of one call of a model's forward; one dimension of most tensors counts the samples."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dim: int | tuple[int | None, ...] | None = 0
    """That dimension; None where the batch cannot be divided, as a graph's nodes. Where tensors differ, that of each,
    in their order, and None for what all samples share, such as a mask of attention."""

    def __call__(self, model: nn.Module) -> Any:
        """The model's output on this batch."""
        return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor among the arguments."""
        return _tensors((self.args, dict(self.kwargs)))

    @property
    def mask(self) -> torch.Tensor | None:
        """Which tokens are not padding, (samples, length) bool, if the batch has an attention mask."""
        masks = [
            m["attention_mask"] for m in (self.kwargs, *self.args) if isinstance(m, Mapping) and "attention_mask" in m
        ]
        return masks[0].bool() if masks and isinstance(masks[0], torch.Tensor) and masks[0].dim() == 2 else None

    @property
    def samples(self) -> int:
        """How many samples the batch holds: the size of its first tensor in their dimension."""
        dims = self.dim if isinstance(self.dim, tuple) else itertools.repeat(self.dim or 0)
        pairs = zip(self.tensors, dims, strict=False)
        return next((int(t.shape[dim]) for t, dim in pairs if dim is not None and t.dim() > dim), 1)

    @property
    def dims(self) -> tuple[int | None, ...]:
        """The dimension of each tensor that counts the samples; None for what they share."""
        if isinstance(self.dim, tuple):
            return self.dim
        dim, total = self.dim, self.samples
        return tuple(dim if dim is not None and t.dim() > dim and t.shape[dim] == total else None for t in self.tensors)

    @property
    def images(self) -> torch.Tensor | None:
        """The batch's only tensor, if it holds images: (samples, channels, height, width)."""
        found = list(self.tensors) if self.dim in (0, (0,)) else []
        return found[0] if len(found) == 1 and found[0].dim() == 4 and found[0].is_floating_point() else None

    def parts(self, size: int) -> Iterator[Batch]:
        """Micro-batches of about `size` samples, in order; of at least two, as BatchNorm requires, if there are two.

        A batch that cannot be divided is its own only part.
        """
        if self.dim is None:
            yield self
            return
        total = self.samples
        count = max(1, min(math.ceil(total / size), total // 2))
        edges = [total * i // count for i in range(count + 1)]
        for start, stop in itertools.pairwise(edges):
            yield self.along(lambda t, dim, a=start, n=stop - start: t.narrow(dim, a, n))

    def only(self, wanted: torch.Tensor) -> Batch:
        """The samples that are wanted, (samples) bool."""
        return self.rows(wanted.nonzero().flatten())

    def rows(self, numbers: torch.Tensor) -> Batch:
        """The samples of these numbers, int64, in their order; each may come more than once."""
        return self.along(lambda t, dim: t.index_select(dim, numbers.to(t.device)))

    def along(self, change: Any) -> Batch:
        """The batch with every tensor changed that has a dimension of samples, which `change` is given too."""
        dims = iter(self.dims)
        return self.map(lambda t: t if (dim := next(dims)) is None else change(t, dim))

    def map(self, change: Any) -> Batch:
        """The batch with every tensor changed."""
        return Batch(mapped(self.args, change), mapped(dict(self.kwargs), change), dim=self.dim)

    def to(self, model: nn.Module) -> Batch:
        """The batch on the model's device, floating-point tensors in the model's precision."""
        device = device_of(model)
        first = next((p for p in model.parameters() if p.is_floating_point()), None)
        dtype = torch.float32 if first is None else first.dtype
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype))


def signature_of(model: nn.Module) -> inspect.Signature:
    """The arguments of a model's forward; any, where nothing is known of them, as of a traced module."""
    try:
        return inspect.signature(model.forward)
    except ValueError:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return inspect.Signature([inspect.Parameter(kind.name.lower(), kind) for kind in kinds])


def as_batch(model: nn.Module, given: Any) -> Batch:
    """A user's batch as a call: a tensor, a tuple (extra members such as labels are left out), or a dict.

    A dict is passed as keywords if the forward accepts its keys, otherwise as one positional argument. Of a tuple, as
    many leading members are passed as the forward has positional parameters without a default.
    """
    signature = signature_of(model)
    if isinstance(given, Batch):
        return given
    if isinstance(given, Mapping):
        tensors = {str(k): v for k, v in given.items()}
        return Batch((), tensors) if binds(signature, (), tensors) else Batch((tensors,))
    if isinstance(given, (tuple, list)):
        parameters = signature.parameters.values()
        wanted = sum(p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD for p in parameters)
        starred = any(p.kind == p.VAR_POSITIONAL for p in parameters)
        return Batch(tuple(given) if starred else tuple(given[: max(1, wanted)]))
    return Batch((given,))


def binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function of this signature accepts these arguments."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def mapped(value: Any, change: Any) -> Any:
    """A nest of dicts, lists and tuples with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: mapped(v, change) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(v, change) for v in value)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a nest of dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _tensors(member)
    elif isinstance(value, (tuple, list)):
        for member in value:
            yield from _tensors(member)
