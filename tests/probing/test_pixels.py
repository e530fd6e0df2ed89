"""Networks that divide pixels by 255 themselves get noise in the range of pixels; all others keep theirs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import opq
from opq.models.batch import Batch
from opq.probing.pixels import FEW, as_pixels, visible


class Scaled(nn.Module):
    """A network behind a change of its inputs."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], network: nn.Module):
        super().__init__()
        self.change, self.network = change, network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(self.change(x))
        return out


def convolutions(*, bias: bool = True, norm: type[nn.Module] | None = None) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.ReLU()] if norm is None else [norm(8), nn.ReLU()]
    first = nn.Conv2d(3, 8, 3, bias=bias)
    return nn.Sequential(first, *middle, nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(10))


def made(network: nn.Module) -> nn.Module:
    network(torch.zeros(2, 3, 12, 12))
    return network.eval()


CHANGES = {
    "divided": lambda x: x / 255,
    "from -1 to 1": lambda x: x / 127.5 - 1,
    "standardized": lambda x: (x / 255 - 0.45) / 0.225,
}


@pytest.fixture
def noise() -> Batch:
    return Batch((torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0)),))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_network_that_scales_pixels_itself_gets_pixels(
    change: Callable[[torch.Tensor], torch.Tensor], bias: bool, noise: Batch
) -> None:
    model = made(Scaled(change, convolutions(bias=bias)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = visible(model, noise).args[0]
    torch.testing.assert_close(pixels, as_pixels(noise.args[0]))
    assert 0 <= float(pixels.min()) < 20
    assert 235 < float(pixels.max()) <= 255
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d, lambda n: nn.GroupNorm(2, n)], ids=["none", "batch", "group"])
def test_an_ordinary_network_keeps_its_noise(norm: type[nn.Module] | None, noise: Batch) -> None:
    assert visible(made(convolutions(norm=norm)), noise) is noise


def test_a_large_bias_of_the_outputs_says_nothing_of_the_inputs(noise: Batch) -> None:
    """A regression to some thousands with a deviation of one."""
    model = made(convolutions())
    nn.init.constant_(model[-1].bias, 5000.0)
    assert visible(model, noise) is noise


@pytest.mark.parametrize(
    "batch",
    [
        Batch((torch.zeros(4, 6, dtype=torch.long),)),
        Batch((100 * torch.randn(8, 3, 12, 12),)),
        Batch((2.5 * torch.randn(8, 3, 12, 12),)),
        Batch((0.4 * torch.randn(8, 3, 12, 12),)),
        Batch((torch.randn(8, 3, 12, 12) + 0.7,)),
        Batch((torch.randn(8, 3, 12, 12), torch.rand(8, 2))),
        Batch((torch.randn(8, 3, 12, 12),), dim=None),
    ],
    ids=["tokens", "of another scale", "larger", "smaller", "of another mean", "two arguments", "not divided"],
)
def test_other_inputs_stay_as_they_are(batch: Batch) -> None:
    model = made(Scaled(CHANGES["divided"], convolutions()))
    assert visible(model, batch) is batch


def affine(slope: float, *, limit: float = math.inf) -> nn.Module:
    """A module whose outputs are 1, and `slope` times the inputs, these cut at a limit."""
    network = nn.Linear(12, 12)
    nn.init.eye_(network.weight)
    nn.init.ones_(network.bias)
    return Scaled(lambda x: slope * x.clamp(max=limit), network)


@pytest.mark.parametrize(
    ("slope", "limit", "changed"),
    [(0.07, math.inf, True), (0.15, math.inf, False), (0.07, 25, True), (0.07, 10, False)],
)
def test_pixels_are_taken_where_noise_moves_a_constant_little_and_they_move_it_far(
    slope: float, limit: float, changed: bool, noise: Batch
) -> None:
    """From a tenth of it on noise is enough; a network that cuts its inputs off has no more of pixels."""
    assert (visible(affine(slope, limit=limit), noise) is not noise) == changed


def test_noise_that_a_batchnorm_will_make_as_large_as_any_is_kept(noise: Batch) -> None:
    """The probe runs it on the statistics of the noise, whatever those of training are."""
    model = made(Scaled(lambda x: x / 64, convolutions(bias=False, norm=nn.BatchNorm2d)))
    nn.init.constant_(model.network[1].bias, 0.5)
    assert visible(model, noise) is noise


def test_a_network_is_run_on_few_samples_and_no_further_than_to_the_constant(noise: Batch) -> None:
    model = made(Scaled(CHANGES["divided"], convolutions()))
    samples, beyond = list[int](), list[nn.Module]()
    model.network[0].register_forward_hook(lambda module, given, _: samples.append(len(given[0])))
    model.network[1].register_forward_hook(lambda module, *_: beyond.append(module))
    assert visible(model, noise) is not noise
    assert set(samples) == {FEW}
    assert not beyond


def test_a_network_in_training_is_seen_in_inference_and_draws_no_numbers(noise: Batch) -> None:
    network = nn.Sequential(nn.Dropout(), convolutions())
    model = made(Scaled(CHANGES["divided"], network)).train()
    before = torch.get_rng_state()
    assert visible(model, noise) is not noise
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


class Remembering(nn.Module):
    """Divides only the first inputs that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.network = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = self.network(x / 255 if self.calls == 1 else x)
        return out


def test_what_a_network_remembers_of_zeros_is_forgotten_before_the_noise(noise: Batch) -> None:
    model = Remembering()
    assert visible(model, noise) is not noise
    assert model.calls == 0


def test_a_network_that_fails_on_zeros_keeps_its_noise(noise: Batch) -> None:
    def loud(x: torch.Tensor) -> torch.Tensor:
        if not bool(x.any()):
            raise ValueError("silence")
        return x / 255

    assert visible(made_loud(loud), noise) is noise


def made_loud(change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    network = convolutions()
    made(network)
    return Scaled(change, network).eval()


def test_by_default_such_a_network_is_better_than_rounded_to_nearest_by_row() -> None:
    """A classifier of digits, in about as many bits."""
    from sklearn.datasets import load_digits

    pixels, digits = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x, y = pixels.float() * 255 / 16, digits.long()
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = Scaled(CHANGES["divided"], layers)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(200):
        some = torch.randint(1300, (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[some]), y[some]).backward()
        optimizer.step()
    model.eval()
    dense = model(x[1300:]).detach().log_softmax(-1)

    def divergence(state: dict[str, torch.Tensor]) -> float:
        out = torch.func.functional_call(model, state, x[1300:]).detach().log_softmax(-1)
        return float(nn.functional.kl_div(out, dense, log_target=True, reduction="batchmean"))

    def rounded(w: torch.Tensor) -> torch.Tensor:
        scale = w.abs().amax(1, keepdim=True) / 3  # seven levels, 2.8 bits at most
        return (w / scale).round() * scale

    nearest = {n: rounded(w) if w.dim() > 1 else w for n, w in model.state_dict().items()}
    assert divergence(opq.compress(model, bits=2.9).state_dict()) < 0.8 * divergence(nearest)


def test_the_probe_of_such_a_network_is_that_of_the_network_on_pixels() -> None:
    """Sensitivities of the first layer, whose inputs are 100 times as large, are as they are on pixels."""
    model = made(Scaled(CHANGES["divided"], convolutions()))
    told = opq.probe(model, input_size=(3, 12, 12), samples=16)
    assert float(next(iter(told.batch.tensors)).max()) > 200
    first, last = (told.sensitivity[f"network.{name}.weight"] for name in ("0", "4"))
    plain = opq.probe(model.network, input_size=(3, 12, 12), samples=16).sensitivity
    assert 0.02 < (first / last) / (plain["0.weight"] / plain["4.weight"]) < 50
