"""A run is taken up only by the same run: every option that changes bytes is part of what it is known by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opq import constraints
from opq.compression.options import Options
from opq.methods.calling import options_of
from opq.sources import open_source
from opq.streaming.resume import Identities

OTHER: dict[str, dict[str, Any]] = {
    "bits": {"bits": 4},
    "ratio": {"bits": None, "ratio": 10},
    "size": {"bits": None, "size": 100_000},
    "method": {"method": "opq"},
    "overrides": {"overrides": {"embed*": "keep"}},
    "constraints": {"constraints": (constraints.bits("layers*", min=2),)},
    "sensitivities": {"sensitivities": {"embed.weight": 2.0}},
    "alpha": {"alpha": 1.0},
    "seed": {"seed": 1},
    "probe": {"probe": False},
    "trellis": {"trellis": False},
}


@pytest.mark.parametrize("option", OTHER)
def test_another_value_of_an_option_is_another_run(option: str, source: Path) -> None:
    known = Identities.of(open_source(source))
    given = {"bits": 3} | OTHER[option]
    first = known.run(Options(bits=3), 26_000, probed=False)
    assert first == Identities.of(open_source(source)).run(Options(bits=3), 26_000, probed=False)
    assert first != known.run(options_of(given), 26_000, probed=False)


def test_other_numbers_within_an_option_are_another_run(source: Path) -> None:
    known = Identities.of(open_source(source))
    runs = [options_of({"bits": 3, "sensitivities": {"embed.weight": a}}) for a in (1.0, 2.0)]
    assert len({known.run(run, 26_000, probed=False) for run in runs}) == 2


def test_another_size_of_the_shards_or_another_way_to_probe_is_another_run(source: Path) -> None:
    known, options = Identities.of(open_source(source)), Options(bits=3)
    ways = [(26_000, False), (26_001, False), (26_000, True)]
    assert len({known.run(options, size, probed=probed) for size, probed in ways}) == len(ways)
