"""Holds the size of a file below a budget while its weights are trained.

Training spreads the codes, and wider codes take more bytes. Every few steps of the optimizer the size is estimated from
the entropy of the codes. Where it is above the budget, weights fall to the next lower level: those that are the nearest
to it, as many as it takes. They were about to be rounded either way, so that this costs the least; training goes on
from there. At the end of each epoch the file itself is made and measured, and held in the same way.

A pull on all weights alike would not do: at first they lie in the middles of their levels, and a whole level would fall
at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from opq.errors import BudgetError
from opq.training.attaching import attached
from opq.training.fixed_grid import FixedGrid
from opq.training.sites import plain

if TYPE_CHECKING:
    from opq.compression.result import Result

EVERY = 8
"""Steps between two estimates. A choice: an estimate takes a few hundredths of a step of a convolutional network."""
AIM = 0.999
"""The size, in parts of the budget, to which codes are lowered between measurements. A choice: the next steps of
training have some bytes to spend."""
BLURRED = 0.02
"""Part of a level by which heights above the edge are blurred at random: of weights at the same height, some fall."""
HALVINGS, LEVELS, TRIALS = 16, 64, 8
"""Of the search for the height, of the levels that a weight may fall at a time, and of the measurements."""

Codes = list[tuple[torch.Tensor, torch.Tensor]]
"""Codes (int64, flat) of each tensor, and the heights of its weights above the lower edges of their levels."""


class Holding:
    """What holds one model's file below a budget, and what it needs to go on after an interruption."""

    def __init__(self, model: nn.Module, budget: float, measure: Callable[[], int]):
        """Measures the file before training.

        Args:
            model: with grids attached.
            budget: bytes.
            measure: makes the file of the model as it is and tells its bytes.

        Raises:
            BudgetError: as `settle`.
        """
        self.model, self.budget, self.measure = model, budget, measure
        self.steps = self.bytes = 0
        self.beside = 0.0
        """Bytes of the file less the entropy of its codes, at the last measurement."""
        self.settle()

    def after_step(self) -> None:
        """Lowers weights where the codes have spread beyond the budget."""
        self.steps += 1
        if self.steps % EVERY == 0 and self.estimate() > self.budget:
            self._lower(AIM * self.budget - self.beside)

    def estimate(self) -> float:
        """Bytes of the file, from the entropy of the codes as they are."""
        return self.beside + _entropy(self._codes(), -math.inf)

    def settle(self) -> int:
        """Measures the file; where it is too large, lowers weights until it fits. Returns its bytes.

        Raises:
            BudgetError: no such change makes it small enough.
        """
        size = self._measured()
        for trial in range(TRIALS):
            if size <= self.budget:
                break
            self._lower(self.budget - self.beside - trial * (size - self.budget) - 1.0)
            size = self._measured()
        if size > self.budget:
            remedy = "Train with hold_size=False, or compress to a larger budget first."
            fact, wanted = "the file cannot be held below its budget in training", f"at most {self.budget:.0f}"
            raise BudgetError(fact, got=f"{size} bytes", wanted=wanted, remedy=remedy)
        self.bytes = size
        return size

    def state(self) -> dict[str, Any]:
        """What the next steps depend on, as plain numbers."""
        return {name: getattr(self, name) for name in ("steps", "beside", "bytes")}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name in self.state():
            setattr(self, name, state[name])

    def _measured(self) -> int:
        size = self.measure()
        self.beside = size - _entropy(self._codes(), -math.inf)
        return size

    @torch.no_grad()
    def _lower(self, wanted: float) -> None:
        """Lowers the weights nearest to their lower levels until the entropy of all codes is at most so many bytes."""
        for _ in range(LEVELS):
            codes = self._codes()
            if _entropy(codes, -math.inf) <= wanted:
                return
            low, high = -1.0, 1.0 + 2 * BLURRED
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                low, high = (low, middle) if _entropy(codes, middle) <= wanted else (middle, high)
            for (w, grid), (code, height) in zip(self._tensors(), codes, strict=True):
                fallen = (height <= high).view(w.shape)
                w.copy_(torch.where(fallen, (code - code.sign()).view(w.shape).to(w.dtype) * grid.plan.step, w))

    @torch.no_grad()
    def _codes(self) -> Codes:
        found, generator = [], torch.Generator().manual_seed(self.steps)
        for w, grid in self._tensors():
            scaled = (w.detach().double() / grid.plan.step).flatten()
            code = (grid(w).detach().double() / grid.plan.step).round_().flatten().to(torch.int64)
            height = scaled.abs() + 1 - grid.plan.rounding - code.abs()
            height += BLURRED * torch.rand(height.shape, generator=generator, dtype=torch.float64).to(height.device)
            found.append((code, height.masked_fill_(code == 0, math.inf)))
        return found

    def _tensors(self) -> Iterator[tuple[torch.Tensor, FixedGrid]]:
        """The plain weights and their grids, tied ones once."""
        seen: set[int] = set()
        for module, attribute, grid in attached(self.model):
            if id(grid) not in seen:
                seen.add(id(grid))
                yield plain(module, attribute), grid


def allowed(result: Result) -> float:
    """Bytes that a file may take in training: the budget of its plan, or where there is none, its present size."""
    budget = result.plan.budget
    if budget is None:
        return result.bytes
    return budget.bytes(elements=result.elements, source_bytes=result.source_bytes)


def _entropy(codes: Codes, height: float) -> float:
    """Bytes of all codes by their entropy, if the weights up to this height above their edges fell by a level."""
    bits = 0.0
    for code, above in codes:
        now = code if height == -math.inf else code - code.sign() * (above <= height)
        if now.numel():
            counts = torch.bincount(now - now.min()).double()
            counts = counts[counts > 0]
            bits += float((counts * (math.log2(now.numel()) - counts.log2())).sum())
    return bits / 8
