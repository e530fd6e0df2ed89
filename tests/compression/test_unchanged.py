"""What did not change since an older file keeps its plan and its bytes; the rest meets the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opq
from opq import demo
from opq.errors import OptionError


def payloads(path: Path) -> dict[str, bytes]:
    """What the file holds of each tensor, by name."""
    with opq.Reader(path) as reader:
        return {t.name: bytes(reader._payload(t.name)) for t in reader.plan.own if t.name in reader._spans}


def weights() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    state = {f"{k}.weight": torch.randn(96, 64, generator=g) * 0.1 * (k + 1) for k in range(4)}
    return {**state, **{f"{k}.bias": torch.randn(64, generator=g) for k in range(4)}}


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 3, "trellis": True}, {"ratio": 9, "method": "opq"}])
def test_what_is_as_it_was_has_the_same_bytes(options: dict[str, Any], tmp_path: Path) -> None:
    old, new = tmp_path / "old.opq.safetensors", tmp_path / "new.opq.safetensors"
    before = weights()
    opq.compress(before, **options).save(old)
    after = {**before, "2.weight": before["2.weight"] + 0.05 * torch.randn(96, 64), "1.bias": torch.randn(64)}
    result = opq.compress(after, **options, like=old)
    result.save(new)
    was, is_ = payloads(old), payloads(new)
    assert {name for name in was if was[name] != is_[name]} == {"2.weight", "1.bias"}
    with opq.Reader(old) as one, opq.Reader(new) as two:
        same = [n for n in one.plan.names if n.endswith("weight") and n != "2.weight"]
        assert all(one.plan[n] == two.plan[n] for n in same)
    budget = result.source_bytes / options["ratio"] if "ratio" in options else result.elements * options["bits"] / 8
    assert result.bytes <= budget
    dense = opq.load_state_dict(new)
    assert float((dense["2.weight"] - after["2.weight"]).square().mean()) < 0.1 * float(after["2.weight"].var())


def test_nothing_changed_is_the_old_file(tmp_path: Path) -> None:
    """By weights alone, and by a probe; the budget is the old file's own."""
    for source, options in ((weights(), {}), ("demo:digits", {"probe": False})):
        opq.compress(source, bits=4, **options).save(tmp_path / "old")
        opq.compress(source, like=tmp_path / "old", **options).save(tmp_path / "new")
        assert (tmp_path / "new").read_bytes() == (tmp_path / "old").read_bytes()


def test_layers_before_one_that_changed_stay_after_a_probe_too(tmp_path: Path) -> None:
    """Feedback makes the old codes again where the inputs of a layer are what they were."""
    model = demo.load()
    old, new = tmp_path / "old.opq.safetensors", tmp_path / "new.opq.safetensors"
    opq.compress(model, bits=4, alpha=1.0).save(old)
    last = [name for name, t in model.state_dict().items() if t.dim() > 1][-1]
    with torch.no_grad():
        model.get_submodule(last.removesuffix(".weight")).weight.add_(0.02)
    opq.compress(model, like=old, alpha=1.0).save(new)
    was, is_ = payloads(old), payloads(new)
    matrices = [name for name, t in model.state_dict().items() if t.dim() > 1]
    assert [name for name in matrices if was[name] != is_[name]] == [last]


def test_a_weight_beyond_the_old_codes_and_another_shape_are_changes(tmp_path: Path) -> None:
    before = weights()
    opq.compress(before, bits=4).save(tmp_path / "old")
    after = {**before, "0.weight": before["0.weight"] * 1e6, "1.weight": torch.randn(50, 50)}
    result = opq.compress(after, bits=4, like=tmp_path / "old")
    assert result.plan["0.weight"].step > 100
    assert result.plan["1.weight"].shape == (50, 50)
    plan = opq.solve(after, bits=4, like=tmp_path / "old")
    assert plan["2.weight"] == result.plan["2.weight"]


def test_like_goes_with_a_budget_of_one_file_and_methods_without_data(tmp_path: Path) -> None:
    state = {"w": torch.randn(64, 64)}
    opq.compress(state, bits=4).save(tmp_path / "old")
    with pytest.raises(OptionError, match="does not take like="):
        opq.compress(state, bits=4, method="kmeans", like=tmp_path / "old")
    with pytest.raises(OptionError, match="does not go with sparsity="):
        opq.compress(state, bits=4, method="opq", sparsity=0.5, like=tmp_path / "old")
    with pytest.raises(OptionError, match="does not go with a folder as output"):
        opq.compress_folder(state, tmp_path / "out", bits=4, like=tmp_path / "old")  # type: ignore[call-arg]
    with pytest.raises(opq.OpqError):
        opq.compress(nn.Linear(8, 8), bits=4, like=tmp_path / "none")


def test_like_with_constraints_is_refused(tmp_path: Path) -> None:
    opq.compress("demo:digits", bits=4, probe=False).save(tmp_path / "a.opq.safetensors")
    few = (opq.constraints.code_bits("*", max=4),)
    with pytest.raises(OptionError, match="like= does not go with constraints="):
        opq.compress("demo:digits", like=tmp_path / "a.opq.safetensors", constraints=few, probe=False)
