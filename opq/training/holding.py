"""Holds the size of a file below a budget while its weights are trained.

Training spreads the codes, and wider codes take more bytes. So after every step of the optimizer all weights are drawn
towards zero, by a part `pull` of their tensor's step:

    w <- sign(w) max(0, |w| - pull step)

(a proximal step of an L1 penalty, beside the optimizer, so that Adam's normalisation does not touch it). Every few
steps the size is estimated from the entropy of the codes, and the pull rises or falls by what would undo a part of the
growth since the last estimate and of what is above the aim, if a whole step of pull took away what it does on average.
At the end of each epoch the file is
made and measured; if it is too large after all, those weights fall to the next lower level that are the nearest to it,
as many as it takes.
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
GROWTH, EXCESS = 0.5, 0.1
"""Of what the size grew by since the last estimate, and of what it is above the aim, the parts that the next pull is to
take away besides what the last one did. A choice."""
MOST = 0.05
"""Of the pull, in parts of a step of the grid. A choice: training that needs more spreads the codes in vain."""
HALVINGS, TRIALS, FURTHEST = 12, 8, 2.0**15
"""Of the search for the part of a step by which weights are lowered, and of its repetitions; and the largest code."""


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
        self.pull = 0.0
        self.steps = 0
        self.beside = 0.0
        """Bytes of the file less the entropy of its codes, at the last measurement."""
        self.bytes, self.last = 0, 0.0
        """At the last measurement, and at the last measurement or estimate."""
        self.settle()

    def after_step(self) -> None:
        """Pulls the weights."""
        self.steps += 1
        if self.steps % EVERY == 0:
            self._follow()
        if self.pull:
            self._draw_in(self.pull)

    def estimate(self) -> float:
        """Bytes of the file, from the entropy of the codes as they are."""
        return self.beside + self._entropy(0.0)

    def settle(self) -> int:
        """Measures the file; where it is too large, lowers the weights nearest to the edges of their levels.

        Raises:
            BudgetError: no such change makes it small enough.
        """
        size = self._measured()
        for trial in range(TRIALS):
            if size <= self.budget:
                break
            excess = size - self.budget
            part = self._part(self._entropy(0.0) - excess * (1.0 + 0.25 * trial) - 1.0)
            self._lower(part)
            size = self._measured()
        if size > self.budget:
            remedy = "Train with hold_size=False, or compress to a larger budget first."
            fact, wanted = "the file cannot be held below its budget in training", f"at most {self.budget:.0f}"
            raise BudgetError(fact, got=f"{size} bytes", wanted=wanted, remedy=remedy)
        self.bytes, self.last = size, float(size)
        return size

    def state(self) -> dict[str, Any]:
        """What the pull depends on, as plain numbers."""
        return {name: getattr(self, name) for name in ("pull", "steps", "beside", "bytes", "last")}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name in self.state():
            setattr(self, name, state[name])

    def _follow(self) -> None:
        entropy = self._entropy(0.0)
        size, slope = self.beside + entropy, max(entropy - self._entropy(1.0), 1.0)
        wanted = GROWTH * (size - self.last) + EXCESS * (size - AIM * self.budget)
        self.pull = min(max(self.pull + wanted / slope / EVERY, 0.0), MOST)
        self.last = size

    def _measured(self) -> int:
        size = self.measure()
        self.beside = size - self._entropy(0.0)
        return size

    def _part(self, wanted: float) -> float:
        """The smallest part of a level by which weights are drawn in for codes of so many bytes."""
        low, high = 0.0, 1.0
        while self._entropy(high) > wanted and high < FURTHEST:
            low, high = high, 2 * high
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

    @torch.no_grad()
    def _draw_in(self, part: float) -> None:
        for w, grid in self._tensors():
            w.copy_(functional.softshrink(w, part * grid.plan.step))

    @torch.no_grad()
    def _lower(self, part: float) -> None:
        """Moves the weights within a part of a step above the edge of their level to the next lower level."""
        for w, grid in self._tensors():
            now, lower = grid(w), grid(functional.softshrink(w, part * grid.plan.step))
            w.copy_(torch.where(now == lower, w, lower))

    def _tensors(self) -> Iterator[tuple[torch.Tensor, FixedGrid]]:
        """The plain weights and their grids, tied ones once."""
        seen: set[int] = set()
        for module, attribute, grid in attached(self.model):
            if id(grid) not in seen:
                seen.add(id(grid))
                yield plain(module, attribute), grid
