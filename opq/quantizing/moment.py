"""The second moment of a layer's inputs, as error feedback needs it."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from collections.abc import Iterable

import numpy as np
import torch

from opq.base.arrays import Floats
from opq.quantizing.triangle import Triangle
from opq.quantizing.turned import Turn

WIDEST = 4096
"""The most coordinates that share one moment; wider layers have several moments, each for a block of coordinates, of
about equal widths. A choice: a moment of 4096 coordinates takes 64 MiB, and factoring it takes time in proportion to
the cube of its width."""
DAMPING = 0.05
"""Added to the diagonal of S before it is factored, as a fraction of its mean. Found by trying 0.005 to 0.5:
docs/research.md, "What was tried"."""
DAMPING_REAL = 0.15
"""The same for real inputs, which are few: in directions where they hardly vary, other inputs will. Found by trying
0.05, 0.15 and 0.4 on MiniLM (docs/research.md)."""
OWN = 0.05
"""Added to each number of the diagonal, as a fraction of itself, where costs are measured: a fraction of the mean would
be all that is seen of columns beside one of far larger inputs."""


Factor = tuple[torch.Tensor, torch.Tensor]
"""Of one block, the order of its coordinates (width,), those of most power first, and `N` in that order: (groups,
width, width)."""

TRIES = 6
"""How often the damping grows tenfold. A choice: it is then 50,000 times the mean of the diagonal, more than rounding
can take away."""


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How a weight tensor is a stack of matrices: `groups` matrices of (rows, d), one row for each output."""

    groups: int = 1
    transposed: bool = False
    """Each matrix of the stack is stored (d, rows), as transposed convolutions and Hugging Face's Conv1D do."""
    stacked: bool = False
    """The tensor has three dimensions, of which the first counts the matrices, as experts have it."""

    @property
    def turn(self) -> Turn | None:
        """How the tensor is one matrix (outputs, inputs) of all groups; None if its first axis counts its outputs.

        None as well of transposed convolutions in groups, whose inputs are no axis of their own.
        """
        if self.stacked:
            return Turn(1, 1) if self.transposed else Turn(2, 1)
        return Turn(0, 1) if self.transposed and self.groups == 1 else None

    @property
    def crosswise(self) -> bool:
        """Whether the first axis of the tensor counts no outputs."""
        return self.transposed or self.stacked

    def matrix(self, w: torch.Tensor) -> torch.Tensor:
        """The weight as (groups, rows, d)."""
        stack = w if self.stacked else w.reshape(self.groups, w.shape[0] // self.groups, -1)
        return stack.transpose(1, 2) if self.transposed else stack

    def tensor(self, matrix: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The inverse of `matrix`."""
        return (matrix.transpose(1, 2) if self.transposed else matrix).reshape(shape).contiguous()


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """The second moment of one layer's inputs, in blocks along the coordinates."""

    layout: Layout
    blocks: tuple[torch.Tensor, ...]
    """(groups, width, width) each; the widths add up to d."""
    damping: float = DAMPING
    """Added to the diagonal, as a fraction of its mean."""

    @functools.cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The factor of each block."""
        return tuple(factored(block, self.damping) for block in self.blocks)

    @property
    def width(self) -> int:
        """The number of coordinates, d."""
        return sum(int(block.shape[-1]) for block in self.blocks)


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Half:
    """A moment as it is held beside those of other layers: without what is below its diagonal."""

    layout: Layout
    blocks: tuple[Triangle, ...]
    damping: float = DAMPING

    @property
    def moment(self) -> Moment:
        """The whole moment."""
        return Moment(self.layout, tuple(block.symmetric() for block in self.blocks), self.damping)


class Factors:
    """What error feedback needs of a moment; the moment itself, as large again, is released once they are computed."""

    def __init__(self, moment: Half):
        self.layout = moment.layout
        self.moment: Half | None = moment
        """None once the factors are computed."""
        self._lock = threading.Lock()
        self._factors: list[tuple[torch.Tensor, Triangle]] = []

    @property
    def factors(self) -> Iterable[Factor]:
        """`Moment.factors`, of which only the one that is looked at is whole."""
        with self._lock:
            if self.moment is not None:
                self._factors = [_held(block, self.moment.damping) for block in self.moment.blocks]
                self.moment = None
        return ((order, n.upper()) for order, n in self._factors)


def _held(block: Triangle, damping: float) -> tuple[torch.Tensor, Triangle]:
    order, n = factored(block.symmetric(), damping)
    return order, Triangle.of(n)


def factored(block: torch.Tensor, damping: float) -> Factor:
    """The factor of one block (groups, width, width)."""
    order = block.diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True, stable=True)
    ordered = block[:, order][:, :, order]
    del block  # as large as each array that follows
    reverse = _reverse(ordered)
    del ordered
    return order, _factor(reverse, damping)


def factor(s: torch.Tensor, damping: float) -> torch.Tensor:
    """`N` unit upper triangular: `S + damping mean(diag S) I = N D N'`, D diagonal, for a stack of S (groups, d, d).

    It is found by reversing the coordinates, taking the Cholesky factor, and reversing them again. Where rounding has
    left S without one, ten times as much is added, until it has.
    """
    return _factor(_reverse(s), damping)


def _reverse(s: torch.Tensor) -> torch.Tensor:
    """S with its coordinates reversed, divided by the mean of its diagonal."""
    mean = s.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    return s.flip(1, 2).div_(mean[:, None, None])


def _factor(reverse: torch.Tensor, damping: float) -> torch.Tensor:
    """`N` of what `_reverse` gives, which is changed."""
    reverse.diagonal(dim1=-2, dim2=-1).add_(damping)
    lower: torch.Tensor
    lower, failed = torch.linalg.cholesky_ex(reverse)
    for _ in range(TRIES):
        if not bool(failed.any()):
            break
        damping *= 10
        reverse.diagonal(dim1=-2, dim2=-1).add_(damping)
        lower, failed = torch.linalg.cholesky_ex(reverse)
    return lower.div_(lower.diagonal(dim1=-2, dim2=-1).clone()[:, None]).flip(1, 2)


def costs(moment: Moment) -> Floats:
    """What an error in each coordinate costs, up to a factor, once those behind it have made up for it: (d,), float64.

    That is `D` of `S + 0.05 diag S = N D N'`, in the order in which coordinates are quantized. The moment is one of a
    single group.
    """
    return np.concatenate([_costs(block[0]) for block in moment.blocks])


def _costs(s: torch.Tensor) -> Floats:
    """`costs` of one block (d, d), found by its correlations, so that float32 is enough whatever the scales are."""
    power = s.diagonal().double()
    order = power.argsort(descending=True, stable=True).flip(0)
    root = power[order].sqrt()
    root = torch.where(root > 0, root, torch.ones_like(root)).float()
    alike = s[order][:, order].div_(root).div_(root[:, None])
    alike.diagonal().fill_(1 + OWN)
    lower, failed = torch.linalg.cholesky_ex(alike)
    left = torch.ones_like(power) if bool(failed) else lower.diagonal().double().square()
    found = torch.empty_like(power)
    found[order] = left * power[order]
    costs: Floats = found.numpy()
    return costs


def widths(width: int, widest: int = WIDEST) -> list[int]:
    """The widths of the blocks of a layer of `width` coordinates: about equal, at most `widest`, `width` in sum."""
    count = math.ceil(width / widest)
    return [width * (i + 1) // count - width * i // count for i in range(count)]
