"""A copy of the model for training, whose forward pass uses a method's own weights; and how it is measured."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from opq.errors import DataError, OptionError
from opq.models.observe import evaluating
from opq.training.loop import Batches
from opq.training.objective import Objective, inputs_and_targets, run, scores
from opq.training.sites import tensors


class _Straight(torch.autograd.Function):
    """`w -> w^` in the forward pass; in the backward pass the gradient goes to every `w`, pruned or not."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return seen.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


def straight(w: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """`seen` in the forward pass; in the backward pass its gradient goes unchanged to `w` (straight-through)."""
    apply: Any = _Straight.apply
    out: torch.Tensor = apply(w, seen)
    return out


class Masked(nn.Module):
    """`w m`: pruned weights are zero and receive no gradient."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w * self.mask

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        return w


class Shared(nn.Module):
    """`c[l]`: labels are fixed, the codebook is trained. Centroid 0 stays zero; the original weight is not used.

    The gradient of a centroid is the sum over the blocks that use it (Deep Compression, section 3; Stock et al. 2020).
    """

    labels: torch.Tensor

    def __init__(self, centroids: torch.Tensor, labels: torch.Tensor, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape
        self.codebook = nn.Parameter(centroids[1:].clone())
        self.register_buffer("labels", labels)

    @property
    def centroids(self) -> torch.Tensor:
        """(K, d), the zero centroid first."""
        return torch.cat([torch.zeros_like(self.codebook[:1]), self.codebook]) if len(self.codebook) else self._zero()

    def _zero(self) -> torch.Tensor:
        return self.codebook.new_zeros((1, self.codebook.shape[1]))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return self.centroids[self.labels].reshape(self.shape).to(w.dtype)

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        return w


@dataclasses.dataclass(frozen=True, eq=False)
class Live:
    """A copy of the user's model for training; the user's own model is never changed."""

    model: nn.Module
    sites: Mapping[str, tuple[nn.Module, str]]
    """For every tensor of the state dict, its module and the name of its attribute."""

    @classmethod
    def copy_of(cls, model: nn.Module) -> Live:
        """A deep copy in which every parameter requires a gradient."""
        own = copy.deepcopy(model).requires_grad_(True)
        return cls(own, tensors(own))

    def put(self, seen: Mapping[str, nn.Module]) -> None:
        """From now on the forward pass uses each named tensor through its module; tied tensors through the same one."""
        by_tensor = {id(self._own(name)): module for name, module in seen.items()}
        for name in self.sites:
            found = by_tensor.get(id(self._own(name)))
            if found is not None:
                parametrize.register_parametrization(*self.sites[name], found, unsafe=True)

    def take(self, *, seen: bool) -> None:
        """Undoes `put`. If `seen`, the weights become those that the forward pass used; else the plain ones stay."""
        done: dict[int, torch.Tensor] = {}
        for module, attribute in self.sites.values():
            if parametrize.is_parametrized(module, attribute):
                value = getattr(module, attribute).detach().clone()
                parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
                own: Any = getattr(module, attribute)
                if seen and id(own) not in done:
                    done[id(own)] = own.data.copy_(value)

    def _own(self, name: str) -> Any:
        module, attribute = self.sites[name]
        if parametrize.is_parametrized(module, attribute):
            stack: Any = module.parametrizations
            return stack[attribute].original
        return getattr(module, attribute)

    def plain(self, name: str) -> torch.Tensor:
        """A tensor as the optimizer updates it, detached."""
        own: torch.Tensor = self._own(name).detach()
        return own

    def seen(self, name: str) -> torch.Tensor:
        """A tensor as the forward pass uses it, detached and on the CPU."""
        module, attribute = self.sites[name]
        value: torch.Tensor = getattr(module, attribute).detach().cpu()
        return value.clone()


def check_data(data: Batches | None, model: nn.Module, method: str, teacher: nn.Module | None = None) -> None:
    """Checks that there is a first batch, that the model runs on it, and that its loss can be computed.

    Raises:
        DataError: there is no data, or it does not fit the model.
        OptionError: the teacher does not run on it, or its scores have another shape than the model's.
    """
    if data is None:
        raise DataError(f"method={method!r} trains or searches on data", got="data=None", wanted="data=batches")
    first = next(iter(data(0) if callable(data) else data), None)
    if first is None:
        raise DataError("data= is empty", wanted="batches of (inputs, targets)")
    inputs, targets = inputs_and_targets(first)
    try:
        with torch.no_grad(), evaluating(model):
            Objective("cross_entropy")(model, inputs, targets)
    except _UNFIT as error:
        got = f"inputs {_shape(inputs)}, targets {_shape(targets)}: {error}"
        raise DataError("data= does not fit the model", got=got) from error
    if teacher is not None:
        got, wanted = _scored(teacher, inputs), _scored(model, inputs)
        if got != wanted:
            raise OptionError("method_options['teacher'] does not fit the model", got=got, wanted=f"scores {wanted}")


_UNFIT = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""The errors that a model raises on inputs that do not fit it."""


@torch.no_grad()
def _scored(model: nn.Module, inputs: Any) -> str:
    """The shape of the model's scores, or the text of its error."""
    try:
        with evaluating(model):
            return _shape(scores(run(model, inputs)))
    except _UNFIT as error:
        return str(error)


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


@torch.no_grad()
def error(model: nn.Module, batches: Iterable[Any], count: int) -> float:
    """The fraction of the first `count` batches' samples that the model, in inference mode, classifies wrongly."""
    wrong = size = 0
    with evaluating(model), parametrize.cached():
        for batch in itertools.islice(batches, count):
            inputs, targets = inputs_and_targets(batch)
            found = scores(run(model, inputs)).argmax(-1)
            wrong, size = wrong + int((found != targets).sum()), size + targets.numel()
    return wrong / size
