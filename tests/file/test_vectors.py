"""Kept vectors on fine grids: near enough that nothing changes, and BatchNorm functions kept whole."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file
from torch import nn

from opq.base.dtypes import dtype_name
from opq.coding.entropy import coded_size
from opq.file.reader import Reader
from opq.file.stored import Fine, Log, Raw, Stored
from opq.file.vectors import BITS, Norm, batchnorm, fine, running_mean
from opq.file.writer import pack
from opq.plan import Plan, TensorPlan

NAMES = ("n.weight", "n.bias", "n.running_mean", "n.running_var")


def through_a_file(items: list[Stored], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a file of these items gives back, in the types of `like`."""
    tensors = (
        TensorPlan(name=i.name, shape=tuple(like[i.name].shape), dtype=dtype_name(like[i.name].dtype), action="keep",
                   reason="one-dimensional")
        for i in items
    )  # fmt: skip
    return Reader(pack(Plan(method="x", tensors=tuple(tensors)), items)).state_dict()


def layer(channels: int, *, dtype: torch.dtype = torch.float32, eps: float = 1e-5) -> nn.BatchNorm1d:
    """A BatchNorm with the statistics of a trained one."""
    rng = torch.Generator().manual_seed(channels)
    norm = nn.BatchNorm1d(channels, eps=eps).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.4 * torch.randn(channels, generator=rng))
        norm.bias.copy_(torch.randn(channels, generator=rng))
        norm.running_mean.copy_(3 * torch.randn(channels, generator=rng))
        norm.running_var.copy_(torch.exp(2 * torch.randn(channels, generator=rng)))
    return norm.eval()


def stored(norm: nn.BatchNorm1d, **options: int) -> tuple[list[Stored], nn.BatchNorm1d]:
    """The items of a layer, and the layer that a file of them gives back."""
    vectors = dict(zip(NAMES, (norm.weight, norm.bias, norm.running_mean, norm.running_var), strict=True))
    weight, bias, mean, var = (v.detach() for v in vectors.values())
    items = batchnorm(Norm(names=NAMES, weight=weight, bias=bias, mean=mean, var=var, eps=norm.eps), **options)
    back = nn.BatchNorm1d(norm.num_features, eps=norm.eps).to(norm.weight.dtype)
    state = through_a_file(items, {n: v.detach() for n, v in vectors.items()})
    back.load_state_dict({n.removeprefix("n."): v for n, v in state.items()}, strict=False)
    return items, back.eval()


def decibel(error: torch.Tensor, signal: torch.Tensor) -> float:
    return float(10 * torch.log10(error.double().square().mean() / signal.double().square().mean()))


@pytest.mark.parametrize("far", [-1e3, -1e4, -1e9, float(torch.finfo(torch.float32).min)])
def test_a_bias_that_masks_a_class_does_not_make_the_others_coarse(far: float) -> None:
    """Its grid has the step of the others; where no code reaches so far, all are stored bit for bit."""
    tensor = torch.randn(64, generator=torch.Generator().manual_seed(0))
    usual = tensor.square().mean().sqrt()
    tensor[7] = far
    back = through_a_file([fine("v", tensor, bits=8)], {"v": tensor})["v"]
    assert float((back - tensor).abs().max()) <= 0.51 * float(usual) * 2**-8


@pytest.mark.parametrize(("far", "counts"), [(1000.0, True), (1050.0, False)])
def test_values_decide_on_a_step_up_to_a_thousand_times_the_usual_size_and_zeros_not_at_all(
    far: float, counts: bool
) -> None:
    """As in a mask, most values are 0."""
    tensor = torch.tensor([0.0] * 90 + [1.0, -1.0] * 5 + [far])
    item = fine("v", tensor, bits=1)
    assert isinstance(item, Fine)
    square = (10 + far * far * counts) / (len(tensor) - 1 + counts)
    assert item.step == pytest.approx(square**0.5 / 2, rel=0.005)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.floats(1e-25, 1e25), st.integers(2, 12), st.integers(0, 99))
def test_a_vector_comes_back_within_half_a_step(size: int, scale: float, bits: int, seed: int) -> None:
    tensor = (scale * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).float()
    item = fine("v", tensor, bits=bits)
    assert isinstance(item, Fine)
    back = through_a_file([item], {"v": tensor})["v"]
    rms = float(tensor.double().square().mean().sqrt())
    assert item.step == pytest.approx(rms * 2.0**-bits, rel=0.01)
    assert float((back.double() - tensor.double()).abs().max()) <= item.step * 0.5001


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor([1.0, float("inf")]), torch.tensor([1e30] + [1e-3] * 10**6), torch.tensor([float("nan")])],
    ids=["infinite", "outlier", "nan"],
)
def test_what_no_grid_holds_stays_as_it_is(tensor: torch.Tensor) -> None:
    item = fine("v", tensor, bits=14)
    assert isinstance(item, Raw)
    assert item.tensor is tensor


@pytest.mark.parametrize("tensor", [torch.zeros(5), torch.zeros(0), torch.tensor(2.5), torch.full((9,), -3.0)])
def test_degenerate_vectors_come_back(tensor: torch.Tensor) -> None:
    back = through_a_file([fine("v", tensor)], {"v": tensor})["v"]
    torch.testing.assert_close(back, tensor, rtol=0.005, atol=0)


@pytest.mark.parametrize("channels", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("bits", [6, 9])
def test_a_batchnorm_computes_the_same(channels: int, bits: int) -> None:
    norm = layer(channels)
    items, back = stored(norm, bits=bits)
    assert [type(i) for i in items] == [Fine, Fine, Fine, Log]
    deviation = norm.running_var.sqrt()
    x = norm.running_mean + deviation * torch.randn(500, channels, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = norm(x), back(x)
    assert decibel(got - wanted, norm.weight.detach()) < -6 * bits - 4


def test_statistics_are_coarse_but_of_the_right_size() -> None:
    norm = layer(500)
    _, back = stored(norm)
    ratio = back.running_var / norm.running_var
    assert float(ratio.log2().abs().max()) <= 0.2501
    typical = float(back.running_var.sqrt().median())
    assert float((back.running_mean - norm.running_mean).abs().max()) <= typical / 4 * 1.01


def test_a_channel_takes_about_22_bits() -> None:
    items, _ = stored(layer(1000))
    size = sum(coded_size(i.codes) for i in items if isinstance(i, Fine | Log))
    assert 16 < 8 * size / 1000 < 26


def test_dead_channels_and_half_precision() -> None:
    norm = layer(32, dtype=torch.float64)
    with torch.no_grad():
        norm.running_var[3] = 0.0
        norm.running_var[5] = 1e-44
        norm.weight[7] = 0.0
    _, back = stored(norm)
    x = norm.running_mean + 0.3 * norm.running_var.sqrt() * torch.ones(1, 32)
    with torch.no_grad():
        assert decibel(back(x) - norm(x), norm.weight.detach()) < -40


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.floats(0, 8), st.integers(6, 13), st.integers(0, 99))
def test_a_running_mean_alone_errs_little_in_every_channels_own_deviation(
    size: int, decades: float, bits: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    units = 10 ** (decades * (torch.rand(size, generator=rng, dtype=torch.float64) - 0.5))
    mean = (3 * units * torch.randn(size, generator=rng, dtype=torch.float64)).float()
    item = running_mean("m", mean, units.numpy(), bits=bits)
    moved = (through_a_file([item], {"m": mean})["m"].double() - mean.double()) / units
    assert float(moved.square().mean().sqrt()) <= 2.0**-BITS / 2 * 1.01
    usual = fine("m", mean, bits=bits)
    if isinstance(item, Fine) and isinstance(usual, Fine):
        assert item.step <= usual.step


def test_a_running_mean_in_one_unit_is_stored_as_any_vector() -> None:
    mean = torch.randn(64, generator=torch.Generator().manual_seed(0))
    item, usual = running_mean("m", mean, np.full(64, 3.0)), fine("m", mean)
    assert isinstance(item, Fine)
    assert isinstance(usual, Fine)
    assert item.step == usual.step


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_impossible_statistics_stay_as_they_are(value: float) -> None:
    norm = layer(4)
    norm.running_var[1] = value
    items, _ = stored(norm)
    assert all(isinstance(i, Raw) for i in items)


@pytest.mark.parametrize(
    ("file", "eps"), [("resnet20_cifar10.safetensors", 1e-5), ("mobilenet_v1_075_imagenet.safetensors", 1e-3)]
)
def test_real_batchnorms_keep_their_function(file: str, eps: float, shared: Path) -> None:
    state = load_file(shared / "weights" / file)
    size = channels = 0
    for name in (n for n in state if n.endswith("running_var")):
        prefix = name.removesuffix("running_var")
        names = (prefix + "weight", prefix + "bias", prefix + "running_mean", name)
        weight, bias, mean, var = (state[n] for n in names)
        items = batchnorm(Norm(names=names, weight=weight, bias=bias, mean=mean, var=var, eps=eps))
        back = through_a_file(items, state)
        slope, old = (w / (v.double() + eps).sqrt() for w, v in ((back[names[0]], back[name]), (weight, var)))
        at_mean = back[names[1]] + slope * (mean - back[names[2]]) - bias
        error = at_mean.square() + (slope - old).square() * var
        assert float(10 * torch.log10(error.mean() / weight.double().square().mean())) < -40
        size += sum(coded_size(i.codes) for i in items if isinstance(i, Fine | Log))
        channels += len(weight)
    assert 8 * size / channels < 26
    assert np.isfinite(size)
