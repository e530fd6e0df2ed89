"""Networks that give NaN or infinity on some inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import opq
from opq.errors import ProbeError, ProbeWarning
from opq.models.batch import Batch
from opq.probing.finite import trouble


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


class Fragile(nn.Module):
    """NaN where one number of a sample lies below a bound."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.norm, self.leave, self.bound = nn.Linear(6, 64), nn.BatchNorm1d(64), nn.Linear(64, 32), bound

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x) + (x[:, :1] - self.bound).sqrt()
        return self.leave(torch.relu(self.norm(h)))


def net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 32))


def test_of_what_belongs_to_no_sample_all_are_bad() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x.new_full((3, 2), math.inf)

    found = trouble(nn.Sequential(Shared()), Batch((torch.randn(8, 6),)), micro_batch=4)
    assert found.where == "module '0'"
    assert not found.good.any()


def test_what_a_forward_leaves_behind_is_no_trouble_of_the_next() -> None:
    class Counting(nn.Module):
        left: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("left", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            self.left = self.left - 1
            return x + self.left.sqrt()

    found = trouble(nn.Sequential(Counting()), Batch((torch.randn(8, 6),)), micro_batch=2)
    assert found.where == ""
    assert found.good.all()


def test_noise_of_the_wrong_sign_is_made_positive() -> None:
    model = net(Log())
    with pytest.warns(ProbeWarning, match="module '0' is NaN or infinite .* goes on with inputs without negative"):
        found = opq.probe(model, input_size=(6,))
    assert all(math.isfinite(a) and a > 0 for a in found.sensitivity.values())
    assert float(found.batch.args[0].min()) >= 0
    with pytest.warns(ProbeWarning, match="module '0'"):
        result = opq.compress(model, bits=6, input_size=(6,))
    assert result.basis.startswith("a probe")


def test_samples_that_go_wrong_are_left_out() -> None:
    model = Fragile(-0.5)
    with pytest.warns(ProbeWarning, match="what is given to module 'norm' is NaN .* goes on with .* of the 64 inputs"):
        found = opq.probe(model, input_size=(6,))
    assert 16 <= found.batch.samples < 64
    assert float(found.batch.args[0][:, 0].min()) > -0.5
    with pytest.warns(ProbeWarning, match="norm"):
        result = opq.compress(model, bits=7, input_size=(6,))
    assert all(bool(torch.isfinite(t.float()).all()) for t in result.state_dict().values())


def test_without_any_good_input_the_weights_alone_are_compressed_and_the_module_named() -> None:
    model = Fragile(1e6)
    with pytest.raises(ProbeError, match="what is given to module 'norm' is NaN or infinite"):
        opq.probe(model, input_size=(6,))
    with pytest.warns(ProbeWarning, match="without feedback .* module 'norm'"):
        assert opq.compress(model, bits=7, input_size=(6,)).basis == "the weights alone: the model could not be probed"
    with pytest.raises(ProbeError, match=r"Leave out of calibration= what the model itself answers with NaN"):
        opq.compress(model, bits=7, calibration=[torch.randn(8, 6)])


def test_too_large_numbers_are_made_smaller() -> None:
    class Power(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(200 * x.abs())

    with pytest.warns(ProbeWarning, match="goes on with inputs of 0.1 times the size"):
        found = opq.probe(nn.Sequential(nn.Linear(6, 16, bias=False), Power(), nn.Linear(16, 5)), input_size=(6,))
    assert all(map(math.isfinite, found.sensitivity.values()))


def test_a_gradient_alone_may_be_infinite() -> None:
    class Root(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x) * 0).sqrt()

    with pytest.raises(ProbeError, match="the gradient of 'bias' is NaN or infinite"):
        opq.probe(Root(6, 4))


def test_a_layer_that_is_given_infinity_is_rounded_without_feedback() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.gate, self.out = nn.Linear(6, 64), nn.Linear(6, 64), nn.Linear(64, 32)

        def forward(self, x: Tensor) -> Tensor:
            far = torch.full_like(x, 1e30)
            return self.out(torch.tanh(self.mix(x)) + torch.sigmoid(self.gate(far).detach()))

    torch.manual_seed(0)
    model = Masked()
    model.gate.weight.data.abs_()  # sums of rows far from zero: else a gate may turn over by rounding
    with pytest.warns(ProbeWarning, match=r"the inputs of 'gate.weight' are NaN, infinite or too large"):
        result = opq.compress(model, bits=6, input_size=(6,))
    assert result.basis.startswith("a probe")


def test_the_first_module_is_named_and_the_samples_found() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Log(), nn.ReLU()), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.zero_()
    x = torch.ones(6, 3)
    x[4, 1] = -1
    found = trouble(model, Batch((x,)), micro_batch=2)
    assert found.where == "module '1.0'"
    assert found.good.tolist() == [True, True, True, True, False, True]
    assert trouble(model, Batch((x.abs(),)), micro_batch=2).where == ""


def test_sizes_that_the_data_decide_do_not_stop_the_choice_of_an_exponent() -> None:
    class Chosen(nn.Module):
        """As detectors do: as many rows as there are scores above zero."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 5, 3))

        def forward(self, x: Tensor) -> Tensor:
            rows = self.body(x).flatten(2).transpose(1, 2).flatten(0, 1)
            return rows[rows[:, 0] > 0]

    assert opq.compress(Chosen(), bits=6, input_size=(3, 12, 12)).basis.startswith("a probe")
