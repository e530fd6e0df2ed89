"""Steps by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opq.base.format_v1 import FARTHEST_ROW
from opq.quantizing import rows

EXPONENTS = st.integers(-FARTHEST_ROW, FARTHEST_ROW)


@given(st.lists(EXPONENTS, min_size=1, max_size=20))
def test_factors_are_quarter_octaves(found: list[int]) -> None:
    factors = rows.factors(np.array(found, np.int16))
    assert factors == pytest.approx([2.0 ** (e / 4) for e in found], rel=1e-15)
    whole = [(f, e) for f, e in zip(factors, found, strict=True) if e % 4 == 0]
    assert [f for f, _ in whole] == [2.0 ** (e // 4) for _, e in whole]


@given(st.floats(1e-6, 1e3), EXPONENTS, st.lists(st.integers(-32767, 32767), min_size=1, max_size=9))
def test_a_weight_is_its_code_times_its_row_s_step_rounded_once(step: float, e: int, codes: list[int]) -> None:
    steps = rows.steps(step, np.array([e], np.int16))
    found = rows.scaled(torch.tensor([codes], dtype=torch.int16), steps, torch.float32)
    exact = [math.copysign(abs(q) * float(np.float32(step * rows.factors(np.array([e]))[0])), q) for q in codes]
    assert found.tolist()[0] == torch.tensor(exact, dtype=torch.float64).float().tolist()


def test_rows_are_scaled_to_about_the_same_power() -> None:
    w = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 40)[:, None]
    e = rows.exponents(w)
    power = rows.divided(w, e).square().mean(1)
    assert float(power.max() / power.min()) < 2 ** (1 / 2) * 1.001  # each is a quarter of an octave off at most
    assert int(np.median(e)) == 0


def test_rows_of_zeros_and_hardly_more_stay_within_bounds() -> None:
    w = torch.ones(9, 20)
    w[0], w[1] = 0.0, 1e-30
    assert rows.exponents(w).tolist() == [-80, -80, 0, 0, 0, 0, 0, 0, 0]
    assert rows.exponents(torch.zeros(3, 4)).tolist() == [-80] * 3
    assert rows.spread(torch.zeros(3, 4)) == 0.0


def test_the_spread_is_what_one_step_for_all_rows_costs() -> None:
    w = torch.ones(8, 16)
    assert rows.spread(w) == pytest.approx(0.0, abs=1e-12)
    w[:4] = 4.0  # mean squares 16 and 1: arithmetic mean 8.5, geometric 4
    assert rows.spread(w) == pytest.approx(math.log2(8.5 / 4) / 2)


def test_codes_beyond_the_range_of_a_type_saturate() -> None:
    steps = rows.steps(1.0, np.array([80, 0], np.int16))
    found = rows.scaled(torch.tensor([[3], [3]], dtype=torch.int16), steps, torch.float16)
    assert found.tolist() == [[65504.0], [3.0]]


def test_no_rows_are_no_weights() -> None:
    assert rows.scaled(torch.zeros(0, 4, dtype=torch.int16), np.zeros(0, np.float32), torch.float32).shape == (0, 4)
    assert rows.scaled(torch.zeros(2, 0, dtype=torch.int16), np.ones(2, np.float32), torch.float16).shape == (2, 0)


def test_float64_stays_float64() -> None:
    w = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    assert rows.divided(w, np.array([4, -4], np.int16)).tolist() == [[0.5, 1.0], [6.0, 8.0]]
    assert rows.divided(w, np.array([0, 0], np.int16)).dtype == torch.float64
    assert rows.divided(w.bfloat16(), np.array([0, 0], np.int16)).dtype == torch.float32
