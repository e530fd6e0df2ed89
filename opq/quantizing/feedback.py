"""Error feedback: quantize a weight matrix so that its outputs, not its weights, move least.

With `S = E[x x']` the output error of a matrix `W` is `tr(E S E')`, `E = W - W^`. Coordinates are quantized one after
the other on the layer's grid; those not yet quantized take up each error by the closed-form conditional minimiser
(optimal brain surgeon, Hassibi and Stork 1993; GPTQ, Frantar et al. 2022). With `S = N D N'`, `N` unit upper triangular
and `D` diagonal, the output error is `sum_j D_jj |(E N)_j|^2`, so that minimiser is to round coordinate j from
`w_j + sum_{k<j} E_k N_kj`. Halving the coordinates again and again makes nearly all of it products of matrices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch

from opq.base.arrays import Floats32
from opq.errors import OptionError
from opq.plan import TensorPlan
from opq.quantizing import trellis
from opq.quantizing.moment import Moment

LEAF = 8
"""Coordinates fed back one by one, not by a product of matrices."""
ROWS_AT_ONCE = 4096
"""Rows of the matrix swept together."""


def numpy_seconds(coordinates: int, *, on_paths: bool) -> float:
    """About how long the coordinates one by one take in numpy, of a matrix of some hundred rows."""
    return coordinates * (1e-3 if on_paths else 4e-5)


def feedback(w: torch.Tensor, plan: TensorPlan, moment: Moment) -> torch.Tensor:
    """The codes of `w` on the plan's grid with error feedback: int16, same shape, on the CPU.

    Args:
        w: the weight, in the shape that `moment.layout` understands.
        moment: the second moment of the layer's inputs.
    """
    return sweep(w, [plan], moment)[0]


@torch.no_grad()
def sweep(w: torch.Tensor, plans: Sequence[TensorPlan], moment: Moment) -> list[torch.Tensor]:
    """`feedback` on the grids of several plans in one go, which costs little more than on one.

    Raises:
        OptionError: a plan with a trellis for a weight whose first axis counts inputs.
    """
    on_paths = any(plan.codebook == "trellis" for plan in plans)
    if on_paths and len(plans) > 1:
        return [sweep(w, [plan], moment)[0] for plan in plans]
    if on_paths and moment.layout.transposed:
        raise OptionError(f"tensor {plans[0].name!r}: paths down its inputs", got="a trellis", wanted="a grid")
    matrix = moment.layout.matrix(w.detach().float().cpu())
    groups, rows, width = matrix.shape
    grid = _Paths.of(matrix, plans[0]) if on_paths else _Grid.of(plans)
    at_once = rows if on_paths and groups > 1 else ROWS_AT_ONCE  # a multiple of a path's rows
    codes = torch.empty((len(plans), groups, rows, width), dtype=torch.int16)
    start = 0
    for order, n in moment.factors:
        at, n = start + order.cpu(), n.cpu().contiguous()
        for first in range(0, rows, at_once):
            part = slice(first, first + at_once)
            codes[:, :, part, at] = _swept(matrix[:, part, at], grid, len(plans), n)
        start += len(order)
    return [moment.layout.tensor(q, tuple(w.shape)) for q in codes]


def _swept(w: torch.Tensor, grid: _Grid | _Paths, plans: int, n: torch.Tensor) -> torch.Tensor:
    """Codes (plans, groups, rows, d) of `w` (groups, rows, d), coordinates in the order of `N` (groups, d, d)."""
    target = w.transpose(1, 2)[:, :, None].contiguous()  # (groups, d, 1, rows): one coordinate is contiguous
    values = target.repeat(1, 1, plans, 1)  # to be rounded; then the codes
    seconds = numpy_seconds(w.shape[2], on_paths=isinstance(grid, _Paths))
    loops = trellis.LOOPS(seconds) if grid.compiles(values) else None
    sweep = _Sweep(grid, target.numpy(), values.numpy(), torch.empty_like(values), n, loops)
    sweep.run(0, w.shape[2])
    return values.to(torch.int16).permute(2, 0, 3, 1)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Sweep:
    """The arrays of one sweep: (groups, d, plans, rows) but for `n` (groups, d, d)."""

    grid: _Grid | _Paths
    target: Floats32
    values: Floats32
    errors: torch.Tensor
    n: torch.Tensor
    loops: ModuleType | None
    """`quantizing.loops`, where it is to do the coordinates one by one."""

    def run(self, low: int, high: int) -> None:
        """Coordinates from low to high, those before having been fed back."""
        if high - low <= LEAF:
            self._one_by_one(low, high)
            return
        middle = (low + high) // 2
        self.run(low, middle)
        after = torch.from_numpy(self.values[:, middle:high]).flatten(2)
        after.baddbmm_(self.n[:, low:middle, middle:high].transpose(1, 2), self.errors[:, low:middle].flatten(2))
        self.run(middle, high)

    def _one_by_one(self, low: int, high: int) -> None:
        errors, n = self.errors.numpy(), self.n.numpy()
        if self.loops is not None:
            self.grid.feed(self.loops, (self.target, self.values, errors, n), (low, high))
            return
        for j in range(low, high):
            value = self.values[:, j]
            value[...] = self.grid.codes(value)
            errors[:, j] = self.target[:, j] - value * self.grid.step
            self.values[:, j + 1 : high] += n[:, j, j + 1 : high, None, None] * errors[:, j, None]


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Grid:
    """The grids of several plans, (plans, 1) each."""

    step: Floats32
    shift: Floats32
    """1 - rounding."""
    dead: Floats32
    """Half the dead zone in steps."""
    largest: np.float32
    """The largest code, of all of them."""

    @classmethod
    def of(cls, plans: Sequence[TensorPlan]) -> _Grid:
        columns = [[p.step, 1 - p.rounding, p.threshold / p.step] for p in plans]
        step, shift, dead = np.array(columns, dtype=np.float32).T.copy()[:, :, None]
        return cls(step, shift, dead, np.float32(min(p.largest for p in plans)))

    def codes(self, x: Floats32) -> Floats32:
        """The codes of `x` (groups, plans, rows), as `quantize` gives them but as floats and held within int16."""
        scaled = np.abs(x) / self.step
        levels = np.minimum(np.maximum(np.floor(scaled + self.shift), 1), self.largest)
        return np.asarray(np.copysign(levels * (scaled >= self.dead), x))

    def feed(self, loops: ModuleType, arrays: tuple[Floats32, ...], part: tuple[int, int]) -> None:
        """`_Sweep._one_by_one` in machine code."""
        loops.feed_grid(*arrays, self.step, self.shift, self.dead, self.largest, *part)

    def compiles(self, values: torch.Tensor) -> bool:
        """Whether `feed` does for these values (groups, d, plans, rows)."""
        return True


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Paths:
    """The trellis of one plan: a coordinate's codes are one path down all rows, or some."""

    step: np.float32
    bits: Floats32

    @classmethod
    def of(cls, matrix: torch.Tensor, plan: TensorPlan) -> _Paths:
        step = np.float32(plan.step)
        return cls(step, trellis.costs(matrix.numpy() / step))

    def codes(self, x: Floats32) -> Floats32:
        """The codes of `x` (groups, 1, rows), as floats; rows and groups follow each other as in the weight."""
        return trellis.nearest(x.reshape(-1, 1) / self.step, self.bits).reshape(x.shape).astype(np.float32)

    def feed(self, loops: ModuleType, arrays: tuple[Floats32, ...], part: tuple[int, int]) -> None:
        """`_Sweep._one_by_one` in machine code."""
        loops.feed_paths(*arrays, self.step, self.bits, np.float32(trellis.PRICE), trellis.REGISTERS, *part)

    def compiles(self, values: torch.Tensor) -> bool:
        """Whether `feed` does for these values (groups, d, 1, rows)."""
        return values.shape[0] * values.shape[3] <= trellis.TALLEST
