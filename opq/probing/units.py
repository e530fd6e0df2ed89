"""Units of outputs: errors are measured relative to how much an output varies from sample to sample.

A detector gives boxes in pixels and scores below one; two heads may differ by a factor of a thousand. If squared errors
were simply summed, only the larger outputs would matter. So outputs are divided into groups, each of one unit, and the
squared error of a group is divided by its squared variation `V_g`. The groups' errors are averaged with the number of
positions `p_g` (such as tokens or pixels) as weights; the number of channels does not matter:

    error = sum over groups g of  c_g sum_{k in g} (f_k - f^_k)^2,      c_g = p_g / (V_g  sum over groups of p),
    V_g = sum_{k in g} (f_k - mean over samples)^2

Here `f_k` is an element of the dense network's outputs and `f^_k` the same element for the quantized network. Each
output is a group. It is divided further where the deviations of its channels, sorted, leave a gap of a factor `GAP`.
A single group is not divided by `V_g`, since a common factor changes no allocation. Outputs that hold only whole
numbers, such as labels, have no weight beside others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

GAP = 30.0
"""The least ratio of deviations between two units. The sorted deviations of classifiers' outputs have gaps below 2."""
PART = 1 / 32
"""The smallest fraction of the channels that makes a unit; fewer are outliers, which features often have."""
NOTHING = 1e-7
"""Channels whose deviation is below this fraction of the largest make no unit of their own."""
CHANNELS = 4096
"""Dimensions of more than this are taken for positions or words, all of one unit."""
ROUNDING = 1e-5
"""Distances from the mean below this, relative to the value, are taken for rounding errors."""
POSITIONS = 64
"""The most positions, tokens or pixels, with which one output counts."""
WHOLE = 2.0**20
"""The largest number that is taken for a label or a count; larger float32 numbers have less than 4 fractional bits."""
AT_ONCE = 1 << 22
"""Numbers that are compared at one time, where they are of several samples. A choice: 32 MB each in float64."""
FEWEST = 8
"""The fewest values from which the deviation of a channel is measured."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Units:
    """The weights of errors in each output."""

    shares: tuple[torch.Tensor, ...]
    """`c_g` of each output, as a scalar or as one number per channel; 0 where the output does not vary."""
    varied: float
    """The sum of all `V_g`."""
    plain: bool
    """Whether there is only one unit, or no output varies: squared errors are then summed without weights."""

    @classmethod
    def of(cls, outputs: Sequence[torch.Tensor]) -> Units:
        """The units of some outputs, with samples along their first dimension."""
        outputs = [output.detach().float() for output in outputs]
        squares = [_squares(output) for output in outputs]
        cuts = [_cut(o, square) for o, square in zip(outputs, squares, strict=True)]
        powers = [_powers(square, cut) for square, cut in zip(squares, cuts, strict=True)]
        groups = sum(int((power > 0).sum()) for power in powers)
        counts = [_positions(output) for output in outputs]
        total = sum(n * int((power > 0).sum()) for n, power in zip(counts, powers, strict=True))
        shares = [
            torch.where(p > 0, n / (total * p).clamp(min=torch.finfo(p.dtype).tiny), 0 * p)
            for n, p in zip(counts, powers, strict=True)
        ]
        each = [share if cut is None else share[cut] for share, cut in zip(shares, cuts, strict=True)]
        plain = groups == 0 or (groups == 1 and len(outputs) == 1)
        return cls(tuple(each), sum(float(p.sum()) for p in powers), plain)

    def error(self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
        """The squared error of outputs, relative to their variation; absolute where nothing varies."""
        if self.plain:
            error = sum(_distance(b, a) for a, b in zip(before, after, strict=True))
            varied = sum(_distance(b, b.mean(0, dtype=torch.float64).expand_as(b)) for b in before)
            return error / varied if varied > 0 else error
        return sum(_distance(b, a, w) for a, b, w in zip(before, after, self.shares, strict=True))

    def scaled(self, v: torch.Tensor, number: int) -> torch.Tensor:
        """Noise `v` for output `number`, scaled so that its square has the output's weight."""
        if self.plain:
            return v
        share = self.shares[number % len(self.shares)]  # where the data decide how many outputs there are
        return v * (self.varied * _fitted(share, v)).sqrt().to(v)


def _distance(one: torch.Tensor, other: torch.Tensor, share: torch.Tensor | None = None) -> float:
    """The sum of squared differences, in float64; weighed by a share `c_g`. A few samples at a time: outputs may be
    large, such as scores of words."""
    rows = max(1, AT_ONCE * len(one) // max(1, one.numel())) if one.dim() else 1
    pieces = [torch.split(side, rows) if one.dim() else (side,) for side in (one, other)]
    total = 0.0
    for a, b in zip(*pieces, strict=True):
        squares = (a.double() - b.double()).square()
        total += float(squares.sum() if share is None else (squares * _fitted(share, squares)).sum())
    return total


def _squares(output: torch.Tensor) -> torch.Tensor:
    """Squared distances from the mean over samples, or over everything where there is one sample.

    They are 0 where they are not finite or no larger than rounding errors, and where all numbers are whole.
    """
    centre = output.mean(0) if output.dim() and len(output) > 1 else output.mean()
    squares = (output - centre).square()
    squares[(squares < (ROUNDING * output).square()) | ~torch.isfinite(squares)] = 0.0
    return squares * 0 if _whole(output) else squares


def _whole(output: torch.Tensor) -> bool:
    """Whether an output holds labels or counts: whole numbers of at most `WHOLE` (most larger floats are whole)."""
    return torch.equal(output, output.round()) and float(output.abs().amax() if output.numel() else 0.0) <= WHOLE


def _cut(output: torch.Tensor, squares: torch.Tensor) -> torch.Tensor | None:
    """The group of each channel, in a shape that broadcasts to the output; None where all are of one unit."""
    if output.dim() < 2 or output.numel() == 0 or float(output.abs().max()) <= 1:
        return None  # numbers between -1 and 1, such as probabilities, are taken to have one unit
    dims = dict.fromkeys((output.dim() - 1, 1) if output.dim() == 3 else (1, output.dim() - 1))
    for dim in dims:
        channels = output.shape[dim]
        if not 2 <= channels <= CHANNELS or output.numel() < FEWEST * channels:
            continue
        power = squares.movedim(dim, 0).flatten(1).mean(1, dtype=torch.float64)
        groups = _groups(power)
        if int(groups.max()) > 0:
            return groups.view([channels if d == dim else 1 for d in range(output.dim())])
    return None


def _groups(power: torch.Tensor) -> torch.Tensor:
    """The group of each channel, from the channels' mean squares."""
    rising, order = power.sort()
    gaps = (rising[1:] > GAP**2 * rising[:-1]) & (rising[:-1] > NOTHING**2 * rising[-1])
    fewest, starts = max(1.0, PART * len(power)), [0]
    for start in (gaps.nonzero().flatten() + 1).tolist():
        if min(start - starts[-1], len(power) - start) >= fewest:
            starts.append(start)
    numbers = torch.zeros_like(order)
    numbers[starts[1:]] = 1
    return torch.empty_like(order).scatter_(0, order, numbers.cumsum(0))


def _positions(output: torch.Tensor) -> int:
    """The number of positions in one sample; channels are the last of three dimensions, otherwise the second."""
    shape = output.shape[1:2] if output.dim() == 3 else output.shape[2:]
    return min(POSITIONS, math.prod(shape))


def _powers(squares: torch.Tensor, cut: torch.Tensor | None) -> torch.Tensor:
    """`V_g` of the groups of one output."""
    if cut is None:
        return squares.sum(dtype=torch.float64)
    dim = next(d for d, size in enumerate(cut.shape) if size > 1)
    power = squares.movedim(dim, 0).flatten(1).sum(1, dtype=torch.float64)
    return torch.zeros(int(cut.max()) + 1, dtype=power.dtype, device=power.device).index_add_(0, cut.flatten(), power)


def _fitted(share: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The weights of the elements of `values`; the mean weight where their channels are others than those measured."""
    same = share.dim() in (0, values.dim()) and all(
        s in (1, n) for s, n in zip(share.shape, values.shape, strict=False)
    )
    return share if same else share.mean()


def error_of(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """How far outputs have moved, relative to how they vary; outputs whose shape has changed are left out.

    It is NaN where no output can be compared, and infinite where outputs that were finite no longer are.
    """
    pairs = [(b, a) for b, a in zip(before, after, strict=False) if b.shape == a.shape]
    if not pairs:
        return math.nan
    finite = [torch.isfinite(b) for b, _ in pairs]
    old, new = [
        [o if bool(f.all()) else torch.where(f, o, 0.0) for o, f in zip(side, finite, strict=True)]
        for side in zip(*pairs, strict=True)
    ]
    error = Units.of(old).error(old, new)
    return math.inf if math.isnan(error) else error
