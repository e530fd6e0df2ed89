"""Tensors whose first axis counts no outputs, as matrices (outputs, inputs).

Hugging Face's Conv1D and transposed convolutions store (inputs, outputs, ...), stacks of experts (experts, outputs,
inputs) or (experts, inputs, outputs). Columns of the matrix are the axes of the inputs, rows all others.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from opq.base.arrays import Codes, Floats, Floats32


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """Where the axes of the inputs are: `inputs` of them, behind the first `front` axes."""

    front: int
    inputs: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape has such axes."""
        return self.inputs >= 1 and self.front + self.inputs <= len(shape)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the matrix of a tensor of this shape."""
        before, inputs, behind = self._three(shape)
        return before * behind, inputs

    def matrix(self, w: torch.Tensor) -> torch.Tensor:
        """The tensor as a matrix (rows, columns), contiguous."""
        shape = tuple(w.shape)
        return w.reshape(self._three(shape)).transpose(1, 2).reshape(self.shape(shape)).contiguous()

    def tensor(self, matrix: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The inverse of `matrix`: a tensor of this shape, contiguous."""
        before, inputs, behind = self._three(shape)
        return matrix.reshape(before, behind, inputs).transpose(1, 2).reshape(shape).contiguous()

    def spread(self, values: Floats32, shape: tuple[int, ...]) -> Floats32:
        """Numbers of the rows (rows,), in a shape that a tensor of this shape can be multiplied by."""
        front, back = shape[: self.front], shape[self.front + self.inputs :]
        return values.reshape(*front, *[1] * self.inputs, *back)

    def spread_columns(self, values: Floats, shape: tuple[int, ...]) -> Floats:
        """The same of numbers of the columns (columns,)."""
        end = self.front + self.inputs
        return values.reshape(*[1] * self.front, *shape[self.front : end], *[1] * (len(shape) - end))

    def codes(self, codes: Codes) -> Codes:
        """`matrix` of integer codes."""
        found: Codes = self.matrix(torch.from_numpy(codes)).numpy()
        return found

    def back(self, codes: Codes, shape: tuple[int, ...]) -> Codes:
        """`tensor` of integer codes."""
        found: Codes = self.tensor(torch.from_numpy(codes), shape).numpy()
        return found

    def _three(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """How many there are before the axes of the inputs, along these, and behind them."""
        end = self.front + self.inputs
        return math.prod(shape[: self.front]), math.prod(shape[self.front : end]), math.prod(shape[end:])
