"""The allocation of bits to tensors: bounds hold in the file, on a trellis too."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from opq.allocation.stats import TensorStats
from opq.compression.least_rates import LeastRates
from opq.compression.options import Options
from opq.compression.problem import Problem, gather
from opq.compression.roles import assign
from opq.quantizing.trellis import LEAST
from opq.sources import open_source

SIZE = 64 * 64


def problem(low: float, high: float) -> Problem[TensorStats]:
    """Two tensors that may be on a trellis, one with bounds."""
    made = torch.Generator().manual_seed(0)
    source = open_source({name: torch.randn(64, 64, generator=made) for name in ("bound", "free")})
    bounds = {"min_bits": low, "max_bits": high} if low else {"max_bits": high}
    roles = assign(source.specs, {"bound": bounds})
    stats = gather(source, roles)
    weights = dict.fromkeys(stats, 1.0)
    problem = Problem.of(Options(bits=3), roles, stats=stats, sensitivities=weights)
    return dataclasses.replace(problem, trellised=LeastRates.of(dict.fromkeys(stats, LEAST)))


BOUNDS = [
    (0, 1.2),
    (0, 1.3),
    (0, 1.4),
    (0, 1.5),
    (1, 6),
    (1.1, 1.1),
    (0, 4),
    (1.2, 6),
    (1.3, 6),
    (1.4, 1.4),
    (1.4, 6),
    (1.5, 1.5),
    (3, 3),
    (5, 9),
    (8, 8),
]


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_bounds_hold_for_the_codes_in_the_file_whatever_a_trellis_saves(low: float, high: float) -> None:
    given = problem(low, high)
    for bits in (given.least_bits, 3 * SIZE, 6 * SIZE, 18 * SIZE, 60 * SIZE):
        if bits >= given.least_bits:
            rate = given.plan(bits)["bound"].rate
            assert low - 1e-9 <= rate <= high + 1e-9, (bits, rate)


@pytest.mark.parametrize("bits", [1.2, 3, 8])
def test_the_fewest_bits_are_those_of_the_plan_that_has_them(bits: float) -> None:
    given = problem(bits, bits)
    plan = given.plan(given.least_bits)
    assert sum(t.rate * t.size for t in plan.compressed) == pytest.approx(given.least_bits, rel=1e-9)
    assert plan["bound"].rate == pytest.approx(bits)
    assert (plan["bound"].codebook == "trellis") == (bits > 1.2)
