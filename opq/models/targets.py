"""The tensors of a model as places into which values are put, whatever device and form they are held in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Targets:
    """The state dict of a model, to be filled.

    Values are copied into the existing tensors. Tensors that nothing can be copied into (on the meta device, made under
    `inference_mode`, or expanded so that elements share memory) are replaced, tied ones by a single tensor. A sharded
    tensor receives its share; a lazy one is made by the module's own hook.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        state: Any = model.state_dict(keep_vars=True)
        self.entries: dict[str, Tensor] = {n: t for n, t in state.items() if isinstance(t, Tensor)}
        self._metadata = getattr(state, "_metadata", None)
        """The versions of the modules' layouts; without them, torch assumes the oldest layout."""
        self.lazy = {name for name, tensor in self.entries.items() if is_lazy(tensor)}
        self._made: dict[int, Tensor] = {}

    def without_values(self, *, given: set[str]) -> list[str]:
        """The tensors on the meta device that `given` does not fill, including those that are not in the state dict."""
        filled = {id(self.entries[name]) for name in given if name in self.entries}
        every = [*self._model.named_parameters(), *self._model.named_buffers()]
        return [name for name, t in every if not is_lazy(t) and t.is_meta and id(t) not in filled]

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Puts values into the tensors of the same names; other names are ignored."""
        copied: OrderedDict[str, Tensor] = OrderedDict()
        replaced: OrderedDict[str, Tensor] = OrderedDict()
        for name, value in values.items():
            for own in self._group(name):
                place = self.entries[own]
                (replaced if _fixed(place) else copied)[own] = self._fitted(own, value)
        for part, assign in ((copied, False), (replaced, True)):
            part._metadata = self._metadata  # type: ignore[attr-defined]
            if part:
                self._model.load_state_dict(part, strict=False, assign=assign)

    def _group(self, name: str) -> list[str]:
        """The name; if its tensor will be replaced, also the names of the tensors tied to it."""
        if name not in self.entries:
            return []
        place = self.entries[name]
        return [n for n, t in self.entries.items() if t is place] if _fixed(place) else [name]

    def _fitted(self, name: str, value: Tensor) -> Tensor:
        """A value in the form in which its tensor can be given it."""
        place = self.entries[name]
        if place.dtype == torch.complex128 and not value.is_complex():
            value = torch.view_as_complex(value)  # files hold pairs
        if (mesh := getattr(place, "device_mesh", None)) is not None:
            from torch.distributed.tensor import distribute_tensor

            return distribute_tensor(value, mesh, place.placements)  # type: ignore[attr-defined]
        if not _fixed(place):
            return value
        if id(place) not in self._made:
            device = value.device if place.is_meta else place.device
            made: Tensor = value.to(device, place.dtype, copy=True)
            is_parameter = isinstance(place, nn.Parameter)
            self._made[id(place)] = nn.Parameter(made, requires_grad=place.requires_grad) if is_parameter else made
        return self._made[id(place)]


def _fixed(place: Tensor) -> bool:
    """Whether nothing can be copied into a tensor, so that it has to be replaced."""
    if is_lazy(place) or hasattr(place, "__tensor_flatten__"):
        return False
    shared = any(stride == 0 and size > 1 for stride, size in zip(place.stride(), place.shape, strict=True))
    return place.is_meta or shared or (place.is_inference() and not torch.is_inference_mode_enabled())
