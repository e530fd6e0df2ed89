"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opq.base.sizes import UNITS, in_bytes
from opq.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2MB", 2_000_000),
        ("500kB", 500_000),
        ("1.5MiB", 1_572_864),
        ("3 GiB", 3 * 2**30),
        ("12", 12),
        ("12B", 12),
        (" 1KB ", 1000),
        ("0.5B", 0.5),
    ],
)
def test_sizes_with_and_without_a_unit(text: str, size: float) -> None:
    assert in_bytes(text) == size
    assert isinstance(in_bytes(text), type(size))


@given(st.integers(1, 10**9), st.sampled_from(sorted(UNITS)))
def test_a_whole_number_of_units_is_a_whole_number_of_bytes(count: int, prefix: str) -> None:
    assert in_bytes(f"{count}{prefix.replace('m', 'M').replace('g', 'G')}B") == count * UNITS[prefix]


@pytest.mark.parametrize("text", ["", "MB", "2XB", "2 M", "-3kB", "1e6", "2Mb", "1,5MB", "2MBB", "nan"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(BudgetError, match=r"size= is not a size: got .*, wanted such as 2000000, 2MB or 1.5MiB"):
        in_bytes(text)
