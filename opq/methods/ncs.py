"""Negatively correlated search (Tang, Yang and Yao, 2016), as OLMP uses it: a population that keeps its distance.

    min f(c)  over a box,  where f need be neither differentiable nor continuous

Each of N individuals is the centre c_i of a Gaussian with deviations sigma_i. A child c' ~ N(c_i, sigma_i) replaces its
parent where  f' / (f + f') < lambda_t Corr' / (Corr + Corr'),  f counted from the best value seen, Corr the smallest
Bhattacharyya distance to the other individuals, lambda_t ~ N(1, 0.1 - 0.1 t/T). Every `EPOCH` generations sigma_i grows
where more than a fifth of the children won and shrinks where fewer did (factor 0.99).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from opq.errors import OptionError

Vector = npt.NDArray[np.float64]
Fitness = Callable[[Vector], float]

EPOCH = 10
"""Generations between two adaptations of sigma: the setting of the paper (Tang, Yang and Yao 2016)."""
SHRINK = 0.99
"""The factor by which sigma changes, as in the paper."""


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The best vector seen, and its fitness."""

    c: Vector
    fitness: float
    evaluations: int


def search(
    f: Fitness,
    start: Vector,
    *,
    sigma: float,
    bounds: tuple[float, float],
    population: int = 10,
    evaluations: int = 1600,
    rng: np.random.Generator,
    progress: Callable[[int], Any] = lambda done: None,
) -> Found:
    """The best vector found with `evaluations` calls of `f`, `start` included.

    Args:
        f: the function to minimise; its values are positive.
        start: the first individual, (dims,); the others are drawn around it.
        sigma: standard deviation of the first children, in every coordinate.
        bounds: of every coordinate.
        population: N, at least 2.

    Raises:
        OptionError: fewer evaluations than individuals, or bounds that are not an interval.
    """
    _check(bounds, population, evaluations)
    dims = len(start)
    c = np.stack([start, *(_child(start, np.full(dims, sigma), bounds, rng) for _ in range(population - 1))])
    fitness = np.array([f(x) for x in c])
    deviations, wins = np.full((population, dims), float(sigma)), np.zeros(population)
    best, least, done = c[fitness.argmin()].copy(), float(fitness.min()), population
    generation, generations = 0, max(1, (evaluations - population) // population)
    while done + population <= evaluations:
        generation += 1
        weight = rng.normal(1.0, 0.1 * (1 - generation / generations))
        children = np.stack([_child(c[i], deviations[i], bounds, rng) for i in range(population)])
        values = np.array([f(x) for x in children])
        done += population
        if values.min() < least:
            best, least = children[values.argmin()].copy(), float(values.min())
        won = _replaces(c, deviations, fitness, children, values, least, weight)
        c[won], fitness[won] = children[won], values[won]
        wins += won
        if generation % EPOCH == 0:
            deviations *= np.where(wins / EPOCH > 0.2, 1 / SHRINK, SHRINK)[:, None]
            wins[:] = 0
        progress(done)
    return Found(best, least, done)


def _check(bounds: tuple[float, float], population: int, evaluations: int) -> None:
    if not bounds[0] < bounds[1]:
        raise OptionError("search: bounds are no interval", got=bounds, wanted="(low, high) with low < high")
    if not 2 <= population <= evaluations:
        raise OptionError(
            "search: too few evaluations", got=f"{evaluations} for a population of {population}", wanted="one each"
        )


def _child(c: Vector, sigma: Vector, bounds: tuple[float, float], rng: np.random.Generator) -> Vector:
    return np.clip(rng.normal(c, sigma), *bounds)


def bhattacharyya(c1: Vector, s1: Vector, c2: Vector, s2: Vector) -> Vector:
    """Distance of Gaussians with diagonal covariances: `dm' S^-1 dm / 8 + ln(det S / sqrt(det S1 det S2)) / 2`.

    Coordinates are the last axis; the others broadcast.
    """
    v1, v2 = s1**2, s2**2
    v = (v1 + v2) / 2
    apart: Vector = ((c1 - c2) ** 2 / v).sum(-1) / 8 + 0.5 * (np.log(v) - 0.5 * (np.log(v1) + np.log(v2))).sum(-1)
    return apart


def _replaces(c: Vector, s: Vector, f: Vector, children: Vector, values: Vector, least: float, weight: float) -> Any:
    """Which children replace their parents. Fitness is counted from the best value seen."""
    return _share(values - least, f - least) < weight * _share(_nearest(children, c, s), _nearest(c, c, s))


def _nearest(x: Vector, c: Vector, s: Vector) -> Vector:
    """For each x, with its individual's deviations, the distance to the nearest other individual."""
    distances = bhattacharyya(x[:, None], s[:, None], c, s)
    np.fill_diagonal(distances, np.inf)
    nearest: Vector = distances.min(1)
    return nearest


def _share(a: Vector, b: Vector) -> Vector:
    """`a / (a + b)`; a half where both are 0."""
    share = np.full(len(a), 0.5)
    np.divide(a, a + b, out=share, where=a + b > 0)
    return share
