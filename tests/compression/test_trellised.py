"""Which tensors go on a trellis: those that take fewer bits on it, by a sample that is the same for file and folder."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import opq
from opq.allocation.curve import Curve
from opq.allocation.stats import TensorStats
from opq.base.format_v1 import RUN
from opq.compression.least_rates import NEVER, LeastRates
from opq.compression.trellised import RUNS, SAMPLED, TRIED, pays, sample
from opq.quantizing.trellis import LEAST


def rate(w: torch.Tensor) -> float:
    stats = TensorStats.of(w)
    curve, rows = Curve.of(stats), w.reshape(w.shape[0], -1)
    return LeastRates(["w"], TRIED, lambda _, rate: pays(rows, curve, stats.max_abs, rate))["w"]


def half_dead(rows: int, columns: int) -> torch.Tensor:
    """Every other output is almost 0."""
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    w[::2] *= 1e-3
    return w


def test_gaussian_weights_go_on_a_trellis_from_the_least_rate_on() -> None:
    assert rate(torch.randn(128, 200, generator=torch.Generator().manual_seed(0))) == LEAST


def test_weights_with_far_outliers_go_on_a_trellis_later_if_at_all() -> None:
    w = torch.randn(128, 200, generator=torch.Generator().manual_seed(0))
    assert rate(w.sign() * w.abs() ** 2.5) > LEAST


def test_dead_outputs_keep_a_tensor_on_the_grid() -> None:
    assert rate(half_dead(64, 200)) == math.inf


@pytest.mark.parametrize("w", [torch.zeros(64, 64), torch.ones(64, 64), torch.full((32, 32), 0.5)], ids=str)
def test_tensors_without_variation_have_nothing_to_gain(w: torch.Tensor) -> None:
    assert rate(w) == math.inf


WINS = {"all": 0.0, "two": 1.5, "one": 2.0, "none": math.inf}
"""Tensors, and the least rate at which a trellis wins."""


def test_no_rate_is_tried_that_a_plan_does_not_ask_for() -> None:
    asked: list[tuple[str, float]] = []

    def wins(name: str, rate: float) -> bool:
        asked.append((name, rate))
        return rate >= WINS[name]

    least = LeastRates(WINS, (2.0, 1.5, 1.25), wins)
    assert not any(least.reached(name, 1.2) for name in WINS)
    assert not asked, "below the last rate no tensor is on a trellis"
    least.look(dict.fromkeys(["all", "none", "of another network"], 2.0))
    assert sorted(asked) == [("all", 2.0), ("none", 2.0)]
    assert [name for name in WINS if least.reached(name, math.inf)] == ["all", "two", "one"]
    assert len(asked) == 4
    assert [name for name in WINS if least.reached(name, 1.6)] == ["all", "two"]
    assert [name for name in WINS if least.reached(name, 1.25)] == ["all"]
    assert dict(least) == {"all": 1.25, "two": 1.5, "one": 2.0, "none": math.inf}
    assert len(asked) == len(set(asked)), "nothing is compared twice"
    rest = least.without(["all", "one"])
    assert dict(rest) == {"two": 1.5, "none": math.inf}
    assert (list(least), list(rest)) == (["all", "none", "one", "two"], ["none", "two"])
    assert "two" in rest
    assert "one" not in rest
    with pytest.raises(KeyError):
        rest.reached("one", 2.0)
    assert len(asked) == len(set(asked))


def test_rates_that_are_known_are_reached_from_each_on() -> None:
    least = LeastRates.of({"a": 1.25, "b": 2.0, "c": math.inf})
    assert dict(least) == {"a": 1.25, "b": 2.0, "c": math.inf}
    assert [name for name in least if least.reached(name, 1.9)] == ["a"]
    assert [name for name in least if least.reached(name, 50.0)] == ["a", "b"]
    assert not NEVER
    with pytest.raises(KeyError):
        least["d"]


@given(st.integers(1, 5000), st.integers(1, 100_000))
def test_a_sample_is_of_whole_runs_and_of_bounded_size(rows: int, width: int) -> None:
    pieces = sample((rows, width))
    tall = [down.stop - down.start for down, _ in pieces]
    (across,) = {(columns.start, columns.stop) for _, columns in pieces}
    assert 0 <= across[0] < across[1] <= width
    assert sum(tall) <= max((RUNS + 1) * RUN, 1)
    assert sum(tall) * (across[1] - across[0]) <= max(SAMPLED, sum(tall))
    assert all(down.start % RUN == 0 for down, _ in pieces)
    assert pieces[0][0].start == 0
    assert sum(tall) == rows or set(tall) == {RUN}
    assert all(one.stop <= other.start for (one, _), (other, _) in itertools.pairwise(pieces))


def test_file_and_folder_put_the_same_tensors_on_a_trellis(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(1)
    state = {"dead": half_dead(700, 96), "alive": torch.randn(700, 96, generator=g), "deep": torch.randn(64, 8, 3, 3)}
    save_file(state, tmp_path / "m.safetensors")
    whole = opq.compress(tmp_path / "m.safetensors", bits=3).plan
    folder = opq.compress_folder(tmp_path / "m.safetensors", tmp_path / "out", bits=3).plan
    expected = {"dead": "grid", "alive": "trellis", "deep": "trellis"}
    assert {t.name: t.codebook for t in whole} == {t.name: t.codebook for t in folder} == expected
