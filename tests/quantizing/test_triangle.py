"""Matrices of which only the squares on and above the diagonal are held."""

from __future__ import annotations

import pytest
import torch

from opq.quantizing import triangle
from opq.quantizing.triangle import Triangle


@pytest.mark.parametrize("width", [1, 5, 8, 9, 20])
def test_a_matrix_comes_back(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangle, "SIDE", 4)
    s = torch.randn(3, width, width)
    s = s + s.transpose(1, 2)
    held = Triangle.of(s)
    assert held.width == width
    assert torch.equal(held.symmetric(), s)
    assert torch.equal(Triangle.of(s.triu()).upper(), s.triu())
    sides = -(-width // 4)
    assert len(held.squares) == sides * (sides + 1) // 2
    assert not any(square.any() for _, _, square in Triangle.zeros(3, width, like=s).squares)
