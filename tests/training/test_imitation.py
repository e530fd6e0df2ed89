"""The distance from a teacher, against formulas written out, and the agreement with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opq.errors import MismatchError, OptionError
from opq.training.imitation import agreement, distance


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_of_scores_it_is_the_published_divergence() -> None:
    student, teacher = drawn(5, 7), drawn(5, 7, seed=1)
    p, q = torch.softmax(teacher / 3, 1), torch.softmax(student / 3, 1)
    wanted = 9 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(distance(student, teacher, None, 3.0), wanted)
    assert torch.allclose(distance({"logits": student}, {"logits": teacher}, None, 3.0), wanted)


def test_of_features_it_is_relative_to_the_teachers() -> None:
    student, teacher = drawn(5, 7), drawn(5, 7, seed=1)
    got = distance({"pooled": student}, {"pooled": teacher}, None, 2.0)
    assert torch.allclose(got, (student - teacher).square().sum() / teacher.square().sum())
    scaled = distance({"pooled": 10 * student}, {"pooled": 10 * teacher}, None, 2.0)
    assert torch.allclose(got, scaled)


def test_of_hidden_states_the_means_over_the_tokens_count_too() -> None:
    student, teacher, mask = drawn(2, 3, 4), drawn(2, 3, 4, seed=1), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    a, b = ([x[0, 0], x[0, 1], x[1, 0]] for x in (student, teacher))
    tokens = sum((u - v).square().sum() for u, v in zip(a, b, strict=True)) / sum(v.square().sum() for v in b)
    (a1, a2), (b1, b2) = (((x[0] + x[1]) / 2, x[2]) for x in (a, b))
    means = ((a1 - b1).square().sum() + (a2 - b2).square().sum()) / (b1.square().sum() + b2.square().sum())
    got = distance({"last_hidden_state": student}, {"last_hidden_state": teacher}, mask, 2.0)
    assert torch.allclose(got, tokens + means)


@given(st.integers(0, 99))
def test_what_stands_in_the_padding_does_not_count(seed: int) -> None:
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[:, 0] = True
    teacher, student = drawn(3, 5, 4, seed=seed), drawn(3, 5, 4, seed=seed + 100)
    other = torch.where(mask[..., None], student, drawn(3, 5, 4, seed=seed + 200))
    for name in ("logits", "last_hidden_state"):
        one, two = ({name: x} for x in (student, other))
        assert torch.equal(distance(one, {name: teacher}, mask, 2.0), distance(two, {name: teacher}, mask, 2.0))
        assert agreement(one, {name: teacher}, mask) == agreement(two, {name: teacher}, mask)
        assert agreement(one, {name: teacher}, mask)[1] == int(mask.sum())


@pytest.mark.parametrize("name", ["logits", "last_hidden_state", "pooled"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (4, 6, 2, 2)])
def test_a_network_is_at_no_distance_from_itself_and_agrees_everywhere(name: str, shape: tuple[int, ...]) -> None:
    output = {name: drawn(*shape)}
    assert float(distance(output, output, None, 2.0)) == pytest.approx(0, abs=1e-6)
    same, places = agreement(output, output, None)
    assert same == pytest.approx(places)


def test_maps_of_scores_are_compared_pixel_by_pixel() -> None:
    student, teacher = drawn(2, 5, 3, 3), drawn(2, 5, 3, 3, seed=1)
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher)]
    assert torch.allclose(distance(student, teacher, None, 2.0), distance(rows[0], rows[1], None, 2.0))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (drawn(4, 6), drawn(4, 7)),
        (drawn(4, 6), {"pooled": drawn(4, 6)}),
        ({"logits": drawn(4, 6)}, {"last_hidden_state": drawn(4, 6)}),
        ({"a": drawn(4, 6), "b": drawn(4)}, {"a": drawn(4, 6)}),
    ],
)
def test_outputs_of_other_kinds_or_shapes_are_refused(student: Any, teacher: Any) -> None:
    with pytest.raises(MismatchError, match="the teacher's outputs are not like the network's"):
        distance(student, teacher, None, 2.0)


def test_an_output_without_tensors_is_refused() -> None:
    with pytest.raises(OptionError, match="holds no tensor to learn from: got dict"):
        distance({}, {}, None, 2.0)
