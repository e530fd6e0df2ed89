"""Two ways to count: what the paper reports, and what the file weighs.

*Nominal*: 32 / (density x mean bits of a kept weight); positions cost nothing and only compressed tensors count.
Per-channel bits are `log2(range_ij / Delta_i + 1)`, ranges being those of the kept weights. *Real*: bytes of the
source / bytes of the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from opq.base.arrays import Codes, Ints
from opq.base.counts import entropy
from opq.plan import Plan, TensorPlan


@dataclasses.dataclass(frozen=True, slots=True)
class Nominal:
    """The paper's accounting of a set of codes."""

    weights: int
    kept: int
    value_bits: float
    """Bits of all kept weights together, without positions."""

    def __repr__(self) -> str:
        figures = f"{self.ratio:.2f}x, {self.sparsity:.1%} pruned, {self.bits_per_kept:.2f} bits per kept weight"
        return f"<Nominal {figures}, positions free>"

    def __add__(self, other: Nominal) -> Nominal:
        return Nominal(self.weights + other.weights, self.kept + other.kept, self.value_bits + other.value_bits)

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are zero."""
        return 1 - self.kept / self.weights if self.weights else 0.0

    @property
    def bits_per_kept(self) -> float:
        """Mean bits of a kept weight."""
        return self.value_bits / self.kept if self.kept else 0.0

    @property
    def ratio(self) -> float:
        """32 bits a weight over the bits of the kept values; infinite where those cost nothing."""
        return 32 * self.weights / self.value_bits if self.value_bits else float("inf")


NOTHING = Nominal(0, 0, 0.0)


def information(tensor: TensorPlan, values: Codes | Ints, counts: Ints) -> float:
    """Zeroth-order entropy, in bytes in all, of a tensor's codes as the file holds them.

    Of a trellis it holds `k = floor(n / 2)`: the parity of `n` follows from the codes above.

    Args:
        values: the codes that occur, each once.
        counts: how often they occur, above 0.
    """
    if tensor.on_trellis:
        counts = np.bincount(np.unique(values >> 1, return_inverse=True)[1], weights=counts)
    return entropy(counts) / 8


def nominal(plan: Plan, codes: Mapping[str, torch.Tensor]) -> Nominal:
    """The paper's accounting of the codes on a grid."""
    grids = (t.name for t in plan.compressed if t.stepped and t.size)
    return sum((of_codes(codes[name]) for name in grids), NOTHING)


def of_codes(q: torch.Tensor) -> Nominal:
    """The paper's accounting of one tensor's codes."""
    levels, count = _channels(q)
    return Nominal(q.numel(), int(count.sum()), float((count * torch.log2(levels)).sum()))


def _channels(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each channel: `range_ij / Delta_i + 1` of its kept codes, and how many are kept."""
    rows = q.reshape(q.shape[0] if q.dim() else 1, -1).double()
    kept = rows != 0
    count = kept.sum(1)
    top = rows.masked_fill(~kept, -torch.inf).amax(1)
    bottom = rows.masked_fill(~kept, torch.inf).amin(1)
    return torch.where(count > 0, top - bottom + 1, torch.ones(())), count
