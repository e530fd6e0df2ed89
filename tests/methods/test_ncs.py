"""Negatively correlated search, observed through the random numbers that it asks for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from opq.methods import ncs

POPULATION = 4
FALLING = tuple(range(1000, 0, -1))
WORSE = (1.0, 2.0, 3.0, 4.0, *[1e30] * 1000)


class Watched:
    """A source of normal numbers that notes every deviation it is asked for; single ones are their mean."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.vectors: list[np.ndarray] = []
        self.numbers: list[float] = []

    def normal(self, mean: Any, deviation: Any) -> Any:
        if np.ndim(deviation):
            self.vectors.append(np.array(deviation))
            return self.rng.normal(mean, deviation)
        self.numbers.append(float(deviation))
        return mean


def searched(values: Any, generations: int) -> Watched:
    """A search whose function gives these values one after the other."""
    watched, found = Watched(), iter(values)
    rng: Any = watched
    ncs.search(
        lambda c: next(found), np.zeros(3), sigma=0.7, bounds=(-1e9, 1e9), population=POPULATION,
        evaluations=POPULATION * (1 + generations), rng=rng,
    )  # fmt: skip
    return watched


def test_children_are_drawn_with_the_deviation_that_was_asked_for() -> None:
    watched = searched(itertools.repeat(1.0), 5)
    assert len(watched.vectors) == POPULATION - 1 + 5 * POPULATION
    assert all((s == 0.7).all() and s.shape == (3,) for s in watched.vectors)


@pytest.mark.parametrize(("values", "factor"), [(FALLING, 1 / 0.99), (WORSE, 0.99)])
def test_every_ten_generations_deviations_grow_where_children_win_and_shrink_where_they_lose(
    values: tuple[float, ...], factor: float
) -> None:
    watched = searched(values, 30)
    of_children = np.array([s[0] for s in watched.vectors[POPULATION - 1 :]]).reshape(30, POPULATION)
    for generation, found in enumerate(of_children):
        assert found == pytest.approx(0.7 * factor ** (generation // 10))


def test_the_weight_of_novelty_is_one_ever_more_surely() -> None:
    """`lambda_t ~ N(1, 0.1 - 0.1 t / T)`."""
    watched = searched(itertools.count(1.0), 20)
    assert watched.numbers == pytest.approx([0.1 * (1 - t / 20) for t in range(1, 21)])
