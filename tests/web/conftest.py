"""What the tests of the JavaScript reader share."""

from __future__ import annotations

from collections.abc import Iterator

import node
import pytest


@pytest.fixture(scope="module")
def js() -> Iterator[node.Node]:
    """A process of Node that tests ask."""
    with node.Node() as started:
        yield started
