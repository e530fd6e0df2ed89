"""What is said of a budget that cannot be met."""

from __future__ import annotations

import re

import pytest
import torch

import opq
from opq.errors import InfeasibleError


@pytest.mark.parametrize("rows", [13, 50, 77, 128])
@pytest.mark.parametrize(("kind", "impossible"), [("bits", 1e-4), ("ratio", 1e7), ("size", 60)])
def test_the_budget_that_is_suggested_has_room_for_the_smallest_file(kind: str, impossible: float, rows: int) -> None:
    """Rounded so that the user who types it gets a file, whatever the digits that are left."""
    weights = {"w": torch.randn(rows, 61)}
    with pytest.raises(InfeasibleError) as raised:
        opq.compress(weights, **{kind: impossible})
    found = re.search(rf"at least (\d+) bytes, that is {kind}=(\d+(?:\.\d+)?)", str(raised.value))
    assert found
    least, said = int(found[1]), float(found[2])
    room = {"bits": said * rows * 61 / 8, "ratio": 4 * rows * 61 / said, "size": said}[kind]
    finest = {"bits": 1e-4 * rows * 61 / 8, "ratio": 1e-4 * least / said, "size": 1}[kind]
    assert least * (1 - 1e-12) <= room <= least + 1.001 * finest
    assert opq.compress(weights, **{kind: int(said) if kind == "size" else said}).bytes <= room
