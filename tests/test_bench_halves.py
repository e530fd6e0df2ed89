"""Choices are made on one half of every test set, figures reported on the other."""

from __future__ import annotations

import halves
import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(2, 60), st.integers(0, 40))
def test_the_halves_share_nothing_and_stay_what_they_are_when_a_set_grows(size: int, more: int) -> None:
    small, large = list(range(size)), list(range(size + more))
    for which, other in ((halves.CHOICES, halves.FIGURES), (halves.FIGURES, halves.CHOICES)):
        assert not set(small[which]) & set(large[other])
        assert set(small[which]) | set(small[other]) == set(small)
        assert set(small[which]) <= set(large[which])


class Constant(torch.nn.Module):
    """Takes every image for one of class 0."""

    input_hint = zoo.LeNet300.input_hint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(x), 2)


def test_top_1_of_a_half_is_of_its_images_alone() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 0, 0, 0])  # all of one half right, two of five of the other
    images = zoo.Images(torch.zeros(10, 1, 28, 28, dtype=torch.uint8), labels)
    found = halves.top1(Constant(), images, batch=3)
    assert (found.whole, found.choices, found.figures) == pytest.approx((70.0, 100.0, 40.0))
    assert zoo.top1(Constant(), images) == pytest.approx(70.0)
    assert found.fields("error") == pytest.approx({"error": 70.0, "error_choices": 100.0, "error_figures": 40.0})


def test_similarities_of_a_half_are_those_of_its_sentences_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    dense = torch.nn.functional.normalize(torch.randn(40, 8, generator=draw), dim=1)
    own = dense.clone()
    own[halves.FIGURES] = own[halves.FIGURES].flip(0)
    found = halves.similarity(dense, own)
    assert found.choices == pytest.approx(100.0)
    assert found.figures < 50
    assert found.figures < found.whole < found.choices
