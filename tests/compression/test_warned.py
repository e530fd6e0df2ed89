"""Weights that are lost, and numbers that are none, are told."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import opq
from opq.errors import WeightsWarning

OTHER = {"u": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(("scale", "dtype"), [(1e-300, torch.float64), (1e-42, torch.float32)])
def test_weights_too_small_for_a_grid_are_told_by_name(scale: float, dtype: torch.dtype) -> None:
    w = (torch.randn(64, 64, dtype=torch.float64) * scale).to(dtype)
    with pytest.warns(WeightsWarning, match="the weights of tensor 'w' are at most"):
        opq.compress({"w": w, **OTHER}, bits=6)


@pytest.mark.parametrize("w", [torch.zeros(64, 64), torch.randn(64, 64) * 1e-34])
def test_zeros_and_small_weights_are_no_reason_to_warn(w: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opq.compress({"w": w, **OTHER}, bits=6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_is_told_and_kept(wrong: float, tmp_path: Path) -> None:
    b = torch.tensor([1.0, wrong] * 8)
    with pytest.warns(WeightsWarning, match="tensor 'b' holds NaN or infinity; it is kept bit for bit"):
        opq.compress({"b": b, **OTHER}, bits=6).save(tmp_path / "m")
    assert torch.equal(opq.load_state_dict(tmp_path / "m")["b"].view(torch.int32), b.view(torch.int32))


def test_a_vector_whose_squares_are_nothing_is_kept_as_it_is(tmp_path: Path) -> None:
    b = torch.randn(16, dtype=torch.float64) * 1e-300
    opq.compress({"b": b, **OTHER}, bits=6).save(tmp_path / "m")
    assert torch.equal(opq.load_state_dict(tmp_path / "m")["b"], b)
