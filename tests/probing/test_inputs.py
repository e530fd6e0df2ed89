"""Synthetic inputs: one for whatever the forward takes, the same for the same seed."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import opq
from opq.errors import OptionError, ProbeError, ProbeWarning
from opq.models.batch import Batch, as_batch
from opq.models.divided import gathered
from opq.probing import images
from opq.probing.inputs import synthetic
from opq.probing.making import TEXTS
from opq.sources.base import InputHint


class Keywords(nn.Module):
    """Takes token ids by keyword only, as Hugging Face models are called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(37, 8)
        self.config = SimpleNamespace(model_type="toy", vocab_size=37, max_position_embeddings=20)

    def forward(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        assert int(input_ids.max()) < 37
        assert input_ids.shape[1] <= 20
        return {"hidden": self.embed(input_ids) * attention_mask[..., None]}


class TakesDict(nn.Module):
    """Takes one dict, as sentence-transformers' modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.embed(features["input_ids"])


class Scaled(nn.Module):
    """Takes a factor beside what it looks at."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x * scale


def convolutional(side: int) -> nn.Sequential:
    """A network that takes one size of image only."""
    half = side // 2
    return nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * half * half, 3))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(7, 3), (64, 7)),
        (nn.Sequential(nn.Linear(784, 5)), (64, 784)),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 5)), (64, 784)),
        (nn.Sequential(nn.Conv1d(4, 8, 3), nn.AdaptiveAvgPool1d(1)), (64, 4, 8)),
        (nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1)), (64, 1, 8, 8, 8)),
        (convolutional(28), (64, 1, 28, 28)),
        (convolutional(64), (64, 1, 64, 64)),
        (nn.TransformerEncoderLayer(16, 2, batch_first=True), (64, 24, 16)),
        (nn.LSTM(5, 6, batch_first=True), (64, 160, 5)),
        (nn.GRU(5, 6), (160, 64, 5)),
        (nn.LSTMCell(5, 6), (64, 5)),
        (nn.ConvTranspose2d(6, 3, 4), (64, 6, 8, 8)),
        (nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 2)), (128, 24)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "x".join(map(str, value)),
)
def test_the_shape_that_the_first_layer_takes(model: nn.Module, shape: tuple[int, ...]) -> None:
    (x,) = synthetic(model).args
    assert tuple(x.shape) == shape
    model.eval()(x[:2])


def test_a_hint_says_what_the_model_does_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    (x,) = synthetic(model, hint=InputHint(modality="image", image_size=(3, 20, 30))).args
    assert x.shape == (64, 3, 20, 30)


def test_forwards_of_keywords_and_of_dicts() -> None:
    batch = synthetic(Keywords(), samples=8)
    assert set(batch.kwargs) == {"input_ids", "attention_mask"}
    assert batch.kwargs["input_ids"].shape == (8 * TEXTS, 18)
    (features,) = synthetic(TakesDict(), samples=8).args
    assert features["input_ids"].max() < 11


def test_a_constant_example_shows_a_shape_unless_others_are_beside_it() -> None:
    (x,) = synthetic(nn.Conv2d(1, 1, 3), example_inputs=torch.zeros(1, 1, 10, 10), samples=16).args
    assert (float(x.mean()), float(x.std())) == pytest.approx((0, 1), abs=0.2)
    (x, scale) = synthetic(Scaled(), example_inputs=(torch.randn(1, 1, 10, 10), torch.ones(1, 1, 1, 1))).args
    assert torch.equal(scale, torch.ones(64, 1, 1, 1))


def test_input_size_and_example_inputs_are_followed() -> None:
    model = nn.Conv2d(1, 1, 3)
    assert synthetic(model, input_size=(1, 9, 12)).args[0].shape == (64, 1, 9, 12)
    (x,) = synthetic(model, example_inputs=torch.full((1, 1, 10, 10), 5.0) + torch.randn(1, 1, 10, 10), samples=16).args
    assert x.shape == (16, 1, 10, 10)
    assert 4 < x.mean() < 6
    ids = torch.tensor([[3, 9, 4]])
    drawn = synthetic(Keywords(), example_inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)}).kwargs
    assert set(drawn["input_ids"].unique().tolist()) <= {3, 4, 9}


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    before = torch.get_rng_state()
    one, same, other = (synthetic(model, input_size=(3, 16, 16), seed=s).args[0] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_forward_that_nothing_fits_is_told_what_to_pass() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))

        def forward(self, x: torch.Tensor, graph: object) -> torch.Tensor:
            return x @ self.weight

    with pytest.raises(ProbeError, match=r"no synthetic input runs through Odd.*example_inputs="):
        synthetic(Odd())
    with pytest.raises(ProbeError, match="input_size"):
        synthetic(nn.Linear(3, 3), input_size=(4,))
    with pytest.raises(OptionError, match="samples="):
        synthetic(nn.Linear(3, 3), samples=1)


def test_what_nothing_runs_through_is_told_the_call_to_write() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(30, 8)

        def forward(self, input_ids: torch.Tensor, timestep: torch.Tensor, structure: Any) -> torch.Tensor:
            return self.table(input_ids) + structure.bias

    call = (
        'example_inputs={"input_ids": torch.randint(30, (2, 24)), "timestep": torch.randint(1000, (2,)), "structure": '
    )
    with pytest.raises(ProbeError) as caught:
        synthetic(Several())
    assert call in caught.value.remedy
    assert "got" in str(caught.value)


def test_two_samples_of_each_candidate_are_made_before_all_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = images.images

    def seen(samples: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        made.append(samples)
        return real(samples, shape, generator)

    monkeypatch.setattr(images, "images", seen)
    batch = synthetic(convolutional(28), samples=64)
    assert batch.args[0].shape == (64, 1, 28, 28)
    assert made[-1] == 64
    assert set(made[:-1]) == {2}
    (alone,) = synthetic(convolutional(28), input_size=(1, 28, 28), samples=64).args
    assert torch.equal(batch.args[0], alone), "sizes that did not run leave no trace"


def test_time_first_batches_are_divided_along_their_second_dimension() -> None:
    batch = synthetic(nn.GRU(5, 6), samples=8)
    assert (batch.dim, batch.samples) == (1, 8)
    parts = list(batch.parts(4))
    assert [tuple(p.args[0].shape) for p in parts] == [(160, 4, 5), (160, 4, 5)]
    assert torch.equal(torch.cat([p.args[0] for p in parts], 1), batch.args[0])


def test_an_example_whose_first_dimension_is_no_batch_is_imitated_as_it_is() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            assert edges.shape == (2, 9)
            return x[edges[0]] - self.mix(x)[edges[1]]

    x, edges = torch.randn(7, 4), torch.arange(18).view(2, 9) % 7
    batch = synthetic(Graph(), example_inputs=(x, edges))
    assert batch.dim is None
    assert batch.args[0].shape == (7, 4)
    assert torch.equal(batch.args[1], edges)
    assert [part.samples for part in batch.parts(2)] == [7]


class Attending(nn.Module):
    """Attention under a mask (L, L) that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, attn_mask=mask)[0]


class Stateful(nn.Module):
    """A recurrent layer that is given its first state, (layers, samples, width)."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, 2, batch_first=batch_first)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.lstm(x, (h, c))[0]


CAUSAL = torch.triu(torch.full((5, 5), -torch.inf), 1)
STATES = (torch.zeros(2, 4, 8), torch.zeros(2, 4, 8))


@pytest.mark.parametrize(
    ("model", "example", "dims"),
    [
        (Attending(), (torch.randn(4, 5, 16), CAUSAL), (0, None)),
        (Attending(), (torch.randn(5, 5, 16), CAUSAL), (0, None)),
        (Attending(), (torch.randn(1, 5, 16), CAUSAL), (0, None)),
        (Stateful(batch_first=True), (torch.randn(4, 7, 6), *STATES), (0, 1, 1)),
        (Stateful(batch_first=False), (torch.randn(7, 4, 6), *STATES), (1, 1, 1)),
        (Stateful(batch_first=False), (torch.randn(4, 4, 6), *STATES), (1, 1, 1)),
        (nn.Bilinear(3, 4, 5), (torch.randn(6, 3), torch.randn(6, 4)), (0, 0)),
    ],
)
@pytest.mark.parametrize("real", [False, True])
def test_what_counts_samples_and_what_they_share_is_found_out(
    model: nn.Module, example: tuple[torch.Tensor, ...], dims: tuple[int | None, ...], real: bool
) -> None:
    samples = example[0].shape[dims[0] or 0]
    batch = gathered(model, [example] * 3, 2 * samples) if real else synthetic(model, example_inputs=example, samples=9)
    assert batch.dims == dims
    assert batch.samples == (2 * samples if real else 9)
    for part in batch.parts(3):
        for t, whole, dim in zip(part.tensors, example, dims, strict=True):
            assert t.shape == tuple(part.samples if d == dim else n for d, n in enumerate(whole.shape))
            assert dim is not None or torch.equal(t, whole)
    told = opq.probe(model, calibration=[example]) if real else opq.probe(model, example_inputs=example)
    assert told.sensitivity


def test_time_is_no_dimension_of_samples() -> None:
    batch = synthetic(nn.LSTM(6, 8), example_inputs=torch.randn(7, 4, 6), samples=9)
    assert (batch.dim, batch.args[0].shape) == (1, (7, 9, 6))


def test_of_graphs_the_first_is_taken_and_of_other_masks_none() -> None:
    class Graph(nn.Linear):
        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            h = super().forward(x)
            return h.index_add(0, edges[1], h[edges[0]])

    graphs = [(torch.randn(7, 4), torch.arange(18).view(2, 9) % 7), (torch.randn(5, 4), torch.arange(8).view(2, 4) % 5)]
    with pytest.warns(ProbeWarning, match="cannot be divided into samples: only the first is used"):
        batch = gathered(Graph(4, 3), graphs, 64)
    assert batch.dim is None
    assert torch.equal(batch.args[0], graphs[0][0])
    with pytest.raises(OptionError, match=r"do not fit together.*\(5, 5\) that the samples of a batch share differs"):
        gathered(Attending(), [(torch.randn(4, 5, 16), CAUSAL), (torch.randn(4, 5, 16), 0 * CAUSAL.exp())], 64)


def test_who_passed_inputs_is_not_told_to_pass_them() -> None:
    with pytest.raises(ProbeError, match="Linear runs neither with example_inputs= nor with noise like it") as found:
        synthetic(nn.Linear(3, 3), example_inputs=torch.randn(2, 4))
    assert "Pass" not in found.value.remedy
    with pytest.raises(ProbeError, match="does not run with the inputs that were passed") as found:
        gathered(nn.Linear(3, 3), [torch.randn(2, 4)], 8)
    assert "Pass" not in found.value.remedy
    with pytest.raises(ProbeError, match="another input_size="):
        synthetic(nn.Linear(3, 3), input_size=(4,))


def test_a_forward_that_fails_leaves_the_model_as_it_was_for_the_next_candidate() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(4, 3), list[int]()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.append(len(x))
            if len(self.calls) > 1:
                raise RuntimeError("a second call")
            return self.layer(x.mean(1))

    model = Once()
    (x,) = synthetic(model, samples=6).args
    assert x.shape[0] == 6
    assert model.calls == []


def test_shapes_by_name() -> None:
    model = Keywords()
    sizes = {"input_ids": (7,), "attention_mask": (7,)}
    batch = synthetic(model, input_size=sizes, samples=4)
    assert batch.kwargs["input_ids"].shape == (8, 7)
    assert batch.kwargs["input_ids"].max() < 37
    assert torch.equal(batch.kwargs["attention_mask"], torch.ones(8, 7, dtype=torch.long))
    (x,) = synthetic(nn.Linear(3, 2), input_size={"input": (3,)}, samples=4).kwargs.values()
    assert x.shape == (4, 3)


def test_a_candidate_that_gives_nan_makes_room_for_the_next() -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * (torch.nan if x.dim() == 2 else 1)

    assert synthetic(Fragile(), samples=4).args[0].shape == (4, 24, 6)


def test_images_differ_from_one_another_and_have_mean_0_and_deviation_1() -> None:
    x = images.images(64, (3, 32, 32), torch.Generator().manual_seed(0))
    assert x.shape == (64, 3, 32, 32)
    assert abs(float(x.mean())) < 0.2
    assert 0.8 < float(x.std()) < 1.2
    contrast = x.std((1, 2, 3))
    assert float(contrast.max() / contrast.min()) > 3


def test_fractal_noise_has_the_spectrum_asked_for() -> None:
    exponent = torch.tensor([0.0, 1.0, 2.0])
    x = images.fractal(3, (50, 64), torch.Generator().manual_seed(0), exponent)
    power = torch.fft.rfft(x).abs().square().mean(1)[:, 1:-1]
    frequency = torch.fft.rfftfreq(64)[1:-1].log()
    slope = ((power.log() - power.log().mean(1, keepdim=True)) * (frequency - frequency.mean())).sum(1)
    slope = slope / (frequency - frequency.mean()).square().sum()
    torch.testing.assert_close(slope, -2 * exponent, atol=0.15, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 5, 64])
def test_parts_are_the_whole_and_never_one_sample(size: int) -> None:
    batch = Batch((torch.arange(7.0),), {"mask": torch.arange(14).view(7, 2), "flag": True})
    parts = list(batch.parts(size))
    assert torch.equal(torch.cat([p.args[0] for p in parts]), batch.args[0])
    assert torch.equal(torch.cat([p.kwargs["mask"] for p in parts]), batch.kwargs["mask"])
    assert all(2 <= p.samples <= max(size, 3) and p.kwargs["flag"] is True for p in parts)


def test_labels_and_other_members_of_a_tuple_are_left_out() -> None:
    x, y = torch.randn(4, 3), torch.zeros(4)
    assert len(as_batch(nn.Linear(3, 2), (x, y)).args) == 1
    assert len(as_batch(nn.Bilinear(3, 1, 2), (x, y[:, None], y)).args) == 2
    assert as_batch(Keywords(), {"input_ids": y, "attention_mask": y}).args == ()
    assert len(as_batch(TakesDict(), {"input_ids": y}).args) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_all_that_is_given_is_passed_to_a_traced_module_whose_arguments_nobody_knows() -> None:
    x, y = torch.randn(4, 3), torch.zeros(4)
    traced = torch.jit.trace(nn.Linear(3, 2), x)
    assert len(as_batch(traced, (x, y)).args) == 2
    assert set(as_batch(traced, {"input": x, "mask": y}).kwargs) == {"input", "mask"}


def test_calibration_batches_are_gathered_up_to_the_samples_wanted() -> None:
    batches = ((torch.full((4, 3), float(i)), torch.zeros(4)) for i in range(100))
    whole = gathered(nn.Linear(3, 2), batches, 10)
    assert whole.samples == 10
    assert whole.args[0][:, 0].tolist() == [0.0] * 4 + [1.0] * 4 + [2.0] * 2
    assert next(batches)[0][0, 0] == 3, "no more batches are taken than needed"


def test_calibration_that_cannot_be_used() -> None:
    with pytest.raises(OptionError, match="holds no batch"):
        gathered(nn.Linear(3, 2), [], 10)
    with pytest.raises(OptionError, match=r"do not fit together.*Pad all batches"):
        gathered(nn.Linear(3, 2), [torch.zeros(4, 3), torch.zeros(4, 5)], 10)


def test_the_mask_is_found_wherever_it_stands() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert Batch((), {"attention_mask": mask}).mask.sum() == 3
    assert Batch(({"attention_mask": mask},)).mask.sum() == 3
    assert Batch((mask,)).mask is None
    assert dataclasses.is_dataclass(Batch)
