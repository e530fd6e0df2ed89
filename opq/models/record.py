"""All that a forward may change in a model, recorded and put back.

That is more than parameters and buffers: buffers that the forward replaces, tensors and numbers kept as attributes,
caches in dicts and lists (biases of attention, positions, states), weights that the forward writes (an embedding's
`max_norm`), gradients, flags, and generators of random numbers. What did not change is not written.
"""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

WEIGHTS = 1 << 28
"""Bytes of parameters up to which their values are recorded, too; of more, only of those that torch's modules write."""
LONGEST = 10_000
"""Containers of more members are put back, but their members are not looked into."""

_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_CLOSED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_DICTS = (dict, collections.OrderedDict, collections.defaultdict)
_LISTS = (list, collections.deque)


class Record:
    """What a model holds now; `restore` makes it so again, as often as it is called."""

    def __init__(self, model: nn.Module, *, weights: bool = False, replaced: Collection[str] = ()):
        """`weights`: the values of parameters too (see `WEIGHTS`), and all gradients, which are None until restored.

        The values of parameters of the names in `replaced` are not recorded: the model runs with others in their place.
        """
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[Any, list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._generators: list[tuple[torch.Generator, torch.Tensor]] = []
        self._tensors: list[_Tensor] = []
        self._grads: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._seen: dict[int, Any] = {}
        """What was looked into, by identity; held, so that no identity is used again."""
        self._written = _written(model, replaced) if weights else set()
        for tensor in (*model.parameters(), *model.buffers()):
            self._look(tensor, inside=False)
        self._look(model, inside=False)
        for tensor in (one.tensor for one in self._tensors) if weights else ():
            if tensor.is_leaf:
                self._grads.append((tensor, tensor.grad))
                tensor.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back what has changed."""
        for tensor in self._tensors:
            tensor.restore()
        for one, grad in self._grads:
            one.grad = grad
        for members, before in self._dicts:
            _restore_dict(members, before)
        for listed, order in self._lists:
            if len(listed) != len(order) or any(a is not b for a, b in zip(listed, order, strict=True)):
                listed.clear()
                listed.extend(order)
        for held, those in self._sets:
            if held != those:
                held.clear()
                held.update(those)
        for generator, state in self._generators:
            generator.set_state(state)

    def settle(self) -> None:
        """Forgets the values of parameters that are as they were, once the model has run on some inputs.

        A forward that writes its weights does so whatever the inputs are; of all others no copy is needed.
        """
        self._tensors = [one.settled() for one in self._tensors]

    def _look(self, value: Any, *, inside: bool) -> None:
        """Records a value and all that it holds; `inside`: whether an object that is no module holds it."""
        stack = [(value, inside)]
        while stack:
            value, inside = stack.pop()
            if isinstance(value, (*_SCALARS, *_CLOSED)) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            stack.extend((member, inside or is_object) for member, is_object in self._members(value, inside=inside))

    def _members(self, value: Any, *, inside: bool) -> Iterator[tuple[Any, bool]]:
        """Records one value; what is to be looked at next, and whether `value` is an object that is no module."""
        if isinstance(value, torch.Tensor):
            self._tensors.append(_Tensor.of(value, values=not isinstance(value, nn.Parameter) or self._writes(value)))
        elif isinstance(value, torch.Generator):
            self._generators.append((value, value.get_state()))
        elif isinstance(value, nn.Module):
            yield from self._members(vars(value), inside=inside)
        elif type(value) in _DICTS:
            self._dicts.append((value, dict(value)))
            yield from ((member, False) for member in (value.values() if len(value) <= LONGEST else ()))
        elif type(value) in _LISTS:
            self._lists.append((value, list(value)))
            yield from ((member, False) for member in (value if len(value) <= LONGEST else ()))
        elif type(value) is set:
            self._sets.append((value, set(value)))
        elif isinstance(value, tuple):
            yield from ((member, False) for member in value)
        elif not inside and hasattr(value, "__dict__") and not type(value).__module__.startswith("torch"):
            yield from ((member, True) for member, _ in self._members(vars(value), inside=True))

    def _writes(self, parameter: nn.Parameter) -> bool:
        return id(parameter) in self._written


def _restore_dict(members: dict[Any, Any], before: dict[Any, Any]) -> None:
    if list(members) != list(before):
        members.clear()
        members.update(before)
    for key, value in before.items():
        if members[key] is not value:
            members[key] = value


def _written(model: nn.Module, replaced: Collection[str]) -> set[int]:
    """The parameters whose values are recorded, by identity; all but those that are replaced are the model's own."""
    others = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in replaced}
    parameters = list(model.parameters())
    if sum(p.nbytes for p in parameters) <= WEIGHTS:
        return {id(p) for p in parameters} - others
    normed = (m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm is not None)
    return {id(m.weight) for m in normed} - others


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Tensor:
    """One tensor: where its values are, and what they are."""

    tensor: torch.Tensor
    flag: bool
    """`requires_grad`."""
    alias: torch.Tensor | None
    """The same memory, whatever the tensor is given later; None of tensors that torch does not hold as plain memory."""
    values: torch.Tensor | None
    """None where they are not recorded."""

    @classmethod
    def of(cls, tensor: torch.Tensor, *, values: bool) -> _Tensor:
        plain = tensor.layout == torch.strided and not (_is_fixed(tensor) or hasattr(tensor, "__tensor_flatten__"))
        alias = tensor.detach() if plain else None
        copied = values and not _is_fixed(tensor)
        return cls(tensor, tensor.requires_grad, alias, tensor.detach().clone() if copied else None)

    def settled(self) -> _Tensor:
        """Without values, if it is a parameter that still has them."""
        if self.values is None or self.alias is None or not isinstance(self.tensor, nn.Parameter):
            return self
        same = _place(self.tensor) == _place(self.alias) and torch.equal(self.alias, self.values)
        return dataclasses.replace(self, values=None) if same else self

    def restore(self) -> None:
        tensor, alias = self.tensor, self.alias
        if alias is not None and _place(tensor) != _place(alias):
            tensor.data = alias
        if self.values is not None and not (alias is not None and torch.equal(alias, self.values)):
            tensor.detach().copy_(self.values)
        if tensor.is_leaf and tensor.requires_grad != self.flag:
            tensor.requires_grad_(self.flag)


def _is_fixed(tensor: torch.Tensor) -> bool:
    """Whether it has no values, or none that may be written."""
    return tensor.is_meta or tensor.is_inference()


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
