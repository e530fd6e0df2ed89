"""Modules that are not ordinary ones: traced, exported, scripted, quantized, or holding more than tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opq
from opq.errors import MismatchError, OptionError, ProbeWarning, WeightsWarning


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class Extra(nn.Linear):
    """A layer with a state that is no tensor."""

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": 2.0}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_module_is_probed_by_the_shape_of_its_first_weights(tmp_path: Path) -> None:
    traced = torch.jit.trace(network(), torch.randn(1, 64))
    result = opq.compress(traced, bits=5)
    assert "the model could not be probed" not in result.basis
    result.save(tmp_path / "file")
    x = torch.randn(4, 64)
    with torch.no_grad():
        outputs, wanted = opq.load(tmp_path / "file", network())(x), network()(x)
    assert float((outputs - wanted).norm() / wanted.norm()) < 0.1


def test_an_exported_module_is_compressed() -> None:
    shapes = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(network(), (torch.randn(4, 64),), dynamic_shapes=shapes).module()
    assert opq.compress(exported, bits=5).bits <= 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", [True, False])
def test_a_scripted_module_keeps_its_mode(mode: bool) -> None:
    scripted = torch.jit.script(network()).train(mode)
    with pytest.warns(ProbeWarning, match="has no gradients"):
        opq.compress(scripted, bits=5)
    assert [module.training for module in scripted.modules()] == [mode] * 4


def test_what_is_no_tensor_is_named_in_a_warning() -> None:
    model = nn.Sequential(Extra(64, 64), nn.Linear(64, 10))
    with pytest.warns(WeightsWarning, match=r"0\._extra_state: no tensors, and so not in the file"):
        result = opq.compress(model, bits=5)
    assert result.left_out == ("0._extra_state",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_module_is_not_filled_by_halves(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Linear(200, 20), nn.ReLU(), nn.Linear(20, 4), nn.LayerNorm(4), nn.Linear(4, 20))
    model = torch.ao.quantization.quantize_dynamic(plain, {"0"}, dtype=torch.qint8)
    with pytest.warns(WeightsWarning, match="_packed_params"):
        opq.compress(model, size=50_000, probe=False).save(tmp_path / "file")
    with pytest.raises(MismatchError, match=r"needs more than tensors: got no 0\._packed_params"):
        opq.load(tmp_path / "file", model)


def test_a_name_is_no_model_to_fill(tmp_path: Path) -> None:
    opq.compress(network(), bits=5, probe=False).save(tmp_path / "file")
    with pytest.raises(OptionError, match="got 'hf:org/name'"):
        opq.load(tmp_path / "file", "hf:org/name")  # type: ignore[type-var]
