"""Images as models take them."""

from __future__ import annotations

import pytest

from opq.sources import images

pil = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize(
    ("size", "scaled"), [((40, 20), (20, 10)), ((20, 40), (10, 20)), ((4, 8), (10, 20)), ((10, 10), (10, 10))]
)
def test_an_image_is_scaled_until_its_short_side_fits(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert images.scaled(pil.new("RGB", size), (3, 10, 10)).size == scaled


def test_of_photographs_a_margin_is_cropped() -> None:
    height = images._PHOTOGRAPH
    found = images.scaled(pil.new("RGB", (3 * height, 2 * height)), (3, height, height))
    assert found.size == (round(1.5 * height * images._MARGIN), round(height * images._MARGIN))
