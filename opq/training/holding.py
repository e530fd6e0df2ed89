"""Holds the size of a file below a budget while its weights are trained.

Training spreads the codes, and wider codes take more bytes. So after every step of the optimizer all weights are pulled
towards zero, by `pull` times the furthest that the optimizer moves a weight in one step:

    w <- sign(w) max(0, |w| - pull lr)

(a proximal step of an L1 penalty, beside the optimizer, so that Adam's normalisation does not touch it). `pull` follows
the size: in proportion to what it is above the aim, and to the sum of that over time. Between epochs the size is
estimated from the entropy of the codes; at the end of each epoch the file is made and measured, and if it is too large
after all, all weights are drawn in by the smallest part of a level that makes it fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from opq.errors import BudgetError
from opq.training.attaching import attached
from opq.training.fixed_grid import FixedGrid
from opq.training.sites import plain

EVERY = 8
"""Steps between two estimates. A choice: an estimate takes a few hundredths of a step of a convolutional network."""
AIM = 0.998
"""The size that is aimed at, in parts of the budget. A choice: estimates are off by less than that."""
PROPORTIONAL, INTEGRAL = 10.0, 1.0
"""Of the pull: for each part above the aim, and for each part at each estimate. A choice: 1 % too much is a pull of a
tenth, which brings it back within some ten steps."""
MOST = 1.0
"""Of the pull: then no weight can go outwards."""
HALVINGS, TRIALS = 12, 8
"""Of the search for the part of a level by which weights are drawn in, and of its repetitions."""


class Holding:
    """The pull on the weights of one model, and what it needs to go on after an interruption."""

    def __init__(self, model: nn.Module, budget: float, measure: Callable[[], int]):
        """Measures the file before training.

        Args:
            model: with grids attached.
            budget: bytes.
            measure: makes the file of the model as it is and tells its bytes.
        """
        self.model, self.budget, self.measure = model, budget, measure
        self.pull = self.sum = 0.0
        self.steps = 0
        self.beside = 0.0
        """Bytes of the file less the entropy of its codes, at the last measurement."""
        self.bytes = self.settle()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Pulls the weights, as far as the optimizer may have moved them."""
        self.steps += 1
        if self.steps % EVERY == 0:
            self._follow(self.estimate())
        if self.pull:
            rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
            for w, _ in self._tensors():
                _draw_in(w, self.pull * rates.get(id(w), 0.0))

    def estimate(self) -> float:
        """Bytes of the file, from the entropy of the codes as they are."""
        return self.beside + self._entropy(0.0)

    def settle(self) -> int:
        """Measures the file; draws the weights in where it is larger than the budget.

        Raises:
            BudgetError: no such change makes it small enough.
        """
        size = self._measured()
        for trial in range(TRIALS):
            if size <= self.budget:
                break
            excess = size - self.budget
            part = self._part(self._entropy(0.0) - excess * (1.0 + 0.25 * trial) - 1.0)
            for w, grid in self._tensors():
                _draw_in(w, part * grid.plan.step)
            size = self._measured()
        if size > self.budget:
            remedy = "Train with hold_size=False, or compress to a larger budget first."
            fact, wanted = "the file cannot be held below its budget in training", f"at most {self.budget:.0f}"
            raise BudgetError(fact, got=f"{size} bytes", wanted=wanted, remedy=remedy)
        self.bytes = size
        return size

    def state(self) -> dict[str, Any]:
        """What the pull depends on, as plain numbers."""
        return {"pull": self.pull, "sum": self.sum, "steps": self.steps, "beside": self.beside, "bytes": self.bytes}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name in self.state():
            setattr(self, name, state[name])

    def _follow(self, size: float) -> None:
        above = size / self.budget - AIM
        self.sum = min(max(self.sum + INTEGRAL * above, 0.0), MOST)
        self.pull = min(max(PROPORTIONAL * above + self.sum, 0.0), MOST)

    def _measured(self) -> int:
        size = self.measure()
        self.beside = size - self._entropy(0.0)
        return size

    def _part(self, wanted: float) -> float:
        """The smallest part of a level by which weights are drawn in for codes of so many bytes."""
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._entropy(middle) <= wanted else (middle, high)
        return high

    @torch.no_grad()
    def _entropy(self, part: float) -> float:
        """Bytes of all codes by their entropy, if the weights were drawn in by a part of a level."""
        bits = 0.0
        for w, grid in self._tensors():
            inner = w if part == 0 else functional.softshrink(w, part * grid.plan.step)
            codes = (grid(inner) * grid.scales[0]).round_().flatten().to(torch.int64)
            if codes.numel():
                counts = torch.bincount(codes - codes.min()).double()
                counts = counts[counts > 0]
                bits += float((counts * (math.log2(codes.numel()) - counts.log2())).sum())
        return bits / 8

    def _tensors(self) -> Iterator[tuple[torch.Tensor, FixedGrid]]:
        """The plain weights and their grids, tied ones once."""
        seen: set[int] = set()
        for module, attribute, grid in attached(self.model):
            if id(grid) not in seen:
                seen.add(id(grid))
                yield plain(module, attribute), grid


@torch.no_grad()
def _draw_in(w: torch.Tensor, by: float) -> None:
    if by > 0:
        w.copy_(functional.softshrink(w, by))
