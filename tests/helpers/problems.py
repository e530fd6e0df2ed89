"""Random allocation problems shared by the tests of the solvers."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch

from opq.allocation.curve import Curve
from opq.allocation.solution import Allocation
from opq.allocation.stats import TensorStats


@dataclasses.dataclass(frozen=True)
class Instance:
    curves: tuple[Curve, ...]
    sizes: tuple[int, ...]
    sensitivities: tuple[float, ...]

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def arguments(self) -> tuple[tuple[Curve, ...], tuple[int, ...], tuple[float, ...]]:
        return self.curves, self.sizes, self.sensitivities

    def error(self, rates: np.ndarray | list[float]) -> float:
        """`sum a_i n_i D_i(R_i)`."""
        each = zip(*self.arguments(), rates, strict=True)
        return sum(a * n * curve.distortion_at(float(r)) for curve, n, a, r in each)

    def spent(self, allocation: Allocation) -> float:
        return sum(n * p.rate for n, p in zip(self.sizes, allocation.points, strict=True))


@functools.cache
def instance(seed: int, count: int = 5) -> Instance:
    """Tensors of different sizes, scales, shapes of distribution and sensitivities."""
    draw, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    curves, sizes = [], []
    for i in range(count):
        size = int(random.integers(200, 5000))
        w = torch.randn(size, generator=draw) * float(np.exp(random.normal()))
        w = w * w.abs() if i % 3 == 1 else w
        curves.append(Curve.of(TensorStats.of(w)))
        sizes.append(size)
    return Instance(tuple(curves), tuple(sizes), tuple(np.exp(2 * random.normal(size=count)).tolist()))
