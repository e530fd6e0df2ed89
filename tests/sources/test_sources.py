"""Every kind of source gives the same tensors, and every bad one an error that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from source_helpers import assert_holds, small
from torch import nn

import opq
from opq.errors import CorruptSourceError, EmptyModelError, MismatchError, SourceError
from opq.sources import open_source
from opq.sources.base import TensorSpec


def test_module_gives_its_tensors_in_state_dict_order_and_itself() -> None:
    model = small()
    source = open_source(model)
    assert source.names == tuple(model.state_dict())
    assert_holds(source, model.state_dict())
    assert source.model is model
    assert source.label == "Sequential"
    kinds = {spec.name: spec.kind for spec in source}
    assert kinds["0.weight"] == kinds["1.bias"] == "parameter"
    assert kinds["1.running_var"] == kinds["1.num_batches_tracked"] == "buffer"
    assert source.elements == sum(t.numel() for t in model.state_dict().values() if t.is_floating_point())
    assert source.bytes == 4 * source.elements + 8


def test_state_dict_and_file_agree_with_the_module(tmp_path: Path) -> None:
    model = small()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    for weights in (model.state_dict(), tmp_path / "m.safetensors", str(tmp_path / "m.safetensors")):
        source = open_source(weights)
        assert_holds(source, model.state_dict())
        assert source.model is None
        assert source.by_name["1.running_mean"].kind == "buffer"
        assert (source.elements, source.bytes) == (open_source(model).elements, open_source(model).bytes)


def test_an_open_source_is_taken_as_it_is() -> None:
    source = open_source(small())
    assert open_source(source) is source


def test_a_nested_checkpoint_is_unwrapped_and_what_is_no_tensor_is_listed() -> None:
    state = small().state_dict()
    assert_holds(open_source({"epoch": 3, "state_dict": state}), state)
    assert_holds(open_source({"model": {"state_dict": state}}), state)
    assert open_source({**state, "step": 3}).ignored == ("step",)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_floating_type_comes_through_a_file(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"w": torch.randn(5, 7).to(dtype), "n": torch.arange(3)}
    save_file(state, tmp_path / "m.safetensors")
    source = open_source(tmp_path / "m.safetensors")
    assert_holds(source, state)
    assert source.elements == 35
    assert source.bytes == 35 * dtype.itemsize + 24


def test_tied_modules_are_one_tensor() -> None:
    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6, bias=False))
    model[1].weight = model[0].weight
    source = open_source(model)
    assert [spec.like for spec in source] == [None, "0.weight"]
    assert source.elements == 18
    held = source.state_dict()
    assert held["0.weight"] is held["1.weight"]
    assert [spec.like for spec in open_source(model.state_dict())] == [None, "0.weight"]


def test_views_of_one_storage_are_not_ties() -> None:
    base = torch.arange(24.0)
    state = {
        "whole": base.view(4, 6),
        "same": base.view(4, 6),
        "turned": base.view(4, 6).t(),
        "flat": base,
        "front": base[:6],
        "back": base[6:12],
        "bits": base.view(torch.int32).view(4, 6),
    }
    source = open_source(state)
    assert {s.name: s.like for s in source if s.like} == {"same": "whole"}
    assert_holds(source, state)


def test_empty_tensors_are_never_tied() -> None:
    state = {"a": torch.zeros(0, 3), "b": torch.zeros(0, 3), "w": torch.ones(2)}
    assert all(spec.like is None for spec in open_source(state))


def test_aliases_noted_by_save_model_are_ties(tmp_path: Path) -> None:
    from safetensors.torch import save_model

    model = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6, bias=False))
    model[1].weight = model[0].weight
    save_model(model, str(tmp_path / "m.safetensors"))
    source = open_source(tmp_path / "m.safetensors")
    assert sorted((s.name, s.like) for s in source) == [("0.weight", None), ("1.weight", "0.weight")]
    assert torch.equal(source.tensor("1.weight"), model[0].weight)


def test_the_format_note_of_a_file_is_no_alias(tmp_path: Path) -> None:
    save_file({"pt": torch.ones(3)}, tmp_path / "m.safetensors", metadata={"format": "pt", "author": "me"})
    assert open_source(tmp_path / "m.safetensors").names == ("pt",)


def test_values_come_contiguous_and_detached_whatever_the_layout() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
    value = open_source({"w": weight, "t": torch.randn(3, 4).t()}).tensor("w")
    assert value.is_contiguous()
    assert not value.requires_grad
    assert torch.equal(value, weight)


def test_batchnorms_are_found_by_name_and_know_their_eps_from_the_module() -> None:
    (found,) = open_source(small()).batchnorms.values()
    assert (found.prefix, found.weight, found.running_var, found.eps) == ("1", "1.weight", "1.running_var", 1e-3)
    (bare,) = open_source(small().state_dict()).batchnorms.values()
    assert (bare.num_batches_tracked, bare.eps) == ("1.num_batches_tracked", None)
    plain = open_source(nn.BatchNorm1d(5, affine=False)).batchnorms[""]
    assert (plain.weight, plain.running_mean) == (None, "running_mean")
    assert not open_source(nn.BatchNorm1d(5, track_running_stats=False)).batchnorms


def test_shared_batchnorm_is_listed_once() -> None:
    model = small()
    model.append(model[1])
    assert set(open_source(model).batchnorms) == {"1"}


@pytest.mark.parametrize("nothing", [nn.ReLU(), {}, {"n": torch.arange(3)}, {"epoch": 3}, {"w": torch.zeros(0, 3)}])
def test_an_empty_model_is_refused(nothing: Any) -> None:
    with pytest.raises(EmptyModelError, match="holds no weights"):
        open_source(nothing)


@pytest.mark.parametrize(
    ("bad", "fact"),
    [
        (nn.LazyLinear(3), "'weight' is not initialised"),
        (nn.Linear(2, 2, device="meta"), "'weight' has no values"),
        ({"w": torch.eye(3).to_sparse()}, "'w' is not a dense tensor"),
        (
            {"w": torch.empty(3, dtype=torch.bits16)},
            "'w' has a type that no file can hold: got torch.bits16",
        ),
        ({3: torch.ones(3)}, "not a string"),
        (3.0, "not understood"),
    ],
)
def test_what_holds_no_plain_values_is_refused_by_name(bad: Any, fact: str) -> None:
    with pytest.raises(SourceError, match=fact):
        open_source(bad)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(MismatchError, match="no tensor 'x' in Sequential"):
        open_source(small()).tensor("x")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(small().state_dict(), path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptSourceError, match=r"m\.safetensors cannot be read"):
            open_source(path)


def test_a_file_that_goes_away_is_an_error_by_then(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "m.safetensors")
    source = open_source(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").unlink()
    with pytest.raises(CorruptSourceError):
        source.tensor("0.weight")


def test_a_compressed_file_is_no_source(tmp_path: Path) -> None:
    opq.compress(small(), bits=20, probe=False).save(tmp_path / "m.opq.safetensors")
    with pytest.raises(SourceError, match="already compressed"):
        open_source(tmp_path / "m.opq.safetensors")


def test_spec_sizes() -> None:
    spec = TensorSpec("w", (2, 3), torch.bfloat16)
    assert (spec.size, spec.nbytes, TensorSpec("s", (), torch.float32).size) == (6, 12, 1)
