"""A batch of a model's inputs, whatever its forward takes."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from opq.errors import OptionError
from opq.models.observe import device_of


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """One call of a model's forward; the first dimension of every tensor counts the samples."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, model: nn.Module) -> Any:
        """The model's output on this batch."""
        return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> Iterator[torch.Tensor]:
        """All that the forward is given."""
        return _tensors((self.args, dict(self.kwargs)))

    @property
    def mask(self) -> torch.Tensor | None:
        """Which tokens count, (samples, length) bool, where the batch says so; padding tells nothing."""
        masks = [
            m["attention_mask"] for m in (self.kwargs, *self.args) if isinstance(m, Mapping) and "attention_mask" in m
        ]
        return masks[0].bool() if masks and isinstance(masks[0], torch.Tensor) and masks[0].dim() == 2 else None

    @property
    def samples(self) -> int:
        """How many samples the batch holds: the first dimension of its first tensor."""
        return next((int(t.shape[0]) for t in self.tensors if t.dim()), 1)

    @property
    def images(self) -> torch.Tensor | None:
        """The batch's one tensor, where that is images (samples, channels, height, width)."""
        found = list(self.tensors)
        return found[0] if len(found) == 1 and found[0].dim() == 4 and found[0].is_floating_point() else None

    def parts(self, size: int) -> Iterator[Batch]:
        """Micro-batches of about `size` samples, in order; none of one sample, which BatchNorm could not take."""
        total = self.samples
        count = max(1, min(math.ceil(total / size), total // 2))
        edges = [total * i // count for i in range(count + 1)]
        for start, stop in itertools.pairwise(edges):
            yield self.map(lambda t, a=start, b=stop: t[a:b] if t.dim() and t.shape[0] == total else t)

    def only(self, wanted: torch.Tensor) -> Batch:
        """The samples that are wanted, (samples) bool."""
        total = self.samples
        return self.map(lambda t: t[wanted.to(t.device)] if t.dim() and t.shape[0] == total else t)

    def map(self, change: Any) -> Batch:
        """The batch with every tensor changed."""
        return Batch(mapped(self.args, change), mapped(dict(self.kwargs), change))

    def to(self, model: nn.Module) -> Batch:
        """The batch where the model lives and, if floating, in the precision that it computes in."""
        device = device_of(model)
        first = next((p for p in model.parameters() if p.is_floating_point()), None)
        dtype = torch.float32 if first is None else first.dtype
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype))


def as_batch(model: nn.Module, given: Any) -> Batch:
    """A user's batch as a call: a tensor, a tuple (extra members such as labels are left out), or a dict.

    A dict is passed by keyword when the forward takes its keys, else as one positional argument; of a tuple, as many
    leading members are passed as the forward has positional parameters without default.
    """
    signature = inspect.signature(model.forward)
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


def gathered(model: nn.Module, batches: Iterable[Any], samples: int) -> Batch:
    """The first `samples` samples of a user's batches as one batch; ragged ones are refused with a remedy."""
    calls: list[Batch] = []
    held = 0
    for given in batches:
        calls.append(as_batch(model, given))
        held += calls[-1].samples
        if held >= samples:
            break
    if not calls:
        raise OptionError("calibration= holds no batch", remedy="Pass an iterable of batches that the forward takes.")
    try:
        whole = Batch(
            tuple(_joined([c.args[i] for c in calls]) for i in range(len(calls[0].args))),
            {k: _joined([c.kwargs[k] for c in calls]) for k in calls[0].kwargs},
        )
    except (RuntimeError, KeyError, IndexError, TypeError) as error:
        raise OptionError(
            "the batches of calibration= do not fit together",
            got=str(error).splitlines()[0],
            wanted="the same keys, and shapes equal but for the first dimension",
            remedy="Pad all batches to one length.",
        ) from error
    return next(whole.map(lambda t: t[:samples] if t.dim() else t).parts(samples))


def binds(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor) and values[0].dim():
        return torch.cat(values)
    if isinstance(values[0], Mapping):
        return {k: _joined([v[k] for v in values]) for k in values[0]}
    return values[0]


def mapped(value: Any, change: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: mapped(v, change) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(v, change) for v in value)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _tensors(member)
    elif isinstance(value, (tuple, list)):
        for member in value:
            yield from _tensors(member)
