"""Images that the network takes for something: how far they go, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import opq
from opq.errors import ProbeWarning
from opq.models.batch import Batch
from opq.models.observe import batch_statistics, untouched
from opq.probing import evidence
from opq.probing.gradients import sensitivity
from opq.probing.inputs import synthetic


class Classes(nn.Module):
    """Scores of images, in the shape that is asked for."""

    def __init__(self, *, norm: bool = True, pooled: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.head = nn.Conv2d(16, 10, 1)
        self.pooled = pooled

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.head(torch.relu(self.norm(self.conv(x))))
        return {"logits": x.mean((2, 3)) if self.pooled else x}


def images(samples: int = 12) -> Batch:
    return Batch((torch.randn((samples, 3, 12, 12), generator=torch.Generator().manual_seed(1)),))


def certainty(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad(), untouched(model), batch_statistics(model):
        found: torch.Tensor = batch(model)["logits"].softmax(-1).amax(-1)
    return found


def test_images_are_moved_until_the_network_is_sure() -> None:
    model, batch = Classes(), images()
    moved = evidence.decided(model, batch)
    before, after = certainty(model, batch), certainty(model, moved)
    assert bool((after > before).all())
    most = evidence.STEPS * evidence.STEP * float(batch.args[0].std())
    assert 0 < float((moved.args[0] - batch.args[0]).abs().max()) <= most * 1.001


def test_an_image_that_the_network_is_sure_of_stays() -> None:
    model, batch = Classes(), images()
    with torch.no_grad():
        model.head.bias[3] += 100
    assert torch.equal(evidence.decided(model, batch, steps=1).args[0], batch.args[0])
    with torch.no_grad():
        model.head.bias.zero_()
        model.head.weight *= 30
    sure = certainty(model, batch) >= evidence.SURE
    still = (evidence.decided(model, batch, steps=1).args[0] == batch.args[0]).flatten(1).all(1)
    assert bool(sure.any())
    assert not bool(sure.all())
    assert torch.equal(sure, still)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (Classes(norm=False), images()),
        (Classes(pooled=False), images()),
        (nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)), Batch((torch.randn(4, 3, 9),))),
        (Classes(), Batch((images().args[0],), {"extra": torch.ones(12)})),
    ],
    ids=["no BatchNorm", "a score a pixel", "no images", "more than images"],
)
def test_other_things_are_left_alone(model: nn.Module, batch: Batch) -> None:
    assert evidence.decided(model, batch) is batch


def test_the_probe_uses_them_and_the_model_comes_back_as_it_was() -> None:
    model = Classes().train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    found = opq.probe(model, input_size=(3, 12, 12), samples=8, micro_batch=4,
                      progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert seen == [(12, 32), (24, 32), (28, 32), (32, 32)]
    felt = sensitivity(model, found.batch, micro_batch=4)
    assert found.sensitivity == pytest.approx(felt, rel=1e-3, abs=1e-9)  # a bias before BatchNorm has rounding noise
    real = torch.randn(8, 3, 12, 12)
    assert torch.equal(opq.probe(model, calibration=[real]).batch.args[0], real)


def test_memory_is_bounded_for_a_network_that_its_user_froze_too() -> None:
    seen: list[int] = []
    model = Classes().requires_grad_(False)
    opq.probe(model, input_size=(3, 12, 12), samples=8, memory=100_000, progress=lambda done, total: seen.append(done))
    assert seen == [6, 12, 18, 24, 26, 28, 30, 32]


def test_images_stay_noise_where_the_network_cannot_be_differentiated_by_them() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

    class Odd(Classes):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return super().forward(Opaque.apply(x))

    model = Odd()
    with pytest.warns(ProbeWarning, match="stay plain noise: Odd has no gradient for them, NotImplementedError"):
        found = opq.probe(model, input_size=(3, 12, 12), samples=4)
    assert torch.equal(found.batch.args[0], synthetic(model, input_size=(3, 12, 12), samples=4).args[0])
    assert "conv.weight" in found.sensitivity
