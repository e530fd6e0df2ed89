"""Tensors that hold the same values are stored once, in one file as in a folder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import opq
from opq.compression.copies import without_copies
from opq.sources import open_source

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int32]


def weights(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state() -> dict[str, torch.Tensor]:
    """An embedding and its copies under two names, another tensor of the same shape, and two that are all zero."""
    embedding = weights(0, 100, 64)
    return {
        "embed": embedding,
        "other": weights(1, 100, 64),
        "head": embedding.clone(),
        "ema.head": embedding.clone(),
        "zeros": torch.zeros(100, 64),
        "more.zeros": torch.zeros(100, 64),
    }


def likes(source: opq.sources.Source) -> dict[str, str]:
    return {spec.name: spec.like for spec in source.specs if spec.like is not None}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_tensors_are_tied_to_the_first_of_them(dtype: torch.dtype) -> None:
    held = {name: (20 * t).to(dtype) for name, t in state().items()}
    assert likes(without_copies(open_source({**held, "f": weights(3, 80, 80)}))) == {
        "head": "embed",
        "ema.head": "embed",
    }


def test_a_tie_to_a_copy_leads_to_the_first_holder() -> None:
    held = state()
    tied = {"embed": held["embed"], "head": held["head"], "again": held["head"]}
    assert likes(without_copies(open_source(tied))) == {"head": "embed", "again": "embed"}


def test_negative_zero_is_no_copy_of_zero() -> None:
    one = weights(0, 100, 64)
    one[0, 0] = 0.0
    other = one.clone()
    other[0, 0] = -0.0
    assert not likes(without_copies(open_source({"one": one, "other": other})))


def test_a_file_holds_equal_tensors_once_and_gives_all_back(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "m.safetensors")
    result = opq.compress(tmp_path / "m.safetensors", bits=4)
    assert result.elements == 4 * 100 * 64
    opened = result.state_dict()
    assert torch.equal(opened["embed"], opened["head"])
    assert torch.equal(opened["embed"], opened["ema.head"])
    assert sum(result.plan[name].action == "share" for name in ("embed", "head", "ema.head")) == 2
    assert sum(t.action == "share" for t in opq.solve(tmp_path / "m.safetensors", bits=4)) == 2


def test_equal_layers_of_a_live_model_stay_two_so_that_each_can_be_trained() -> None:
    layer = nn.Linear(80, 80)
    result = opq.compress(nn.Sequential(layer, copy.deepcopy(layer)), bits=4, probe=False)
    assert [t.action for t in result.plan] == ["compress", "keep", "compress", "keep"]
