"""Which tensors of a forward's output errors are measured on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from opq.models.outputs import floating, weighing

A, B, C = torch.rand(2, 3), torch.rand(2, 4), torch.rand(2, 5)


@dataclasses.dataclass
class Out:
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (A, [A]),
        ((A, B), [A, B]),
        ([[A, B], [C]], [A, B, C]),
        ((A, (B, C)), [A]),
        ({"boxes": A, "scores": B, "labels": torch.ones(2, dtype=torch.long)}, [A, B]),
        ([{"boxes": A}, {"boxes": B}], [A, B]),
        ((A, A, B, A.view(2, 3)), [A, B]),
        (Out(logits=A, hidden_states=(B, C), encoder_last_hidden_state=B, cross_attentions=(C,)), [A]),
        (Out(last_hidden_state=A, hidden_states=(B, A)), [A]),
        (Out(hidden_states=(B, C)), [B, C]),
        (torch.ones(2, dtype=torch.long), []),
        (None, []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_lies_beside_the_output_proper_is_left_out(output: Any, wanted: list[torch.Tensor]) -> None:
    found = weighing(output)
    assert len(found) == len(wanted)
    assert all(one is other for one, other in zip(found, wanted, strict=True))
    assert len(floating(output)) >= len(found)
