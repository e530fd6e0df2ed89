"""Sensitivities against brute force, and a model that comes back as it was."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from states import same
from torch import nn

import opq
from opq.errors import OptionError, ProbeError, ProbeWarning
from opq.models.batch import Batch
from opq.models.observe import batch_statistics, untouched, watching
from opq.models.outputs import floating
from opq.probing import gradients
from opq.probing.gradients import Felt, at_once, differentiable, sensitivity
from opq.probing.moments import Moments
from opq.probing.renorm import statistics


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    extra: tuple[torch.Tensor, ...] | None = None
    count: int = 0


class Stateful(nn.Module):
    """All that could be left behind: dropout, BatchNorm, a counter, a frozen weight, a hook, a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    calls: torch.Tensor

    def forward(self, x: torch.Tensor) -> Output:
        self.calls += 1
        x = self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3))
        return Output(self.frozen(self.head(x + 0.01 * torch.randn_like(x))), (x,))


def stateful() -> Stateful:
    torch.manual_seed(0)
    model = Stateful()
    model.train()
    model.drop.eval()
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    model.norm.register_forward_hook(lambda module, args, output: None)
    return model


def remembered(model: nn.Module) -> dict[str, Any]:
    return {
        "state": copy.deepcopy(model.state_dict()),
        "modes": [m.training for m in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "ids": [id(p) for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()],
        "batchnorm": [(m.momentum, m.track_running_stats) for m in model.modules() if isinstance(m, nn.BatchNorm2d)],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
        "fast": torch.backends.mha.get_fastpath_enabled(),
    }


def test_the_model_comes_back_as_it_was() -> None:
    model = stateful()
    before = remembered(model)
    found = opq.probe(model, input_size=(3, 12, 12), samples=8, micro_batch=4)
    assert len(found.moments["conv.weight"].blocks) == 1
    found.renormalised({"conv.weight": model.conv.weight.detach() * 1.1})
    assert found.output_error({"conv.weight": model.conv.weight.detach() * 1.1}) < 1
    after = remembered(model)
    assert [k for k in before if not same(before[k], after[k])] == []


def test_the_model_comes_back_as_it_was_from_a_forward_that_fails() -> None:
    model = stateful()
    model.frozen = nn.Linear(5, 5)
    before = remembered(model)
    with pytest.raises(ProbeError, match="no synthetic input runs through Stateful"):
        opq.probe(model, input_size=(3, 12, 12))
    with pytest.raises(ProbeError, match="Stateful fails on the probe's inputs"):
        sensitivity(model, Batch((torch.ones(4, 3, 12, 12),)))
    after = remembered(model)
    assert [k for k in before if not same(before[k], after[k])] == []


def test_the_sensitivity_of_a_linear_layer_is_the_power_of_its_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4096, 6) * torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0, 1.0])
    found = sensitivity(nn.Linear(6, 5), Batch((x,)), micro_batch=512)
    # one backward pass per micro-batch is one draw of a chi-square per output: the mean over 8 x 5 x 6 of them
    assert found["weight"] == pytest.approx(float(x.square().mean()), rel=0.3)
    assert found["bias"] == pytest.approx(1.0, rel=0.5)


def test_the_sensitivity_is_the_diagonal_gauss_newton_term() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(512, 4)
    found = sensitivity(model, Batch((x,)), micro_batch=2)
    weight = model[0].weight

    def by_hand(sample: torch.Tensor) -> torch.Tensor:
        rows = torch.autograd.functional.jacobian(
            lambda w: torch.func.functional_call(model, {"0.weight": w}, (sample[None],))[0], weight
        )
        return rows.square().sum(0)

    exact = torch.stack([by_hand(sample) for sample in x[:128]]).mean()
    assert found["0.weight"] == pytest.approx(float(exact), rel=0.25)


def test_sensitivities_are_repeatable_and_change_with_the_seed() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 2))
    one, same_seed, other = (opq.probe(model, seed=s).sensitivity for s in (3, 3, 4))
    assert one == same_seed
    assert one != other


def test_alpha_and_tensors_that_the_outputs_never_felt() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "more": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
    model.forward = lambda x: model["more"](model["used"](x))
    found = opq.probe(model, input_size=(3,))
    names = ["used.weight", "more.weight", "unused.weight"]
    assert "unused.weight" not in found.sensitivity
    full, none = found.sensitivities(names, alpha=1.0), found.sensitivities(names, alpha=0.0)
    assert set(none.values()) == {1.0}
    assert full["used.weight"] == found.sensitivity["used.weight"]
    assert full["unused.weight"] in (full["used.weight"], full["more.weight"])
    assert found.sensitivities(names, alpha=0.5)["used.weight"] == pytest.approx(full["used.weight"] ** 0.5)


def test_tied_weights_are_felt_once_and_under_every_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    found = opq.probe(model).sensitivity
    assert found["0.weight"] == found["1.weight"] > 0


def test_padding_tells_nothing() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Embedding(20, 8), nn.Linear(8, 8)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.mix(self.embed(input_ids))

    torch.manual_seed(0)
    model = Padded()
    ids = torch.randint(1, 20, (16, 6))
    mask = torch.ones_like(ids)
    mask[:, 3:] = 0
    padded = opq.probe(model, calibration=[{"input_ids": ids * mask, "attention_mask": mask}], samples=16)
    short = opq.probe(model, calibration=[{"input_ids": ids[:, :3], "attention_mask": mask[:, :3]}], samples=16)
    torch.testing.assert_close(padded.moments["mix.weight"].blocks, short.moments["mix.weight"].blocks)
    embedding = torch.autograd.grad(model.mix(model.embed.weight).sum(), model.embed.weight)[0]
    assert padded.sensitivity["mix.weight"] == pytest.approx(short.sensitivity["mix.weight"], rel=0.5)
    assert embedding.shape == model.embed.weight.shape


@pytest.mark.parametrize("wrap", [list, tuple, lambda t: {"a": t[0], "b": t[1]}, lambda t: Output(t[0], tuple(t))])
def test_outputs_of_every_kind(wrap: Any) -> None:
    class Wrapped(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            y = super().forward(x)
            return wrap([y, y.argmax(1)])

    assert opq.probe(Wrapped(3, 4)).sensitivity["weight"] > 0
    assert len(floating(wrap([torch.ones(2), torch.ones(2).long()]))) in (1, 2)


def test_models_that_cannot_be_probed_say_so() -> None:
    class Integers(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(1)

    with pytest.warns(ProbeWarning, match="has no gradients: no output follows the weights smoothly"):
        assert opq.probe(Integers(3, 4)).sensitivity == {}
    with pytest.raises(ProbeError, match="lazy modules without weights"):
        opq.probe(nn.Sequential(nn.LazyLinear(3)), input_size=(4,))
    with pytest.raises(OptionError, match="holds no batch"):
        opq.probe(nn.Linear(3, 4), calibration=[])


def test_progress_counts_the_samples() -> None:
    seen: list[tuple[int, int]] = []
    opq.probe(nn.Linear(3, 4), samples=10, micro_batch=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 10), (6, 10), (10, 10)]


@pytest.mark.parametrize(("outputs", "looked_at"), [(300, 16), (100, 24), (3, 64)])
def test_with_many_outputs_a_quarter_of_the_samples_is_enough(outputs: int, looked_at: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(40, outputs), torch.randn(64, 40)
    x[looked_at:] = 1e3  # would be felt
    seen: list[tuple[int, int]] = []
    told = {"micro_batch": 8, "progress": lambda done, total: seen.append((done, total))}
    found = sensitivity(model, Batch((x,)), enough=16, **told)
    assert len(seen) == looked_at / 8
    assert seen[-1] == (64, 64)
    assert found["weight"] == pytest.approx(float(x[:looked_at].square().mean()), rel=0.3)
    assert sensitivity(model, Batch((x,)))["weight"] > 1e5 or looked_at == 64


def test_sensitivities_of_a_recurrent_network_are_measured_on_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measured(*_: object, enough: int, **__: object) -> Felt:
        asked.append(enough)
        return Felt({})

    monkeypatch.setattr("opq.probing.sensitivity.sensitivity", measured)
    for model in (nn.GRU(3, 4), nn.LSTMCell(3, 4), nn.Linear(3, 4)):
        opq.probe(model, samples=80)
    assert asked == [80, 80, 20]


def test_images_are_stored_pixel_by_pixel_unless_the_forward_refuses() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(400, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.conv(x).view(len(x), -1))

    class Free(Flat):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.conv(x).flatten(1))

    torch.manual_seed(0)
    strict, free = Flat(), Free()
    free.load_state_dict(strict.state_dict())
    one, other = (opq.probe(model, input_size=(3, 12, 12), samples=8) for model in (strict, free))
    assert one.batch.args[0].is_contiguous()
    assert other.batch.args[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one.batch.args[0], other.batch.args[0])
    assert one.sensitivity == pytest.approx(other.sensitivity, rel=2e-3)
    for name in ("conv.weight", "out.weight"):
        torch.testing.assert_close(one.moments[name].blocks, other.moments[name].blocks, atol=1e-5, rtol=1e-4)


def test_little_memory_makes_small_micro_batches() -> None:
    model, batch = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2)), Batch((torch.randn(10, 3),))
    seen: list[tuple[int, int]] = []
    sensitivity(model, batch, memory=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 10), (4, 10), (6, 10), (8, 10), (10, 10)]


def test_measuring_what_a_pass_keeps_leaves_nothing_of_it_behind() -> None:
    """`tanh` saves its own output, by which a graph could hold itself."""
    model, marks = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2)), list[weakref.ref[Any]]()

    def mark(module: nn.Module, given: Any, output: torch.Tensor) -> None:
        assert output.grad_fn is not None
        output.grad_fn.metadata["mark"] = held = nn.Module()
        marks.append(weakref.ref(held))

    model[1].register_forward_hook(mark)
    with differentiable(model):
        assert at_once(model, Batch((torch.randn(10, 3),)), (16, 2**20)) == 16
    gc.collect()
    assert [ref() for ref in marks] == [None]


def test_a_gradient_is_released_once_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = list[weakref.ref[torch.Tensor]](), list[int]()

    def pieces(gradient: torch.Tensor) -> Sequence[torch.Tensor]:
        before.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(gradient))
        return [gradient]

    monkeypatch.setattr(gradients, "_pieces", pieces)
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(6)))
    assert len(sensitivity(model, Batch((torch.randn(4, 8),)), micro_batch=4)) == 6
    assert before == [0, *[0] * 5]


def test_the_pass_of_the_moments_shows_statistics_and_outputs_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5)).eval()
    batch = Batch((torch.randn(12, 3, 10, 10),))
    dense = Moments(model, batch, micro_batch=4).dense
    mean, variance = statistics(model, {}, batch, micro_batch=4)["1"]
    torch.testing.assert_close(dense.statistics["1"], (mean, variance))
    x = model[0](batch.args[0]).detach().double()
    by_hand = torch.stack([part.var((0, 2, 3), correction=0) for part in x.split(4)]).mean(0)
    torch.testing.assert_close(variance, by_hand, rtol=1e-5, atol=0)
    with untouched(model), batch_statistics(model), torch.no_grad():
        torch.testing.assert_close(dense.outputs, [model(batch.args[0][:4])])


def test_batch_norms_without_statistics_or_of_timm_keep_their_way() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, affine=False)
    )
    found = opq.probe(model, input_size=(3, 10, 10), samples=8)
    assert found.sensitivity["0.weight"] > 0
    assert found.renormalised({}) == {}  # nothing to fit: a new module's statistics are of no data
    model[2].running_var.fill_(2.0)
    assert set(found.renormalised({})) == {"2.running_mean", "2.running_var"}


def test_watching_sees_keyword_inputs_and_lets_go() -> None:
    seen = []
    layer = nn.Linear(2, 2)
    with watching({"x": layer}, lambda name, module, given: seen.append((name, *(tuple(x.shape) for x in given)))):
        layer(input=torch.ones(3, 2))
    layer(torch.ones(5, 2))
    assert seen == [("x", (3, 2))]


def test_batch_statistics_hold_the_running_ones_still() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=None))
    before = copy.deepcopy(model.state_dict())
    with untouched(model), batch_statistics(model):
        out = model(5 + 2 * torch.randn(256, 3)).detach()
        assert out.mean().abs() < 1e-5
        assert float(out.std(correction=0)) == pytest.approx(1, abs=1e-3)
        assert same(before, model.state_dict())
    assert model[0].momentum is None


def test_a_real_transformer_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertModel(config).train()
    found = opq.probe(model, samples=4)
    assert found.sensitivity["embeddings.word_embeddings.weight"] > 0
    assert found.moments["encoder.layer.0.intermediate.dense.weight"].width == 16
    assert model.training


@contextlib.contextmanager
def of_doubles() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AROUND: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "doubles": of_doubles,
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
}


class Placed(nn.Module):
    """Makes a tensor of its own in the forward, as tables of positions are."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, dtype=dtype), nn.BatchNorm2d(8, dtype=dtype)
        self.head = nn.Linear(8, 20, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)) + torch.linspace(0, 0.1, 8))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_set_around_a_compression_changes_no_byte(around: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Placed(dtype)
    opq.compress(model, bits=9, input_size=(3, 8, 8)).save(tmp_path / "plain.opq.safetensors")
    with AROUND[around]():
        opq.compress(model, bits=9, input_size=(3, 8, 8)).save(tmp_path / "around.opq.safetensors")
        assert around != "doubles" or torch.get_default_dtype() == torch.float64
        assert torch.is_autocast_enabled("cpu") == (around == "autocast")
        assert torch.is_inference_mode_enabled() == (around == "inference")
    plain, other = ((tmp_path / f"{name}.opq.safetensors").read_bytes() for name in ("plain", "around"))
    assert plain == other


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 100, 4))
    here = opq.probe(model, input_size=(3, 12, 12), samples=16)
    there = opq.probe(model.cuda(), input_size=(3, 12, 12), samples=16)
    for name, a in here.sensitivity.items():
        assert there.sensitivity[name] == pytest.approx(a, rel=1e-3)


def test_squares_of_half_precision_gradients_that_its_range_cannot_hold_are_finite_by_row_too() -> None:
    torch.manual_seed(0)
    last = nn.Linear(256, 100)
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), last).half()
    with torch.no_grad():
        last.weight *= 6000
    felt = opq.probe(model, input_size=(128,))
    assert felt.sensitivity["0.weight"] > 65504  # the largest number of float16
    assert felt.rows["0.weight"].mean() == pytest.approx(felt.sensitivity["0.weight"], rel=1e-2)
    assert opq.compress(model, bits=3.5, input_size=(128,)).bits <= 3.5
