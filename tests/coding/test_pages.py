"""Pages of codes are what docs/format.md says they are: decoded by a program that was written from it alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import plain_pages
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opq.coding import pages


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 2, 3, 4, 5, 255, 256, 257, 700, 3000]),
    wide=st.booleans(),
    scale=st.floats(-3, 13).map(lambda x: 2.0**x),
    kind=st.sampled_from(["laplace", "uniform", "few", "one"]),
)
def test_the_page_says_how_codes_lie_in_pages(seed: int, size: int, wide: bool, scale: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    most = 32767 if wide else 127
    drawn: dict[str, Any] = {
        "laplace": rng.laplace(size=size) * scale,
        "uniform": rng.uniform(-most, most, size),
        "few": rng.choice([-most - 1, 0, 1, most], size),
        "one": np.full(size, rng.integers(-most, most)),
    }
    codes = np.clip(np.rint(drawn[kind]), -most - 1, most).astype(np.int16 if wide else np.int8)
    assert plain_pages.page(pages.encode(codes), 16 if wide else 8) == codes.tolist()


@pytest.mark.parametrize("cut", [1, 3, 40])
def test_a_page_that_ends_early_is_none(cut: int) -> None:
    data = pages.encode(np.arange(-100, 100, dtype=np.int8))
    with pytest.raises(ValueError, match="ends early"):
        plain_pages.page(data[:-cut], 8)
