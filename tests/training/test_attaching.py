"""attach, detach and collect: masks and steps fixed, everything else as it was."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from training_helpers import Tied, learnable_batches, mlp, plan_of

import opq
from opq import demo
from opq.api import compress
from opq.errors import AttachError, MismatchError, OffCodebookError, OptionError
from opq.file.loading import load
from opq.models.attachment import is_attached
from opq.quantizing.grid import dequantize, quantize
from opq.training import kernel
from opq.training.attaching import attach, detach
from opq.training.collecting import collect
from opq.training.finetuning import finetune
from opq.training.fixed_grid import FixedGrid
from opq.training.proving import dense_state_dict, proved_codes


@pytest.fixture(autouse=True, scope="module", params=["torch", "native"])
def _operations(request: pytest.FixtureRequest) -> None:
    """Everything holds for torch's own operations and for the compiled kernel."""
    torch.compiler.reset()  # it compiles a function of many models no more than eight times
    if request.param == "native":
        request.getfixturevalue("kernel")


def trained(model: nn.Module, steps: int = 5, **options: float) -> torch.optim.Adam:
    """A few steps of Adam on the model, with weight decay."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=0.1, **options)
    for x, y in learnable_batches(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return optimizer


Snapshot = list[tuple[type, list[tuple[str, int, torch.Tensor]]]]


def snapshot(model: nn.Module) -> Snapshot:
    return [
        (type(m), [(n, id(p), p.detach().clone()) for n, p in m.state_dict(keep_vars=True).items()])
        for m in model.modules()
    ]


def assert_same(one: Snapshot, other: Snapshot) -> None:
    assert [kind for kind, _ in one] == [kind for kind, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert [(n, i) for n, i, _ in a] == [(n, i) for n, i, _ in b]
        assert all(torch.equal(s, t) for (_, _, s), (_, _, t) in zip(a, b, strict=True))


# --- forward and backward --------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99),
    step=st.floats(1e-4, 10),
    theta=st.floats(0.5, 0.95),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_forward_pass_sees_the_plans_quantizer(seed: int, step: float, theta: float, dtype: torch.dtype) -> None:
    torch.manual_seed(seed)
    layer = nn.Linear(7, 5).to(dtype)
    plan = plan_of(layer, step=step, theta=theta)
    wanted = dequantize(quantize(layer.weight, plan["weight"]), plan["weight"], dtype)
    attach(layer, plan)
    eps = torch.finfo(dtype if dtype != torch.float64 else torch.float32).eps
    assert torch.allclose(layer.weight, wanted, rtol=eps, atol=0)
    assert torch.equal(layer.weight != 0, wanted != 0)


def test_a_kept_weight_falls_to_zero_and_comes_back_and_a_pruned_one_never_wakes() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data[:] = torch.tensor([[0.3, 0.3, -0.3, 0.01]])
    plan = plan_of(layer, step=0.2)
    attach(layer, plan)
    plain = layer.parametrizations.weight.original
    plain.data[:] = torch.tensor([[0.001, -0.16, -0.9, 5.0]])
    assert torch.allclose(layer.weight, torch.tensor([[0.0, -0.2, -0.8, 0.0]]))
    layer(torch.ones(1, 4)).sum().backward()
    assert torch.equal(plain.grad, torch.tensor([[1.0, 1.0, 1.0, 0.0]]))
    plain.data[0, 0] = 0.41
    assert torch.allclose(layer.weight, torch.tensor([[0.4, -0.2, -0.8, 0.0]]))


def test_a_threshold_below_half_a_step_holds_while_weights_move() -> None:
    """The paper's quantizer: pruned by a threshold of its own, rounded to the nearest multiple, never to zero."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data[:] = torch.tensor([[0.07, -0.08, 0.3, 0.01]])
    plan = plan_of(layer, step=0.2)
    plan = plan.replace(tensors=tuple(dataclasses.replace(t, threshold=0.05, rounding=0.5) for t in plan))
    attach(layer, plan)
    assert torch.allclose(layer.weight, torch.tensor([[0.2, -0.2, 0.4, 0.0]]))
    layer.parametrizations.weight.original.data[:] = torch.tensor([[0.04, 0.06, 0.31, 5.0]])
    assert torch.allclose(layer.weight, torch.tensor([[0.0, 0.2, 0.4, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_value_changes_where_weights_stand_on_the_edge_of_the_dead_zone(dtype: torch.dtype) -> None:
    for step, theta in itertools.product((0.1, 0.3, 0.7, 1.1e-3), (0.54, 0.58, 0.62, 0.66, 0.7, 0.74)):
        layer = nn.Linear(3, 64, bias=False)
        edge = torch.tensor(theta * step, dtype=torch.float64).float()
        around = torch.stack([edge, torch.nextafter(edge, edge + 1), torch.nextafter(edge, edge - 1)])
        layer.weight.data = (around.repeat(64, 1) * torch.tensor([1.0, -1.0]).repeat(32)[:, None]).to(dtype)
        plan = plan_of(layer, step=step, theta=theta)
        wanted = dequantize(quantize(layer.weight, plan["weight"]), plan["weight"], dtype)
        attach(layer, plan)
        assert torch.equal(layer.weight != 0, wanted != 0)


@pytest.mark.parametrize("theta", [0.5, 0.625, 0.75])
def test_no_value_changes_where_weights_stand_on_the_edge_of_any_level(theta: float) -> None:
    """The plan rounds up there; the module's pass rounds to the even level, unless attach moves them."""
    layer = nn.Linear(8, 1, bias=False)
    levels = torch.tensor([[1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0]])
    layer.weight.data = 0.25 * (levels - (1 - theta) * levels.sign())
    attach(layer, plan_of(layer, step=0.25, theta=theta))
    assert torch.equal(layer.weight, 0.25 * levels)


@pytest.mark.parametrize("rounding", [0.3, 0.5, 0.7])
def test_every_rounding_is_the_plans(rounding: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(50, 40, bias=False)
    plan = plan_of(layer, step=0.02)
    tensors = (dataclasses.replace(t, threshold=rounding * t.step, rounding=rounding) for t in plan)
    plan = plan.replace(tensors=tuple(tensors))
    wanted = dequantize(quantize(layer.weight, plan["weight"]), plan["weight"])
    attach(layer, plan)
    assert torch.allclose(layer.weight, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_value_changes_where_codes_are_large(dtype: torch.dtype) -> None:
    """Beyond 256 steps bfloat16 does not hold every level."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False).to(dtype)
    before = layer.weight.detach().clone()
    attach(layer, plan_of(layer, step=1e-4))
    changed = layer.parametrizations.weight.original != before
    assert int(changed.sum()) <= 2


def test_a_code_near_the_largest_is_clamped_as_it_grows() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data[:] = torch.tensor([[30.0, 0.001]])
    plan = plan_of(layer, step=0.001)
    attach(layer, plan)
    layer.parametrizations.weight.original.data[0, 0] = 90.0
    assert torch.allclose(layer.weight, torch.tensor([[32.767, 0.001]]))
    assert int(proved_codes(layer, plan)["weight"][0, 0]) == 2**15 - 1


def test_another_parametrization_on_top_and_torchs_cache_are_heeded() -> None:
    class Twice(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return 2 * w

    layer = nn.Linear(6, 5)
    attach(layer, plan_of(layer))
    seen = layer.weight
    with torch.nn.utils.parametrize.cached():
        assert layer.weight is layer.weight
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Twice())
    assert torch.equal(layer.weight, 2 * seen)


def test_the_gradient_is_straight_through_on_kept_weights_and_zero_on_pruned_ones() -> None:
    model = mlp()
    attach(model, plan_of(model))
    x, y = learnable_batches(1)[0]
    seen = model[0].weight.detach().requires_grad_()
    loss = functional.cross_entropy(model[2](functional.relu(functional.linear(x, seen, model[0].bias))), y)
    (wanted,) = torch.autograd.grad(loss, seen)
    functional.cross_entropy(model(x), y).backward()
    got = model[0].parametrizations.weight.original.grad
    mask = model[0].parametrizations.weight[0].kept
    assert torch.equal(got, wanted * mask)
    assert 0 < int(mask.sum()) < mask.numel()
    assert not got[~mask].any()


def test_sparse_gradients_of_an_embedding_are_masked_and_stay_sparse() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(6, 8, sparse=True)
    attach(table, plan_of(table, step=0.5))
    table(torch.tensor([1, 4, 1])).sum().backward()
    got, mask = table.parametrizations.weight.original.grad, table.parametrizations.weight[0].kept
    assert got.is_sparse
    assert torch.equal(got.to_dense(), mask * torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0, 0.0])[:, None])
    assert not mask[1].all()


def test_adams_moments_of_pruned_weights_stay_zero_and_the_network_does_not_feel_their_decay() -> None:
    model = mlp()
    plan = plan_of(model)
    attach(model, plan)
    before = proved_codes(model, plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    for x, y in learnable_batches(5):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for layer in (model[0], model[2]):
        pruned = ~layer.parametrizations.weight[0].kept
        moments = optimizer.state[layer.parametrizations.weight.original]
        assert not moments["exp_avg"][pruned].any()
        assert not moments["exp_avg_sq"][pruned].any()
        assert not layer.weight[pruned].any()
    after = proved_codes(model, plan)
    assert not any(bool(after[n][before[n] == 0].any()) for n in before)
    assert any(not torch.equal(after[n], before[n]) for n in before)


def test_no_mask_or_code_is_stored_twice() -> None:
    model = Tied()
    attach(model, plan_of(model))
    assert [n for n, _ in model.named_buffers()] == ["embed.parametrizations.weight.0.mask"]
    mask = next(iter(model.buffers()))
    assert mask.dtype == (torch.float32 if kernel.operator() is None else torch.uint8)
    assert mask.shape == (20, 8)
    assert len(list(model.parameters())) == 1
    tensors = [t for m in model.modules() for t in [*vars(m).values()] if isinstance(t, torch.Tensor)]
    assert tensors == []


@pytest.mark.parametrize("theta", [0.5, 0.62, 0.9])
def test_a_compiled_model_trains_to_the_same_weights(theta: float) -> None:
    model = mlp()
    plan = plan_of(model, theta=theta)
    one, other = attach(copy.deepcopy(model), plan), attach(copy.deepcopy(model), plan)
    trained(one)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)  # traces and differentiates; needs no compiler
    x = torch.randn(7, 12)
    trained(compiled)
    assert torch.equal(one(x), other(x))
    assert torch.equal(compiled(x), other(x))
    codes, wanted = proved_codes(other, plan), proved_codes(one, plan)
    assert all(torch.equal(codes[name], wanted[name]) for name in wanted)


def test_autocast_sees_the_quantized_weights() -> None:
    model = mlp()
    attach(model, plan_of(model))
    with torch.autocast("cpu", torch.bfloat16):
        loss = functional.cross_entropy(model(learnable_batches(1)[0][0]).float(), learnable_batches(1)[0][1])
    loss.backward()
    original = model[0].parametrizations.weight.original
    assert original.dtype == original.grad.dtype == torch.float32
    assert not original.grad[~model[0].parametrizations.weight[0].kept].any()


# --- surgery is reversible -------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [mlp, lambda: mlp(norm=True), Tied, lambda: nn.LSTM(4, 6), lambda: nn.MultiheadAttention(8, 2),
     lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3)), lambda: nn.Bilinear(2, 3, 4)],
    ids=["mlp", "batchnorm", "tied", "lstm", "attention", "convolutions", "bilinear"],
)  # fmt: skip
def test_detach_restores_classes_values_identities_and_order(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = snapshot(model)
    attach(model, plan_of(model))
    assert is_attached(model)
    detach(model)
    assert_same(snapshot(model), before)
    assert not is_attached(model)
    assert not any(k.startswith("_opq") for m in model.modules() for k in vars(m))


def test_an_optimizer_made_before_goes_on_after_attach_and_after_detach() -> None:
    model = mlp()
    plan = plan_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for change in (lambda: None, lambda: attach(model, plan), lambda: detach(model)):
        change()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        functional.cross_entropy(model(learnable_batches(1)[0][0]), learnable_batches(1)[0][1]).backward()
        optimizer.step()
        assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_detach_bakes_what_the_forward_pass_saw() -> None:
    model = mlp()
    plan = plan_of(model)
    attach(model, plan)
    trained(model)
    x = learnable_batches(1)[0][0]
    seen, codes, state = model(x), proved_codes(model, plan), dense_state_dict(model)
    identities = {id(p) for p in model.parameters()}
    detach(model, bake=True)
    assert torch.allclose(model(x), seen, rtol=1e-6)
    assert {id(p) for p in model.parameters()} == identities
    assert all(torch.equal(a, b) for a, b in zip(proved_codes(model, plan).values(), codes.values(), strict=True))
    assert list(state) == list(model.state_dict())
    assert all(torch.allclose(state[n], t, rtol=1e-6) for n, t in model.state_dict().items())


def test_recurrent_layers_compute_with_the_quantized_weights() -> None:
    torch.manual_seed(0)
    lstm, x = nn.LSTM(4, 6, num_layers=2), torch.randn(5, 2, 4)
    baked = copy.deepcopy(lstm)
    plan = plan_of(lstm)
    detach(attach(baked, plan), bake=True)
    assert not torch.allclose(baked(x)[0], lstm(x)[0])
    attach(lstm, plan)
    assert torch.allclose(lstm(x)[0], baked(x)[0], atol=1e-6)
    lstm(x)[0].sum().backward()
    assert all(p.grad is not None for p in lstm.parameters())
    assert torch.equal(copy.deepcopy(lstm)(x)[0], lstm(x)[0])


# --- a compression result --------------------------------------------------------------------


def test_training_starts_from_a_results_codes_and_kept_tensors() -> None:
    model = mlp(norm=True)
    result = compress(model, bits=40, probe=False)
    model[0].weight.data.add_(0.01)
    attach(model, result)
    assert all(torch.equal(q, result.codes[n]) for n, q in proved_codes(model, result).items())
    state = result.state_dict()
    assert all(torch.allclose(t, state[n], rtol=1e-6) for n, t in dense_state_dict(model).items())
    assert torch.equal(model[0].parametrizations.weight[0].kept, result.codes["0.weight"] != 0)


# --- proof -----------------------------------------------------------------------------------


def test_a_trained_network_does_not_claim_to_rest_on_a_probe_or_the_weights_alone() -> None:
    model = demo.load()
    plan = opq.solve(model, bits=3)
    assert "probe" in plan.basis
    result = collect(opq.attach(model, plan), plan)
    assert result.basis == "training of its weights under a plan"
    assert result.reader.basis == "the weights alone, or training"


def test_collect_names_the_tensor_that_left_its_codebook() -> None:
    model = mlp()
    plan = plan_of(model)
    detach(attach(model, plan), bake=True)
    model[2].weight.data[1, 2] += 0.01
    with pytest.raises(
        OffCodebookError,
        match=r"'2.weight': 1 of 64 weights are off the codebook: got .*, wanted multiples of 0.1",
    ):
        proved_codes(model, plan)


def test_collect_finds_a_changed_mask_and_a_changed_step() -> None:
    model = mlp()
    plan = plan_of(model)
    attach(model, plan)
    with pytest.raises(OffCodebookError, match=r"'0.weight': step and rounding are not the plan's"):
        proved_codes(model, plan_of(model_like(), step=0.2))
    grid = model[2].parametrizations.weight[0]
    grid.mask[0] = 1 - grid.mask[0]
    with pytest.raises(OffCodebookError, match=r"'2.weight': the mask changed after it was attached"):
        proved_codes(model, plan)


def model_like() -> nn.Module:
    return mlp()


def test_collect_compares_the_mask_with_the_results() -> None:
    model = mlp()
    model[0].weight.data[0, 0] = 0
    result = compress(model, bits=40, probe=False)
    detach(attach(model, result), bake=True)
    pruned = (model[0].weight == 0).nonzero()[0]
    model[0].weight.data[tuple(pruned)] = result.plan["0.weight"].step
    with pytest.raises(
        OffCodebookError, match=r"'0.weight': 1 pruned weights are not zero by the mask of the compression result"
    ):
        proved_codes(model, result)


# --- copies ----------------------------------------------------------------------------------


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_torch(model: nn.Module) -> nn.Module:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make", [mlp, Tied, lambda: nn.LSTM(12, 4)], ids=["mlp", "tied", "lstm"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch])
def test_copies_stand_alone(make: Callable[[], nn.Module], duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = make()
    plan = plan_of(model)
    attach(model, plan)
    x = torch.arange(6) if isinstance(model, Tied) else learnable_batches(1)[0][0]
    wanted = model(x)
    other = duplicate(model)
    assert torch.equal(first(other(x)), first(wanted))
    detach(other)
    assert torch.equal(first(model(x)), first(wanted))
    attach(other, plan)
    assert torch.equal(first(other(x)), first(wanted))
    assert {id(p) for p in other.parameters()}.isdisjoint(id(p) for p in model.parameters())


def first(output: object) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output  # type: ignore[return-value]


def test_a_state_dict_moves_masks_along() -> None:
    model, other = mlp(), mlp(seed=7)
    plan = plan_of(model)
    attach(model, plan)
    attach(other, plan)
    trained(model)
    other.load_state_dict(model.state_dict())
    x = learnable_batches(1)[0][0]
    assert torch.equal(other(x), model(x))


# --- bad input -------------------------------------------------------------------------------


def test_attaching_twice_and_detaching_what_was_never_attached() -> None:
    model = mlp()
    with pytest.raises(AttachError, match="no compression module is attached"):
        detach(model)
    attach(model, plan_of(model))
    with pytest.raises(AttachError, match="is attached already"):
        attach(model, plan_of(mlp()))


def test_a_plan_for_another_model_lists_names_and_shapes_and_touches_nothing() -> None:
    model, plan = mlp(), plan_of(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(16, 4), nn.Linear(2, 2)))
    before = snapshot(model)
    with pytest.raises(MismatchError) as error:
        attach(model, plan)
    text = str(error.value)
    assert "0.weight is [16, 12], planned [8, 12]" in text
    assert "3.weight [2, 2] is not in the model" in text
    assert_same(snapshot(model), before)
    with pytest.raises(MismatchError, match=r"1.running_mean \[16\] is not in the plan"):
        attach(mlp(norm=True), plan_of(mlp()))


def test_ties_that_differ_between_plan_and_model() -> None:
    tied, untied = Tied(), Tied()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    with pytest.raises(MismatchError, match=r"head.weight are two tensors in the model, one in the plan"):
        attach(untied, plan_of(tied))
    with pytest.raises(MismatchError, match=r"head.weight are one tensor in the model, two in the plan"):
        attach(tied, plan_of(untied))


def test_frozen_parameters_stay_frozen_and_are_quantized() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    plan = plan_of(model)
    attach(model, plan)
    trained_codes = proved_codes(model, plan)["0.weight"]
    loss = functional.cross_entropy(model(learnable_batches(1)[0][0]), learnable_batches(1)[0][1])
    loss.backward()
    assert model[0].parametrizations.weight.original.grad is None
    assert not model[0].parametrizations.weight.original.requires_grad
    assert int((trained_codes == 0).sum()) > 0


def test_buffers_can_be_compressed() -> None:
    model = nn.Linear(3, 3)
    model.register_buffer("table", torch.randn(4, 5))
    plan = plan_of(model)
    before = snapshot(model)
    attach(model, plan)
    assert set(proved_codes(model, plan)) == {"weight", "table"}
    assert isinstance(model.parametrizations.table[0], FixedGrid)
    detach(model)
    assert_same(snapshot(model), before)


def test_a_stacked_parametrization_is_not_torn_off() -> None:
    model = mlp()
    attach(model, plan_of(model))
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
    with pytest.raises(AttachError, match="another parametrization on top"):
        detach(model)


def test_a_script_module_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # by newer ones of torch, in a category that changed
        script = torch.jit.trace(mlp(), torch.zeros(1, 12))
    with pytest.raises(AttachError, match="ScriptModule"):
        attach(script, plan_of(mlp()))


def test_a_step_too_small_is_said_and_nothing_is_attached() -> None:
    model = mlp()
    with pytest.raises(OptionError, match="step too small"):
        attach(model, plan_of(model, step=1e-9))
    assert not is_attached(model)


def test_a_codebook_that_is_no_grid_is_refused() -> None:
    model = mlp()
    plan = plan_of(model)
    table = (dataclasses.replace(t, codebook="table") if t.name == "2.weight" else t for t in plan)
    with pytest.raises(OptionError, match=r"tensor '2.weight' has no grid to train on: got table"):
        attach(model, plan.replace(tensors=tuple(table)))
    assert not is_attached(model)


# --- wrapped models --------------------------------------------------------------------------


def compiled(model: nn.Module) -> nn.Module:
    """Traced and differentiated, which needs no compiler of C++."""
    return torch.compile(model, backend="aot_eager")  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel])
def test_a_wrapped_model_is_the_model_inside(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    model, data = mlp(), list(learnable_batches(4))
    result = compress(model, bits=10, probe=False, trellis=False)
    assert compress(wrap(model), bits=10, probe=False, trellis=False).packed.parts == result.packed.parts
    result.save(tmp_path / "f.opq.safetensors")
    wrapped = wrap(mlp(seed=1))
    assert load(tmp_path / "f.opq.safetensors", wrapped) is wrapped
    x = data[0][0]
    expected = mlp()
    expected.load_state_dict(result.state_dict())
    assert torch.equal(wrapped(x), expected(x))
    ways = [finetune(own, result, data, epochs=2).result for own in (mlp(), wrap(mlp()))]
    assert ways[0].packed.parts == ways[1].packed.parts


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel])
def test_attach_collect_and_detach_reach_through_a_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, wrapped = mlp(), wrap(mlp())
    plan = plan_of(plain)
    x = torch.randn(7, 12)
    before = wrapped(x)
    attach(plain, plan)
    assert attach(wrapped, plan) is wrapped
    assert torch.equal(wrapped(x), plain(x))
    trained(plain)
    trained(wrapped)
    assert collect(wrapped, plan).packed.parts == collect(plain, plan).packed.parts
    detach(wrapped, bake=True)
    assert torch.equal(wrapped(x), plain(x))
    assert not torch.equal(wrapped(x), before)


@pytest.mark.parametrize("call", [opq.compress, opq.solve, opq.open_source, opq.probe])
def test_an_attached_model_is_refused_with_the_way_out(call: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    opq.attach(model, opq.solve(model, bits=6, probe=False))
    options = {"bits": 6} if call in (opq.compress, opq.solve) else {}
    outer = nn.ModuleDict({"inner": model})
    for network in (model, outer):
        with pytest.raises(AttachError, match=r"is attached to .* without it.* opq.detach\(model\), with bake=True"):
            call(network, **options)
    opq.detach(model, bake=True)
    assert opq.compress(model, bits=6, probe=False).bits <= 6
