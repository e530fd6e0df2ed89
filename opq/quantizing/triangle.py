"""Symmetric and triangular matrices in little more than half of their memory: the squares on and above the diagonal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from opq.base.mapped import mapped

SIDE = 512
"""Side of a square. A choice of speed, in products of matrices; a moment is summed in such squares, so that its sums do
not depend on the number of threads."""

Square = tuple[slice, slice, torch.Tensor]
"""Rows and columns of a matrix, and what stands there: (groups, rows, columns)."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Triangle:
    """A stack of matrices (groups, d, d) of which only the squares that touch the upper triangle are held."""

    squares: tuple[Square, ...]

    @classmethod
    def zeros(cls, groups: int, width: int, *, like: torch.Tensor) -> Triangle:
        """Matrices of zeros, on the device and of the element type of a tensor."""
        places = list(_places(width))
        sizes = [groups * (i.stop - i.start) * (j.stop - j.start) for i, j in places]
        pieces = torch.split(_zeros(sum(sizes), like), sizes)
        return cls(
            tuple(
                (i, j, piece.view(groups, i.stop - i.start, j.stop - j.start))
                for (i, j), piece in zip(places, pieces, strict=True)
            )
        )

    @classmethod
    def of(cls, matrix: torch.Tensor) -> Triangle:
        """The upper triangles of matrices (groups, d, d)."""
        found = cls.zeros(len(matrix), matrix.shape[-1], like=matrix)
        for i, j, square in found.squares:
            square.copy_(matrix[:, i, j])
        return found

    @property
    def width(self) -> int:
        """The number of rows of each matrix, d."""
        return self.squares[-1][0].stop if self.squares else 0

    def upper(self) -> torch.Tensor:
        """The matrices (groups, d, d), with zeros below the squares."""
        return self._whole(mirrored=False)

    def symmetric(self) -> torch.Tensor:
        """The matrices (groups, d, d), with the squares above the diagonal mirrored below it."""
        return self._whole(mirrored=True)

    def _whole(self, *, mirrored: bool) -> torch.Tensor:
        first = self.squares[0][2]
        whole = first.new_empty(len(first), self.width, self.width)
        for i, j, square in self.squares:
            whole[:, i, j] = square
            if i != j:
                whole[:, j, i] = square.transpose(1, 2) if mirrored else 0
        return whole


def _zeros(size: int, like: torch.Tensor) -> torch.Tensor:
    """One array for all squares; a large one stays, while others come and go, and so is apart from these."""
    if like.device.type == "cpu" and size >= SIDE**2:
        return mapped(size * like.element_size()).view(like.dtype)
    return like.new_zeros(size)


def _places(width: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the squares on and above the diagonal of a (width, width) matrix."""
    sides = [slice(start, min(start + SIDE, width)) for start in range(0, width, SIDE)]
    for k, i in enumerate(sides):
        for j in sides[k:]:
            yield i, j
