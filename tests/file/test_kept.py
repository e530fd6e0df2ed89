"""What is not compressed is stored as small as is harmless, and nothing is skipped."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import opq
from opq.file import kept, writer
from opq.file.kept import FINEST, fine_bits, keep
from opq.file.reader import Reader
from opq.file.stored import Grid
from opq.plan import Plan, TensorPlan
from opq.sources import open_source


class Net(nn.Module):
    """Norms with and without affine parameters, a bias, and a buffer that must stay exact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3)
        self.norm = nn.BatchNorm2d(64, eps=1e-3)
        self.bare = nn.BatchNorm2d(64, affine=False)
        self.head = nn.Linear(64, 64)
        self.register_buffer("frequencies", torch.rand(64))
        generator = torch.Generator().manual_seed(0)
        for tensor in (self.norm.running_mean, self.norm.running_var, self.bare.running_mean, self.bare.running_var):
            tensor.copy_(torch.rand(64, generator=generator) * 3 + 0.01)
        with torch.no_grad():
            self.norm.weight.copy_(torch.randn(64, generator=generator))
            self.norm.bias.copy_(torch.randn(64, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bare(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def result() -> opq.Result:
    torch.manual_seed(0)
    return opq.compress(Net(), bits=9, probe=False, trellis=False)


def test_how_each_is_stored(result: opq.Result) -> None:
    kinds = {t.name: result.reader.kind(t.name) for t in result.plan if t.action == "keep"}
    assert kinds == {
        "conv.bias": "fine", "head.bias": "fine", "frequencies": "raw",
        "norm.weight": "fine", "norm.bias": "fine", "norm.running_mean": "fine", "norm.running_var": "log",
        "norm.num_batches_tracked": "scalar",
        "bare.running_mean": "fine", "bare.running_var": "log", "bare.num_batches_tracked": "scalar",
    }  # fmt: skip


def test_the_norms_function_survives(result: opq.Result) -> None:
    torch.manual_seed(0)
    dense, state = Net().eval(), result.state_dict()
    read = Net().eval()
    read.load_state_dict(state)
    assert torch.equal(state["frequencies"], dense.frequencies)
    x = torch.randn(8, 64, 5, 5)
    for name in ("norm", "bare"):
        y, y_hat = dense.get_submodule(name)(x), read.get_submodule(name)(x)
        error = float((y - y_hat).detach().square().mean() / y.detach().square().mean())
        assert error < 1e-4, name
    bias = dense.head.bias.detach()
    assert float((state["head.bias"] - bias).abs().max()) < 0.01 * float(bias.abs().max())


def test_what_the_user_keeps_is_exact() -> None:
    torch.manual_seed(0)
    net = Net()
    result = opq.compress(net, bits=30, probe=False, trellis=False, overrides={"norm.*": "keep", "head.*": "keep"})
    state = result.state_dict()
    for name, tensor in net.state_dict().items():
        if name.startswith(("norm.", "head.")):
            assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize(("rate", "bits"), [(0.5, 6), (3.0, 8), (4.2, 10), (9.5, 13), (11.0, None)])
def test_finer_than_the_weights(rate: float, bits: int | None) -> None:
    tensor = TensorPlan(name="w", shape=(8,), dtype="F32", action="compress", reason="", step=1.0, rate=rate)
    assert fine_bits(Plan(method="rd", tensors=(tensor,))) == bits
    assert bits is None or bits <= FINEST


def test_a_plan_that_compresses_nothing_is_exact() -> None:
    assert fine_bits(Plan(method="rd", tensors=())) is None


def test_a_trained_file_stores_its_norms_as_a_compressed_one_does(result: opq.Result) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    opq.attach(net, result)
    trained = opq.collect(net, result)
    assert trained.bytes <= result.bytes + 8
    for name in ("norm.running_mean", "norm.running_var", "norm.weight"):
        assert trained.reader.sizes[name] <= result.reader.sizes[name] + 2, name
    read, x = Net().eval(), torch.randn(8, 64, 5, 5)
    read.load_state_dict(trained.state_dict())
    y, y_hat = net.norm(x), read.norm(x)
    assert float((y - y_hat).detach().square().mean() / y.detach().square().mean()) < 1e-4


def test_dead_channels_of_bare_weights_are_coded_too() -> None:
    net = Net()
    net.norm.running_var[3], net.norm.running_var[7] = 0.0, 1e-44
    bare = opq.compress(net.state_dict(), bits=9, probe=False)
    assert bare.reader.kind("norm.running_var") == "log"
    var = bare.state_dict()["norm.running_var"]
    assert 0 < float(var[3]) == float(var[7]) < 1e-11
    others = net.norm.running_var > 1e-3
    assert torch.allclose(var[others], net.norm.running_var[others], rtol=6e-3)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_features_of_very_different_units_keep_their_normalised_values(affine: bool, bare: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(10, affine=affine), nn.Linear(10, 256)).eval()
    units = torch.logspace(-2, 5, 10)
    net[0].running_mean.copy_(3 * units * torch.randn(10))
    net[0].running_var.copy_((units * (0.5 + torch.rand(10))).square())
    state = opq.compress(net.state_dict() if bare else net, bits=6, probe=False).state_dict()
    read = nn.BatchNorm1d(10, affine=affine).eval()
    read.load_state_dict({n.removeprefix("0."): t for n, t in state.items() if n.startswith("0.")})
    x = net[0].running_mean + net[0].running_var.sqrt() * torch.randn(200, 10)
    with torch.no_grad():
        wanted, got = net[0](x), read(x)
    assert float(((got - wanted).square().mean(0) / wanted.var(0)).sqrt().max()) < 0.02


# --- words do not steer ---------------------------------------------------------------------------


def test_other_words_store_the_same_bytes(result: opq.Result) -> None:
    """Reasons are for people: whatever they say, every kept tensor is stored as before."""
    torch.manual_seed(0)
    source = open_source(Net())
    for words in ("one-dimensional", "override '*'", "2-D weight", ""):
        told = result.plan.replace(tensors=tuple(dataclasses.replace(t, reason=words) for t in result.plan))
        stored = keep(source, told, {})
        codes = [Grid(t.name, result.codes[t.name].numpy()) for t in told.compressed]
        packed = writer.pack(told, [*stored, *codes])
        assert packed.digests == result.packed.digests
        assert packed.sizes == result.packed.sizes


def test_a_plan_read_from_a_file_keeps_exact_what_was_exact() -> None:
    torch.manual_seed(0)
    net = Net()
    result = opq.compress(net, bits=9, probe=False, overrides={"norm.*": "keep", "conv.bias": "keep"})
    read = Reader(result.packed).plan
    assert read == result.plan
    exact = {t.name for t in read if t.exact}
    assert {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "conv.bias"} <= exact
    assert not {"head.bias", "bare.running_mean", "bare.running_var"} & exact
    kinds = [{item.name: type(item) for item in keep(open_source(net), plan, {})} for plan in (read, result.plan)]
    assert kinds[0] == kinds[1]


def test_a_batchnorm_divides_by_its_own_eps_and_where_none_is_known_only_dead_channels_have_one() -> None:
    variances = torch.tensor([4.0, 0.0])
    assert kept._deviations(variances, 0.25).tolist() == [math.sqrt(4.25), 0.5]
    assert kept._deviations(variances, None).tolist() == [2.0, math.sqrt(kept.UNKNOWN_EPS)]
