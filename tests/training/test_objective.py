"""What fine-tuning minimises, over every form in which models take batches and give scores."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from opq.errors import OptionError
from opq.models.outputs import counted, floating
from opq.training.objective import Objective, inputs_and_targets, run, scores, to_device

SCORES = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "outputs",
    [SCORES, {"logits": SCORES, "other": SCORES + 1}, (SCORES, None), types.SimpleNamespace(logits=SCORES)],
    ids=["tensor", "dict", "tuple", "attribute"],
)
def test_scores_are_found_in_what_a_model_returns(outputs: Any) -> None:
    assert scores(outputs) is SCORES


@pytest.mark.parametrize("outputs", [{"loss": SCORES}, ("scores",), types.SimpleNamespace(), None])
def test_outputs_without_scores_are_refused(outputs: Any) -> None:
    with pytest.raises(OptionError, match=r"holds no scores: got \w+.*Pass loss="):
        scores(outputs)


def test_a_batch_is_a_pair_or_a_dict_with_labels() -> None:
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    assert inputs_and_targets((x, y)) == (x, y)
    assert inputs_and_targets([x, y]) == (x, y)
    inputs, labels = inputs_and_targets({"ids": x, "labels": y})
    assert list(inputs) == ["ids"]
    assert inputs["ids"] is x
    assert labels is y
    assert inputs_and_targets({"ids": x}) == ({"ids": x}, None)


@pytest.mark.parametrize(("batch", "got"), [(7, "got int"), ([1, 2, 3], "got list of 3")])
def test_another_batch_is_refused(batch: Any, got: str) -> None:
    with pytest.raises(OptionError, match=f"a batch is not understood: {got}"):
        inputs_and_targets(batch)


class Sum(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> Any:
        return a if b is None else a + b if labels is None else a + b + labels


def test_a_model_runs_on_a_tensor_a_tuple_or_keywords() -> None:
    one, two, four = (torch.tensor(float(k)) for k in (1, 2, 4))
    assert run(Sum(), one) == 1
    assert run(Sum(), (one, two)) == 3
    assert run(Sum(), {"a": one, "b": two}) == 3
    assert run(Sum(), {"a": one, "b": two}, four) == 7


def test_every_tensor_of_a_batch_is_moved() -> None:
    there = torch.device("meta")
    moved = to_device({"a": SCORES, "b": [SCORES, (SCORES, "text")], "c": 3}, there)
    assert moved["a"].device == moved["b"][0].device == moved["b"][1][0].device == there
    assert moved["b"][1][1] == "text"
    assert moved["c"] == 3
    assert to_device(SCORES, CPU) is SCORES


def test_distillation_by_squares_is_the_distance_of_the_outputs() -> None:
    torch.manual_seed(0)
    student, teacher, x, y = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 2)
    got = Objective("mse", teacher, 0.25, 4.0)(student, x, y)
    wanted = 0.75 * functional.mse_loss(student(x), y) + 0.25 * functional.mse_loss(student(x), teacher(x))
    assert torch.allclose(got, wanted)
    alone = Objective("mse", teacher, 1.0, 4.0)(student, x, None)
    assert torch.allclose(alone, functional.mse_loss(student(x), teacher(x)))


def test_floating_tensors_are_found_in_any_nest() -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    found = floating({"a": a, "ids": torch.tensor([1]), "more": [b, (c, None)], "text": "no"})
    assert [t.numel() for t in found] == [1, 2, 3]
    assert floating(3) == []


def test_tokens_outside_the_mask_do_not_count() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    output = torch.ones(2, 3, 4)
    assert counted(output, mask).sum(-1).tolist() == [[4, 4, 0], [4, 0, 0]]
    assert counted(output, None) is output
    pooled = torch.ones(2, 4)
    assert counted(pooled, mask) is pooled
