"""The rate-distortion functions of the benchmark `limit`, against what is known of them, and its rows."""

from __future__ import annotations

import json
import math

import limit
import numpy as np
import pytest
import results

ROWS = json.loads((results.RESULTS / "limit.json").read_text())


@pytest.mark.parametrize("slope", [1.2, 0.5, 0.1])
def test_the_iteration_finds_the_function_of_gaussian_weights(slope: float) -> None:
    bits, distortion = limit.iterated("Gaussian", slope)
    assert distortion == pytest.approx(slope / (2 * math.log(2)), rel=0.01)
    assert bits == pytest.approx(-math.log2(distortion) / 2, abs=0.002)


def test_the_function_of_laplacian_weights_meets_shannon_s_lower_bound_at_high_rates() -> None:
    """`h(X) - log2(2 pi e D) / 2`, with `h = log2(e sqrt 2)` for variance one."""
    for slope, gap in [(0.001, 0.002), (0.01, 0.01), (0.1, 0.05)]:
        bits, distortion = limit.iterated("Laplacian", slope)
        bound = math.log2(math.e * math.sqrt(2)) - math.log2(2 * math.pi * math.e * distortion) / 2
        assert -0.001 < bits - bound < gap


def test_no_row_is_below_the_limit_and_the_trellis_is_the_nearer_one_at_high_rates() -> None:
    assert all(row["gap"] > 0 for row in ROWS)
    for name in ("Laplacian", "Gaussian"):
        gaps = {
            kind: np.mean([r["gap"] for r in ROWS if (r["model"], r["method"]) == (name, kind) and r["bits"] > 3])
            for kind in ("grid", "trellis")
        }
        assert gaps["trellis"] < 0.3 * gaps["grid"]
