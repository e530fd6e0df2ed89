"""Codes of recurrent layers in an ONNX graph, whose LSTM, GRU and RNN nodes order the gates differently from torch.

Matrices of these nodes are (directions, gates x hidden, inputs). The gates of an LSTM are input, output, forget, cell
(in torch input, forget, cell, output), those of a GRU update, reset, new (in torch reset, update, new).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from opq.export.onnx_graph import FLOATING, GridTensor, put

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""For each gate in ONNX's order, its number in torch's order."""
_MATRICES = (1, 2)
"""Which inputs of a node are its two matrices."""


def replaced(graph: Any, grids: Iterable[GridTensor]) -> dict[str, str]:
    """Puts codes where recurrent layers hold their values, and gives the type of the codes by tensor.

    A matrix of several directions is replaced only if all its directions are recognised.
    """
    matrices = {id(value): (value, gates) for value, gates in _matrices(graph)}
    if not matrices:
        return {}
    known, kinds = list(grids), dict[str, str]()
    for value, gates in matrices.values():
        found = [_recognised(part, gates, known) for part in value.const_value.numpy()]
        directions = [one for one in found if one is not None]
        if len(directions) == len(found):
            codes = np.stack([_reordered(grid.codes, gates) for grid in directions])
            if any(grid.step.ndim for grid in directions):
                every = [np.broadcast_to(grid.spread, (len(grid.codes), 1)) for grid in directions]
                steps = np.stack([_reordered(rows, gates) for rows in every])
            else:
                steps = np.stack([grid.step for grid in directions])
            across = [np.ones((1, codes.shape[2])) if grid.across is None else grid.across for grid in directions]
            factors = None if all(grid.across is None for grid in directions) else np.stack(across)
            kind = put(graph, value, codes, steps, factors)
            kinds |= {grid.name: kind for grid in directions}
    return kinds


def _matrices(graph: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The initializers that are matrices of recurrent nodes, with the order of their gates."""
    for node in graph:
        if node.op_type in GATES:
            for place in _MATRICES:
                value = node.inputs[place]
                if value is not None and (held := value.const_value) is not None and held.dtype.name in FLOATING:
                    yield value, GATES[node.op_type]


def _recognised(values: Any, gates: tuple[int, ...], grids: Iterable[GridTensor]) -> GridTensor | None:
    """The tensor of the file that has these values when its gates are put into ONNX's order; None if there is none."""
    for grid in grids:
        if grid.codes.shape == values.shape and grid.restorable:
            dense = _reordered(grid.weights, gates)
            if np.array_equal(dense.astype(values.dtype), values):
                return grid
    return None


def _reordered(rows: Any, gates: tuple[int, ...]) -> Any:
    blocks = np.split(rows, len(gates))
    return np.concatenate([blocks[gate] for gate in gates])
