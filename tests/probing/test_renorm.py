"""Re-normalisation gives a network whose BatchNorms were moved its function back, without data."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import opq
from opq.models.batch import Batch
from opq.probing.renorm import known, renormalise, statistics


def trained(norm: nn.BatchNorm1d | nn.BatchNorm2d, layer: nn.Module) -> nn.Sequential:
    """A layer and a BatchNorm whose statistics are those of `real` inputs (of mean 1, deviation 3)."""
    model = nn.Sequential(layer, norm).train()
    norm.momentum = 1.0
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.rand_like(p) + 0.5)
        model(real(layer))
    return model.eval()


def real(layer: nn.Module) -> torch.Tensor:
    size = (64, layer.weight.shape[1], *[6] * (layer.weight.dim() - 2))
    return 1 + 3 * torch.randn(size, generator=torch.Generator().manual_seed(0))


CASES = [
    (nn.BatchNorm1d(5), nn.Linear(4, 5)),
    (nn.BatchNorm1d(5), nn.Conv1d(4, 5, 3)),
    (nn.BatchNorm2d(5), nn.Conv2d(4, 5, 3)),
    (nn.BatchNorm2d(5, affine=False), nn.Conv2d(4, 5, 3)),
    (nn.BatchNorm3d(5), nn.Conv3d(4, 5, 3)),
    (nn.SyncBatchNorm(5), nn.Conv2d(4, 5, 3)),
]


@pytest.mark.parametrize(("norm", "layer"), CASES, ids=lambda m: type(m).__name__)
def test_rows_that_quantization_scaled_and_shifted_come_back(norm: nn.Module, layer: nn.Module) -> None:
    model = trained(norm, layer)
    scales = torch.tensor([0.5, 0.9, 1.0, 1.1, 2.0])
    state = {"0.weight": layer.weight.detach() * scales.view(-1, *[1] * (layer.weight.dim() - 1))}
    state["0.bias"] = layer.bias.detach() * scales + torch.tensor([0.3, 0, 0, 0, -1.0])
    new = renormalise(model, state, Batch((real(layer),)), micro_batch=64)
    assert set(new) == {"1.running_mean", "1.running_var"}
    moved = copy.deepcopy(model)
    moved.load_state_dict({**model.state_dict(), **state, **new})
    x = real(layer)
    with torch.no_grad():
        torch.testing.assert_close(moved(x), model(x), atol=2e-2, rtol=2e-2)


def test_shifts_come_back_in_units_of_the_deviation_whatever_the_inputs() -> None:
    layer = nn.Conv2d(4, 5, 1)
    model = trained(nn.BatchNorm2d(5), layer)
    shift = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0])
    noise = Batch((10 * torch.randn(64, 4, 6, 6),))
    dense = statistics(model, {}, noise)["1"]
    new = renormalise(model, {"0.bias": layer.bias.detach() + shift}, noise)
    deviations = (new["1.running_mean"] - model[1].running_mean) / model[1].running_var.sqrt()
    torch.testing.assert_close(deviations, (shift / dense[1].sqrt()).float(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(new["1.running_var"], model[1].running_var, atol=1e-4, rtol=1e-4)


def test_nothing_moved_nothing_changes() -> None:
    model = trained(nn.BatchNorm2d(5), nn.Conv2d(4, 5, 3))
    batch = Batch((torch.randn(16, 4, 8, 8),))
    for name, tensor in renormalise(model, {}, batch).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_dead_channels_keep_their_statistics() -> None:
    model = trained(nn.BatchNorm2d(5), nn.Conv2d(4, 5, 3, bias=False))
    state = {"0.weight": model[0].weight.detach().clone()}
    state["0.weight"][2] = 0
    new = renormalise(model, state, Batch((torch.randn(16, 4, 8, 8),)))
    assert new["1.running_var"][2] == model[1].running_var[2]
    assert new["1.running_mean"][2] == model[1].running_mean[2]
    assert all(torch.isfinite(t).all() for t in new.values())


def test_networks_without_batch_norm_and_norms_without_statistics_are_left_out() -> None:
    assert renormalise(nn.Linear(3, 2), {}, Batch((torch.randn(8, 3),))) == {}
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4))
    assert renormalise(model, {}, Batch((torch.randn(8, 3),))) == {}


def test_dense_statistics_can_be_given_and_a_norm_at_the_root_has_no_prefix() -> None:
    model = nn.BatchNorm1d(3)
    batch = Batch((2 + torch.randn(64, 3),))
    dense = statistics(model, {}, batch)
    assert renormalise(model, {}, batch, dense=dense) == {}  # statistics of a new module are of no data
    model.running_mean.fill_(1e-9)
    assert set(renormalise(model, {}, batch, dense=dense)) == {"running_mean", "running_var"}
    shifted = {"": (dense[""][0] - 1, dense[""][1])}
    new = renormalise(model, {}, batch, dense=shifted)
    torch.testing.assert_close(new["running_mean"], (1 / dense[""][1].sqrt()).float(), atol=1e-4, rtol=1e-4)


def test_half_precision_statistics_keep_their_type() -> None:
    model = trained(nn.BatchNorm2d(5), nn.Conv2d(4, 5, 3)).to(torch.bfloat16)
    new = renormalise(model, {}, Batch((torch.randn(16, 4, 8, 8),)))
    assert {t.dtype for t in new.values()} == {torch.bfloat16}


def test_only_the_models_own_names_stand_in() -> None:
    model = nn.Linear(3, 2)
    assert set(known(model, {"weight": torch.ones(2, 3), "stranger": torch.ones(1)})) == {"weight"}


def test_real_resnet_at_two_bits_without_data(shared: Path) -> None:
    """Plain rounding at 1.8 bits a weight loses many of the answers, this a few points."""
    import zoo

    images = zoo.cifar10("test", 300)
    model = zoo.resnet20()
    dense = zoo.top1(model, images)

    def score(**options: object) -> float:
        network = zoo.resnet20()
        network.load_state_dict({**network.state_dict(), **opq.compress(model, bits=1.8, **options).state_dict()})
        return zoo.top1(network, images)

    full, plain = score(), score(probe=False)
    assert full > dense - 6
    assert plain < dense - 4
    assert full > plain
    assert np.isfinite(full)
