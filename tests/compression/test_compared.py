"""The probe is never much worse than its absence: what does better on other inputs is kept, and named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opq
from opq.allocation.stats import TensorStats
from opq.compression import compared
from opq.errors import ProbeWarning
from opq.file.basis import NOTES, WEIGHTS
from opq.report.inspection import examine


class Two(nn.Module):
    """Under gradients nearly all that shows is one layer, and without them it is the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shown, self.used = nn.Linear(24, 48), nn.Linear(24, 48)

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.shown(x) + self.used(x) if torch.is_grad_enabled() else self.used(x)


class InPlace(nn.Module):
    """Has no gradient: what the first layer gave is written over before it is needed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(24, 64), nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.first(x)).mul_(2))


def off(model: nn.Module, result: opq.Result) -> float:
    """The error of the outputs relative to how they vary."""
    x = torch.randn(256, 24, generator=torch.Generator().manual_seed(5))
    again = copy.deepcopy(model)
    again.load_state_dict(result.state_dict())
    with torch.no_grad():
        before, after = model(x), again(x)
    return float((before - after).square().sum() / (before - before.mean(0)).square().sum())


def test_a_probe_that_makes_outputs_worse_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Two()
    result, without = opq.compress(model, bits=6), opq.compress(model, bits=6, probe=False)
    assert result.basis == NOTES[WEIGHTS]
    assert off(model, result) < 1.5 * off(model, without)
    monkeypatch.setattr("opq.api.without_probe", lambda *_: None)
    probed = opq.compress(model, bits=6)
    assert probed.basis.startswith("a probe of the model")
    assert off(model, probed) > 10 * off(model, without)


def test_without_the_probe_the_weights_are_not_scaled_by_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, seen = nn.Sequential(nn.Linear(80, 160), nn.ReLU(), nn.Linear(160, 96)), list[Any]()
    monkeypatch.setattr("opq.api.without_probe", lambda coder, made, plain, *_: seen.append((coder, plain)))
    opq.compress(model, bits=4, input_size=(80,))
    ((coder, plain),) = seen
    assert set(plain.stats) == set(coder.source.exponents) == {"0.weight", "2.weight"}
    for name, stats in plain.stats.items():
        assert stats == TensorStats.of(model.get_parameter(name))
        assert stats != TensorStats.of(coder.source.tensor(name))


def test_an_older_file_of_the_weights_alone_is_taken_over(tmp_path: Path) -> None:
    path, model = tmp_path / "m.opq.safetensors", Two()
    old = opq.compress(model, bits=6)
    old.save(path)
    assert b"".join(opq.compress(model, like=path).packed.parts) == b"".join(old.packed.parts)


def test_a_file_without_the_probe_that_turns_out_no_better_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([2.0, 1.0, 3.0])
    monkeypatch.setattr(compared._Judge, "error", lambda self, state: next(errors))
    assert opq.compress(Two(), bits=6).basis == NOTES["probe"]
    errors = iter([2.0, 1.0, 1.5])
    assert opq.compress(Two(), bits=6).basis == NOTES[WEIGHTS]


def test_the_file_says_that_it_rests_on_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.opq.safetensors"
    opq.compress(Two(), bits=6).save(path)
    assert f"by {NOTES[WEIGHTS]}" in str(examine(path))


def test_a_probe_that_helps_is_kept_and_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    def compressed() -> bytes:
        result = opq.compress("demo:digits", bits=4)
        assert result.basis == NOTES["probe+norms"]
        return b"".join(result.packed.parts)

    found = compressed()
    monkeypatch.setattr("opq.api.without_probe", lambda *_: None)
    assert found == compressed()


def test_differences_are_compared_as_the_weights_that_they_make(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 20))
    model, seen = copy.deepcopy(base), list[float]()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.01)
    inner = compared.error_of

    def error_of(*given: Any) -> float:
        seen.append(inner(*given))
        return seen[-1]

    monkeypatch.setattr(compared, "error_of", error_of)
    opq.compress(model, bits=4, base=base)
    assert len(seen) >= 2
    assert max(seen) < 0.02, "as weights, differences would give nothing like the outputs"


def test_outputs_that_cannot_be_compared_keep_the_probe() -> None:
    class Labels(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    with pytest.warns(ProbeWarning, match="Labels has no gradients"):
        result = opq.compress(Labels(24, 50), bits=6)
    assert result.basis == NOTES["probe-unfelt"]


def test_errors_are_fed_back_where_there_are_no_gradients(tmp_path: Path) -> None:
    model, path = InPlace(), tmp_path / "m.opq.safetensors"
    with pytest.warns(ProbeWarning, match="InPlace has no gradients: RuntimeError: one of the variables"):
        result = opq.compress(model, bits=6)
    without = opq.compress(model, bits=6, probe=False)
    assert result.basis.endswith("sensitivities by the weights, because its outputs have no gradients")
    assert off(model, result) < off(model, without)
    assert result.plan["first.weight"].sensitivity == without.plan["first.weight"].sensitivity
    result.save(path)
    assert result.basis in str(examine(path))
