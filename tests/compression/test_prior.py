"""Sensitivities from the weights alone: relative errors, BatchNorm's variances, tables that are output layers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from paths import SHARED
from torch import nn

import opq
from opq.allocation.stats import TensorStats
from opq.compression.prior import is_table, paired, prior
from opq.sources import open_source
from opq.sources.base import Source

State = dict[str, torch.Tensor]


def a_of(state: State) -> dict[str, float]:
    source = open_source(state)
    return prior(source, stats_of(source))


def stats_of(source: Source) -> dict[str, TensorStats]:
    return {s.name: TensorStats.of(source.tensor(s.name)) for s in source if len(s.shape) > 1 and s.like is None}


def pairs(state: State) -> dict[str, str]:
    source = open_source(state)
    return {name: norm.prefix for name, norm in paired(source, stats_of(source)).items()}


def test_errors_count_relative_to_the_weights() -> None:
    g = torch.Generator().manual_seed(0)
    state = {
        n: s * torch.randn(shape, generator=g) for n, s, shape in (("a", 1, (9, 8)), ("b", 5, (9, 8)), ("c", 2, (4, 4)))
    }
    a = a_of(state)
    for name in "ab":
        powers = float(state["c"].square().sum() / state[name].square().sum())
        assert a[name] / a["c"] == pytest.approx(powers, rel=1e-3)
    assert sorted(a.values())[1] == 1.0
    assert a_of({"w": torch.zeros(3, 3), "v": torch.ones(3, 3)}) == {"w": 1.0, "v": 1.0}


def test_a_matrix_of_16_times_as_many_rows_as_columns_is_taken_for_a_table() -> None:
    assert is_table("w", (64, 4))
    assert not is_table("w", (63, 4))
    assert not is_table("w", (64, 2, 2))
    assert not is_table("weight_hh_l0", (64, 4))


def test_an_outlier_does_not_make_the_others_worthless() -> None:
    g = torch.Generator().manual_seed(0)
    state = {name: torch.randn(32, 64, generator=g) for name in ("a", "b", "c")}
    before = a_of(state)["a"]
    state["a"][3, 5] = 1000
    assert before / 20 < a_of(state)["a"] < before


def with_norm(spread: float) -> State:
    """A convolution whose channels all have power 2, variances as far apart as `spread`, and a matrix of power 1."""
    conv = torch.ones(4, 2, 1, 1)
    var = torch.tensor([1.0, 1.0, 1.0, 1.0 / spread])
    norm = {f"bn.{k}": torch.ones(4) for k in ("weight", "bias", "running_mean")} | {"bn.running_var": var}
    return {"conv.weight": conv, **norm, "fc.weight": torch.full((5, 5), 0.2)}


def test_in_front_of_a_batchnorm_the_variances_tell() -> None:
    alike, apart, further = (a_of(with_norm(spread)) for spread in (1.0, 10.0, 1e9))
    relative = {name: a / alike["fc.weight"] for name, a in alike.items()}
    assert relative["conv.weight"] == pytest.approx(1 / 8, rel=1e-3)  # as 1 / sum w^2: of the matrix it is 1
    assert apart["conv.weight"] / apart["fc.weight"] == pytest.approx((3 + 10) / 4 / 8, rel=1e-3)
    assert further["conv.weight"] / further["fc.weight"] == pytest.approx((3 + 100) / 4 / 8, rel=1e-3)


def test_variances_that_tell_nothing_leave_the_relative_law() -> None:
    for value in (0.0, math.nan, math.inf):
        state = with_norm(1.0)
        state["bn.running_var"][:] = value
        a = a_of(state)
        assert a["conv.weight"] / a["fc.weight"] == pytest.approx(1 / 8, rel=1e-3)


class Blocks(nn.Module):
    """Two ways of naming: numbers in a sequence, and pairs of names; the head has no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.down = nn.Sequential(
            nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5)
        )
        self.fc = nn.Linear(5, 8)


def test_pairs_are_found_in_any_order() -> None:
    state = Blocks().state_dict()
    expected = {
        "conv1.weight": "bn1",
        "conv2.weight": "bn2",
        "down.0.weight": "down.1",
        "down.3.weight": "down.4",
    }
    assert pairs(dict(state)) == expected
    assert pairs(dict(sorted(state.items()))) == expected


def test_channels_must_agree() -> None:
    state = dict(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict())
    state["0.weight"] = torch.randn(7, 3, 3, 3)
    assert pairs(state) == {}


@pytest.mark.parametrize(("name", "count"), [("resnet20_cifar10", 19), ("mobilenet_v1_075_imagenet", 27)])
def test_every_convolution_of_a_real_network_has_its_batchnorm(name: str, count: int) -> None:
    path = SHARED / "weights" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    source = open_source(path)
    assert len(paired(source, stats_of(source))) == count


def language_model(**names: tuple[int, int]) -> State:
    g = torch.Generator().manual_seed(0)
    return {name.replace("__", "."): torch.randn(shape, generator=g) for name, shape in names.items()}


def test_a_table_that_is_the_output_layer_counts_as_an_ordinary_layer() -> None:
    layers = {f"layers__{k}__weight": (16, 16) for k in range(3)}
    table = {"model__embed_tokens__weight": (640, 16)}
    alone = a_of(language_model(**table, **layers))
    assert alone["model.embed_tokens.weight"] == pytest.approx(1, rel=0.3)
    headed = a_of(language_model(**table, **layers, lm_head__weight=(640, 16)))
    assert headed["model.embed_tokens.weight"] == pytest.approx(1 / 40, rel=0.3)
    assert headed["lm_head.weight"] == pytest.approx(1, rel=0.3)
    encoder = a_of(language_model(bert__embeddings__word_embeddings__weight=(640, 16), **layers))
    assert encoder["bert.embeddings.word_embeddings.weight"] == pytest.approx(1 / 40, rel=0.3)


def test_a_tied_head_is_known_by_its_name() -> None:
    state = language_model(embeddings__word__weight=(640, 16), layer__weight=(16, 16), layer2__weight=(16, 16))
    state["lm_head.weight"] = state["embeddings.word.weight"]
    assert a_of(state)["embeddings.word.weight"] == pytest.approx(1, rel=0.3)


def test_it_is_what_a_compression_without_a_probe_uses(tmp_path: Path) -> None:
    state = dict(Blocks().state_dict())
    plan = opq.solve(state, bits=12)
    source = open_source(state)
    found = {name: stats for name, stats in stats_of(source).items() if plan[name].action == "compress"}
    assert len(found) > 1
    assert {t.name: t.sensitivity for t in plan.compressed} == prior(source, found)
    assert opq.solve(state, bits=12, sensitivities={"conv2.weight": 2.0})["conv1.weight"].sensitivity == 1.0
    assert {t.sensitivity for t in opq.solve(state, bits=12, method="opq").compressed} == {1.0}


def test_at_few_bits_every_squared_error_counts_alike() -> None:
    g = torch.Generator().manual_seed(0)
    state = {"a": torch.randn(200, 100, generator=g), "b": 3 * torch.randn(100, 100, generator=g)}
    assert {t.sensitivity for t in opq.solve(state, bits=1.5).compressed} == {1.0}
    assert len({t.sensitivity for t in opq.solve(state, bits=2.5).compressed}) == 2
