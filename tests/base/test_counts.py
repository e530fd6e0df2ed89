"""The entropy of counts."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from opq.base.counts import entropy


@given(st.lists(st.integers(1, 10**9), max_size=20))
def test_it_is_the_sum_of_what_each_symbol_tells(counts: list[int]) -> None:
    total = sum(counts)
    wanted = math.fsum(n * (math.log2(total) - math.log2(n)) for n in counts)
    assert entropy(np.array(counts, np.int64)) == pytest.approx(wanted, rel=1e-9, abs=1e-6 * total)


def test_one_value_tells_nothing_and_two_equally_frequent_ones_a_bit_each() -> None:
    assert entropy(np.array([7])) == 0.0
    assert entropy(np.array([4, 4])) == 8.0
    assert entropy(np.zeros(0, np.int64)) == 0.0
