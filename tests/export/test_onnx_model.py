"""What counts as a tensor of the file, found again in a graph of floats."""

from __future__ import annotations

import numpy as np
import pytest

from opq.export.onnx_graph import GridTensor
from opq.export.onnx_model import recognised

CODES = np.random.default_rng(0).integers(-9, 10, (6, 20)).astype(np.int16)
STEP = 0.0371
SCALES = np.random.default_rng(1).uniform(0.1, 2, (6, 1)).astype(np.float32)


def test_values_are_recognised_through_the_roundings_of_an_exporter() -> None:
    values = CODES.astype(np.float32) * np.float32(STEP) * SCALES
    found = recognised(values, GridTensor("w", CODES, np.float32(STEP).reshape(())))
    assert found is not None
    np.testing.assert_array_equal(found[0], CODES)
    np.testing.assert_allclose(found[1], STEP * SCALES.ravel(), rtol=1e-6)


@pytest.mark.parametrize("error", [2e-6, 1e-4, 1e-2])
def test_values_further_away_than_two_roundings_stay_as_they_are(error: float) -> None:
    """Else the exported network would be another one, and no one would be told."""
    values = CODES.astype(np.float32) * np.float32(STEP) * SCALES
    row, column = np.argwhere(CODES)[3]
    values[row, column] *= 1 + error
    assert recognised(values, GridTensor("w", CODES, np.float32(STEP).reshape(()))) is None


@pytest.mark.parametrize("turned", [False, True])
def test_steps_along_another_axis_are_found_too(turned: bool) -> None:
    """Of a tensor that stores inputs first, whose steps are those of its outputs."""
    steps = np.linspace(0.5, 2, CODES.shape[1], dtype=np.float32)[None]
    grid = GridTensor("w", CODES, np.float32(STEP) * steps)
    found = recognised(grid.weights.T if turned else grid.weights, grid)
    assert found is not None
    np.testing.assert_array_equal(found[0] * found[1], grid.weights.T if turned else grid.weights)


@pytest.mark.parametrize("turned", [False, True])
def test_steps_by_row_are_found_along_their_axis(turned: bool) -> None:
    grid = GridTensor("w", CODES, STEP * SCALES.ravel())
    found = recognised(grid.weights.T if turned else grid.weights, grid)
    assert found is not None
    codes, steps = found
    np.testing.assert_array_equal(codes, CODES.T if turned else CODES)
    np.testing.assert_array_equal(codes * steps, grid.weights.T if turned else grid.weights)
