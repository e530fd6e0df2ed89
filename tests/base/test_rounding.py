"""Numbers as a file holds them: the nearest of so many bits, not the next one towards zero."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.base.rounding import fits, pattern_of, rounded, value_of

WIDTHS = (16, 24, 32)


@pytest.mark.parametrize("width", WIDTHS)
@given(value=st.floats(1e-30, 1e30), sign=st.sampled_from([1, -1]))
def test_no_number_of_so_many_bits_is_nearer(width: int, value: float, sign: int) -> None:
    value = sign * value_of(pattern_of(value, 32), 32)  # a float32, so that only one rounding is looked at
    found = rounded(value, width)
    assert fits(found, width)
    pattern = pattern_of(found, width)
    for other in (pattern - 1, pattern + 1):
        assert abs(found - value) <= abs(value_of(other, width) - value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_sixty_four_bits_hold_every_number_as_it_is(value: float) -> None:
    assert rounded(value, 64) == value
    assert fits(value, 64)
    assert value_of(pattern_of(value, 64), 64) == value


@pytest.mark.parametrize("value", [0.0, 1e-50, 1e50, -1e50, math.inf])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_number_beyond_float32_is_left_as_it_is(value: float, width: int) -> None:
    assert rounded(value, width) == value
