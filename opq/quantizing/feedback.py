"""Error feedback: quantize a weight matrix so that its outputs, rather than its weights, change least.

With `S = E[x x']`, the second moment of the inputs, replacing a matrix `W` by `W^` costs `tr(E S E')` on the outputs,
where `E = W - W^`. Coordinates are quantized one after the other on the layer's grid, and those not yet quantized make
up for each error by the closed-form conditional minimiser (optimal brain surgeon, Hassibi and Stork 1993; GPTQ, Frantar
et al. 2022). With `S = N D N'`, `N` unit upper triangular and `D` diagonal, the output error is
`sum_j D_jj |(E N)_j|^2`, so that the minimiser is to round coordinate j from `w_j + sum_{k<j} E_k N_kj`. The
coordinates are halved recursively, so that nearly all of the work is products of matrices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch

from opq.base.arrays import Codes, Floats32, Reals
from opq.errors import OptionError
from opq.plan import TensorPlan
from opq.quantizing import trellis
from opq.quantizing.moment import Factors, Layout, Moment
from opq.quantizing.rows import factors

LEAF = 8
"""Coordinates at which halving stops: so many are fed back one by one. A choice of speed; it changes the order in which
float32 sums are taken, and so, in rare cases, a code."""
ROWS_AT_ONCE = 4096
"""Rows of the matrix swept together. A choice: the arrays of a sweep then take 16 kB a coordinate each."""


def numpy_seconds(coordinates: int, *, on_paths: bool) -> float:
    """About how many seconds numpy takes for the coordinates fed back one by one, for a matrix of some hundred rows."""
    return coordinates * (1e-3 if on_paths else 4e-5)


def feedback(
    w: torch.Tensor,
    plan: TensorPlan,
    moment: Moment | Factors,
    *,
    leaf: int = LEAF,
    rows_at_once: int = ROWS_AT_ONCE,
    bits: Reals | None = None,
    f: Codes | None = None,
) -> torch.Tensor:
    """The codes of `w` on the plan's grid with error feedback: int16, same shape, on the CPU.

    Args:
        w: the weight tensor, which `moment.layout` turns into a stack of matrices.
        moment: the second moment of the layer's inputs, or its factors.
        leaf: coordinates at which halving stops.
        rows_at_once: rows of the matrix that are swept together; on a trellis a multiple of a path's rows.
        bits: on a trellis, what each `k` costs (`trellis.costs`), where `w` is only a part of the weights.
        f: the exponents of columns whose weights were divided by `2^(f_j / 4)`, as the moment's were not.
    """
    return sweep(w, [plan], moment, leaf=leaf, rows_at_once=rows_at_once, bits=bits, f=f)[0]


@torch.no_grad()
def sweep(
    w: torch.Tensor,
    plans: Sequence[TensorPlan],
    moment: Moment | Factors,
    *,
    layout: Layout | None = None,
    leaf: int = LEAF,
    rows_at_once: int = ROWS_AT_ONCE,
    bits: Reals | None = None,
    f: Codes | None = None,
) -> list[torch.Tensor]:
    """`feedback` on the grids of several plans in one pass, which costs little more than for one plan.

    Args:
        layout: how `w` is a stack of matrices, where it is not as the weight that the moment belongs to.

    Raises:
        OptionError: a plan uses a trellis, and the first axis of the weight counts inputs.
    """
    on_paths = any(plan.codebook == "trellis" for plan in plans)
    layout = layout or moment.layout
    if on_paths and len(plans) > 1:
        alone = functools.partial(sweep, w, moment=moment, layout=layout, leaf=leaf, rows_at_once=rows_at_once, f=f)
        return [alone([plan])[0] for plan in plans]
    if on_paths and layout.transposed:
        raise OptionError(f"tensor {plans[0].name!r}: paths down its inputs", got="a trellis", wanted="a grid")
    matrix = layout.matrix(w.detach().float().cpu())
    groups, rows, width = matrix.shape
    grid = _Paths.of(matrix, plans[0], bits) if on_paths else _Grid.of(plans)
    at_once = rows if on_paths and groups > 1 else rows_at_once
    codes = torch.empty((len(plans), groups, rows, width), dtype=torch.int16)
    start, scale = 0, None if f is None else torch.from_numpy(factors(f)).float()
    for order, n in moment.factors:
        at, n = start + order.cpu(), n.cpu().contiguous()
        if scale is not None:  # of C S C, if C are the scales: C N C^-1
            n = n * (scale[at, None] / scale[at])
        for first in range(0, rows, at_once):
            part = slice(first, first + at_once)
            codes[:, :, part, at] = _swept(matrix[:, part, at], grid, len(plans), n, leaf=leaf)
        start += len(order)
    return [layout.tensor(q, tuple(w.shape)) for q in codes]


def _swept(w: torch.Tensor, grid: _Grid | _Paths, plans: int, n: torch.Tensor, *, leaf: int) -> torch.Tensor:
    """Codes (plans, groups, rows, d) of `w` (groups, rows, d), coordinates in the order of `N` (groups, d, d)."""
    target = w.transpose(1, 2)[:, :, None].contiguous()  # (groups, d, 1, rows): one coordinate is contiguous
    values = target.repeat(1, 1, plans, 1)  # (groups, d, plans, rows): to be rounded; then the codes
    seconds = numpy_seconds(w.shape[2], on_paths=isinstance(grid, _Paths))
    loops = trellis.LOOPS(seconds) if grid.compiles(values) else None
    sweep = _Sweep(grid, target.numpy(), values.numpy(), torch.empty_like(values), n, loops, leaf)
    sweep.run(0, w.shape[2])
    return values.to(torch.int16).permute(2, 0, 3, 1)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Sweep:
    """The arrays of one sweep, d coordinates."""

    grid: _Grid | _Paths
    target: Floats32
    """(groups, d, 1, rows): the weights."""
    values: Floats32
    """(groups, d, plans, rows): of coordinates not yet quantized the values to round, of the others the codes."""
    errors: torch.Tensor
    """(groups, d, plans, rows): weight minus decoded weight, of the coordinates that are quantized."""
    n: torch.Tensor
    """(groups, d, d): `N`."""
    loops: ModuleType | None
    """`quantizing.loops` where the coordinates one by one are done in machine code."""
    leaf: int

    def run(self, low: int, high: int) -> None:
        """Quantizes the coordinates from low to high; the errors of those before have been passed on to them."""
        if high - low <= self.leaf:
            self._one_by_one(low, high)
            return
        middle = (low + high) // 2
        self.run(low, middle)
        after = torch.from_numpy(self.values[:, middle:high]).flatten(2)  # (groups, d of the half, plans rows)
        after.baddbmm_(self.n[:, low:middle, middle:high].transpose(1, 2), self.errors[:, low:middle].flatten(2))
        self.run(middle, high)

    def _one_by_one(self, low: int, high: int) -> None:
        """`run` without halving: each coordinate passes its error on to all those up to high."""
        errors, n = self.errors.numpy(), self.n.numpy()
        if self.loops is not None:
            self.grid.feed(self.loops, (self.target, self.values, errors, n), (low, high))
            return
        for j in range(low, high):
            value = self.values[:, j]  # (groups, plans, rows)
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
        """The codes of `x` (groups, plans, rows), as `quantize` gives them but as floats, and clipped to int16."""
        scaled = np.abs(x) / self.step
        levels = np.minimum(np.maximum(np.floor(scaled + self.shift), 1), self.largest)
        return np.asarray(np.copysign(levels * (scaled >= self.dead), x))

    def feed(self, loops: ModuleType, arrays: tuple[Floats32, ...], part: tuple[int, int]) -> None:
        """`_Sweep._one_by_one` in machine code."""
        loops.feed_grid(*arrays, self.step, self.shift, self.dead, self.largest, *part)

    def compiles(self, values: torch.Tensor) -> bool:
        """Whether `feed` can be used for values (groups, d, plans, rows)."""
        return True


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Paths:
    """The trellis of one plan: the codes of a coordinate are paths down the rows."""

    step: np.float32
    bits: Floats32
    """What each `k` costs, see `trellis.nearest`."""
    price: np.float32
    """Of a bit."""

    @classmethod
    def of(cls, matrix: torch.Tensor, plan: TensorPlan, bits: Reals | None) -> _Paths:
        step = np.float32(plan.step)
        costs = trellis.costs(matrix.numpy() / step) if bits is None else bits
        return cls(step, costs, np.float32(trellis.price(plan.rate)))

    def codes(self, x: Floats32) -> Floats32:
        """The codes of `x` (groups, 1, rows), as floats; paths run down the rows of all groups, as in the weight."""
        found = trellis.nearest(x.reshape(-1, 1) / self.step, self.bits, price=float(self.price))
        return found.reshape(x.shape).astype(np.float32)

    def feed(self, loops: ModuleType, arrays: tuple[Floats32, ...], part: tuple[int, int]) -> None:
        """`_Sweep._one_by_one` in machine code."""
        loops.feed_paths(*arrays, self.step, self.bits, self.price, trellis.REGISTERS, *part)

    def compiles(self, values: torch.Tensor) -> bool:
        """Whether `feed` can be used for values (groups, d, 1, rows): up to `trellis.TALLEST` rows in all."""
        return values.shape[0] * values.shape[3] <= trellis.TALLEST
