"""Codes of recurrent layers in a graph of ONNX, whose LSTM, GRU and RNN hold them in another order.

Their matrices are (directions, gates x hidden, inputs), the gates of an LSTM input, output, forget, cell where torch
has input, forget, cell, output, and those of a GRU update, reset, new where torch has reset, update, new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from opq.export.onnx_graph import FLOATING, Grid, Ints, put

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""Which of torch's gates stands at each place of ONNX's."""
_MATRICES = (1, 2)
"""Places of the two matrices among a node's inputs."""


def replaced(graph: Any, grids: Iterable[Grid]) -> dict[str, str]:
    """Puts codes where recurrent layers hold their values; tensor -> type of its codes.

    A matrix of several directions becomes integers where all of its directions are recognised.
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
            kind = put(graph, value, codes, np.array([grid.step for grid in directions], np.float32))
            kinds |= {grid.name: kind for grid in directions}
    return kinds


def _matrices(graph: Any) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The initializers that recurrent nodes multiply by, with the order of their gates."""
    for node in graph:
        if node.op_type in GATES:
            for place in _MATRICES:
                value = node.inputs[place]
                if value is not None and (held := value.const_value) is not None and held.dtype.name in FLOATING:
                    yield value, GATES[node.op_type]


def _recognised(values: Any, gates: tuple[int, ...], grids: Iterable[Grid]) -> Grid | None:
    """The tensor of the file whose values these are, in torch's order of gates."""
    for grid in grids:
        if grid.codes.shape == values.shape:
            dense = _reordered(grid.codes, gates).astype(np.float32) * np.float32(grid.step)
            if np.array_equal(dense.astype(values.dtype), values):
                return grid
    return None


def _reordered(codes: Ints, gates: tuple[int, ...]) -> Ints:
    blocks = np.split(codes, len(gates))
    return np.concatenate([blocks[gate] for gate in gates])
