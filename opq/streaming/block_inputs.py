"""What the matrices of one block are multiplied by: recorded while the block runs, and its second moment."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn

from opq.base.arrays import Floats
from opq.errors import ProbeError
from opq.probing.layers import layers
from opq.quantizing.moment import Layout, Moment, costs, widths
from opq.streaming.clock import Clock

T = TypeVar("T")


class Inputs:
    """The inputs of one matrix, or of several that share their input; their second moment is computed on demand."""

    def __init__(self, pieces: list[torch.Tensor], layout: Layout):
        self.layout, self._pieces, self._lock = layout, pieces, threading.Lock()
        self._moment: Moment | None = None

    def costs(self, clock: Clock) -> Floats:
        """What an error in each of them costs, see `quantizing.moment.costs`: (width,)."""
        with clock("moments"):
            return costs(Moment(self.layout, tuple(self._blocks())))

    def moment(self, clock: Clock) -> Moment:
        """The moment, with its factors computed; the inputs themselves are then released."""
        with self._lock:
            if self._moment is None:
                with clock("moments"):
                    self._moment = Moment(self.layout, tuple(self._blocks()))
                    _ = self._moment.factors
                self._pieces = []
            return self._moment

    def _blocks(self) -> Iterator[torch.Tensor]:
        count, start = sum(len(p) for p in self._pieces), 0
        for width in widths(self._pieces[0].shape[-1]):
            total = torch.zeros(width, width)
            for piece in self._pieces:
                x = piece[:, start : start + width]
                total.addmm_(x.t(), x)
            yield total.div_(count)[None]
            start += width


class Seen(contextlib.AbstractContextManager["Seen"]):
    """Records the input and the output of some modules, by name, when the calling thread runs them."""

    def __init__(self, modules: dict[str, nn.Module]):
        self._local = threading.local()
        self._handles = [module.register_forward_hook(self._hook(name)) for name, module in modules.items()]

    def during(self, work: Callable[[], T]) -> tuple[T, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """The result of some work, and the inputs and outputs recorded during it."""
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._local.seen = seen
        return work(), seen

    def _hook(self, name: str) -> Callable[..., torch.Tensor]:
        def hook(module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            if name in self._local.seen:
                raise ProbeError("a layer runs twice in one block", got=name, remedy="Use --no-probe.")
            self._local.seen[name] = (given[0], out)
            return out.clone() if torch.is_grad_enabled() else out  # other code may change `out` in place

        return hook

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def linear(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a block that multiply by a matrix, by the name of the matrix."""
    found = layers(block)
    own = {n: layer.module for n, layer in found.items() if layer.weight_name == "weight"}
    return {n: module for n, module in own.items() if module.weight.dim() == 2}  # type: ignore[operator]
