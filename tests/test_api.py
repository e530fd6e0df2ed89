"""The one call, end to end, on small models and on the real networks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import opq
from opq.errors import (
    BudgetError,
    EmptyModelError,
    InfeasibleError,
    MismatchError,
    NonFiniteError,
    OptionError,
    PatternError,
    SourceError,
)

Shapes = dict[str, tuple[int, ...]]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def laplacian(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random Laplacian tensors whose scales differ."""
    g = np.random.default_rng(seed)
    scales = {name: 0.01 * 3.0**i for i, name in enumerate(shapes)}
    return {n: torch.from_numpy(g.laplace(0, scales[n], s)).to(dtype) for n, s in shapes.items()}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return laplacian({"a": (256, 128), "b": (64, 32, 3, 3), "c": (100, 300)})


@pytest.mark.parametrize("method", ["rd", "opq"])
@pytest.mark.parametrize("budget", [{"bits": 4}, {"bits": 2}, {"bits": 1}, {"ratio": 12}, {"size": 30_000}])
def test_the_file_meets_the_budget(
    weights: dict[str, torch.Tensor], method: str, budget: dict[str, float], tmp_path: Path
) -> None:
    result = opq.compress(weights, method=method, **budget)
    ((kind, value),) = budget.items()
    allowed = {"bits": value * result.elements / 8, "ratio": 4 * result.elements / value, "size": value}[kind]
    assert 0.995 * allowed <= result.bytes <= allowed
    assert abs(result.plan.predicted_bytes / result.bytes - 1) < 0.005
    assert result.plan.residual <= 1e-6
    result.save(tmp_path / "w.opq.safetensors")
    assert os.path.getsize(tmp_path / "w.opq.safetensors") == result.bytes
    loaded = opq.load_state_dict(tmp_path / "w.opq.safetensors")
    assert list(loaded) == list(result.state_dict())
    for name, tensor in result.state_dict().items():
        assert torch.equal(loaded[name], tensor)
        assert torch.equal(loaded[name], (result.codes[name].double() * result.plan[name].step).float())


def test_same_input_same_bytes(weights: dict[str, torch.Tensor]) -> None:
    one, two = (opq.compress(weights, bits=3).packed.parts for _ in range(2))
    assert one == two


def test_the_source_is_left_alone(weights: dict[str, torch.Tensor]) -> None:
    before = {n: t.clone() for n, t in weights.items()}
    opq.compress(weights, bits=2)
    assert all(torch.equal(weights[n], before[n]) for n in before)


def test_more_bits_less_error(weights: dict[str, torch.Tensor]) -> None:
    errors = []
    for bits in (1, 1.5, 2, 3, 4.5):
        state = opq.compress(weights, bits=bits, sensitivities=dict.fromkeys(weights, 1.0)).state_dict()
        errors.append(sum(float((state[n] - w).square().sum()) for n, w in weights.items()))
    assert errors == sorted(errors, reverse=True)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**20), st.lists(st.integers(13, 112).map(lambda k: k / 16), min_size=2, max_size=4))
def test_solve_is_monotone_in_the_budget(seed: int, bits: list[float]) -> None:
    source = laplacian({"a": (96, 64), "b": (200, 30)}, seed)
    plans = [opq.solve(source, bits=b) for b in sorted(bits)]
    multipliers = [p.multiplier for p in plans]
    assert multipliers == sorted(multipliers, reverse=True)
    for name in source:
        rates = [p[name].rate for p in plans]
        assert rates == sorted(rates)


def test_solve_predicts_what_compress_does(weights: dict[str, torch.Tensor]) -> None:
    plan, result = opq.solve(weights, bits=3), opq.compress(weights, bits=3, trellis=False)
    assert abs(plan.predicted_bytes / result.bytes - 1) < 0.01
    for name in weights:
        assert abs(plan[name].step / result.plan[name].step - 1) < 0.02


def test_rd_beats_the_paper_at_equal_bytes(weights: dict[str, torch.Tensor]) -> None:
    alike = dict.fromkeys(weights, 1.0)

    def error(method: str) -> float:
        state = opq.compress(weights, bits=2, method=method, sensitivities=alike).state_dict()
        return sum(float((state[n] - w).square().sum()) for n, w in weights.items())

    assert error("rd") < error("opq")


def test_the_paper_with_sparsity_and_bits_per_kept_weight(weights: dict[str, torch.Tensor]) -> None:
    result = opq.compress(weights, method="opq", sparsity=0.9, bits=3)
    assert result.nominal.sparsity == pytest.approx(0.9, abs=2e-3)
    assert result.nominal.bits_per_kept == pytest.approx(3, abs=0.05)
    assert result.nominal.ratio == pytest.approx(32 / (0.1 * 3), rel=0.03)
    assert result.ratio < result.nominal.ratio
    assert abs(result.plan.predicted_bytes / result.bytes - 1) < 0.01
    beta = {t.threshold for t in result.plan.compressed}
    assert max(beta) == pytest.approx(min(beta)), "a_i = 1: one threshold for the network"
    kept = {n: w.abs() >= result.plan[n].threshold for n, w in weights.items()}
    assert all(torch.equal(result.codes[n] != 0, kept[n]) for n in weights)


def test_sensitivities_move_bits(weights: dict[str, torch.Tensor]) -> None:
    even, odd = (opq.solve(weights, bits=3, sensitivities=a) for a in ({"a": 1.0}, {"a": 100.0}))
    assert odd["a"].rate > even["a"].rate + 1
    assert odd["c"].rate < even["c"].rate


def test_overrides_hold(weights: dict[str, torch.Tensor]) -> None:
    result = opq.compress(weights, bits=3, overrides={"a": {"bits": 5}, "b": {"max_bits": 1.5}, "c": {"min_bits": 1}})
    assert result.plan["a"].rate == pytest.approx(5, abs=1e-6)
    assert result.plan["b"].rate <= 1.5 + 1e-9
    kept = opq.compress(weights, bits=12, overrides={"b": "keep"})
    assert kept.plan["b"].action == "keep"
    assert kept.plan["b"].reason == "override 'b'"


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["laplace", "zeros", "equal", "outlier"]),
    transpose=st.booleans(),
)
def test_every_shape_and_kind_survives(shape: tuple[int, ...], dtype: torch.dtype, kind: str, transpose: bool) -> None:
    w = laplacian({"w": shape}, dtype=dtype)["w"]
    if kind == "zeros":
        w = torch.zeros_like(w)
    elif kind == "equal":
        w = torch.full_like(w, 0.3)
    elif kind == "outlier" and w.numel():
        w.view(-1)[0] = 6e4
    if transpose and w.dim() > 1:
        w = w.transpose(0, 1)
    source = {"w": w, "anchor": torch.randn(16, 16, generator=torch.Generator().manual_seed(0))}
    result = opq.compress(source, bits=40, overrides={"w": "compress"} if w.numel() else None)
    back = result.tensor("w")
    assert (back.shape, back.dtype) == (w.shape, w.dtype)
    if result.plan["w"].action == "compress":
        alone = (result.codes["w"].double() * result.plan["w"].step).to(dtype)
        assert result.plan["w"].by_row or torch.equal(back, alone)
        assert float((back.double() - w.double()).abs().max()) <= 0.51 * result.plan["w"].step + 1e-2 * float(
            w.abs().max()
        )
    else:
        assert torch.equal(back, w)


class Tied(nn.Module):
    """An embedding and a head that are one tensor, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.head = nn.Embedding(64, 32), nn.LayerNorm(32), nn.Linear(32, 64, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(7))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embedding(ids)))


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    result = opq.compress(model, bits=6, probe=False)
    assert result.plan["head.weight"].like == "embedding.weight"
    state = result.state_dict()
    assert state["head.weight"] is state["embedding.weight"]
    result.save(tmp_path / "f")
    loaded = opq.load(tmp_path / "f", Tied())
    assert loaded.head.weight is loaded.embedding.weight
    assert torch.equal(loaded.head.weight, state["head.weight"])
    assert torch.equal(loaded.positions, model.positions)


def test_a_name_that_the_model_ties_may_be_absent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = Tied().state_dict()
    del state["head.weight"]
    opq.compress(state, bits=6).save(tmp_path / "f")
    loaded = opq.load(tmp_path / "f", Tied())
    assert torch.equal(loaded.head.weight, opq.load_state_dict(tmp_path / "f")["embedding.weight"])


def test_every_tensor_is_in_the_report() -> None:
    result = opq.compress(Tied(), bits=6, probe=False)
    assert {t.name for t in result.plan} == set(Tied().state_dict())
    assert all(t.reason for t in result.plan)
    assert len(result.report()) == len(result.plan)
    html = result._repr_html_()
    assert all(t.name in html for t in result.plan)
    assert repr(result).startswith("<opq.Result Tied: ")


def test_numbers_that_nothing_can_use_are_no_error(weights: dict[str, torch.Tensor]) -> None:
    result = opq.compress(weights, bits=100)
    assert result.bits < 20
    assert result.plan.multiplier == 0


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, BudgetError, "exactly one of bits=, ratio=, size="),
        ({"bits": 3, "size": 100}, BudgetError, "got bits=3, size=100"),
        ({"bits": -1}, BudgetError, "bits= is not positive"),
        ({"bits": 3, "method": "magic"}, OptionError, "unknown method=: got 'magic'"),
        ({"bits": 3, "sparsity": 0.5}, OptionError, "sparsity= goes with method='opq'"),
        (
            {"ratio": 3, "sparsity": 0.5, "method": "opq"},
            OptionError,
            "sparsity= goes with bits= per kept weight alone",
        ),
        ({"bits": 3, "sparsity": 1.0, "method": "opq"}, OptionError, "sparsity= is out of range"),
        ({"bits": 3, "overrides": {"zzz": "keep"}}, PatternError, "'zzz' matches no tensor"),
        ({"bits": 3, "sensitivities": [1.0]}, OptionError, "got a list, wanted numbers by the names of tensors"),
        ({"bits": 3, "sensitivities": {"zzz": 1.0}}, PatternError, "sensitivities= names no compressed tensor"),
        ({"bits": 3, "sensitivities": {"a": 0.0}}, OptionError, r"sensitivities\['a'\]"),
        ({"bits": 3, "alpha": 2}, OptionError, "alpha= is out of range"),
        ({"bits": 3, "method": "opq", "overrides": {"a": {"bits": 2}}}, OptionError, "bounds the bits of a tensor"),
        ({"bits": 3, "bitz": 2}, OptionError, "unknown option 'bitz'"),
    ],
)
@pytest.mark.parametrize("call", [opq.compress, opq.solve])
def test_bad_options(
    weights: dict[str, torch.Tensor],
    call: Callable[..., object],
    options: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=text):
        call(weights, **options)


def test_a_budget_that_cannot_be_met_says_the_smallest_that_can(weights: dict[str, torch.Tensor]) -> None:
    for kind in ("size", "bits", "ratio"):
        with pytest.raises(InfeasibleError, match=rf"{kind}=") as caught:
            opq.compress(weights, **{kind: {"size": 50, "bits": 0.001, "ratio": 1e6}[kind]})
        least = float(str(caught.value).rpartition(f"{kind}=")[2].rpartition(". ")[0])
        result = opq.compress(weights, **{kind: least})
        assert result.bytes < 2000


def test_every_budget_from_the_smallest_file_on_is_met() -> None:
    """A file of a few hundred bytes, whose statistics take more or fewer of them as the codes change."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 40)
    )
    with pytest.raises(InfeasibleError, match="size=") as caught:
        opq.compress(model.eval(), size=400, input_size=(3, 8, 8))
    least = int(str(caught.value).rpartition("size=")[2].rpartition(". ")[0])
    found = {size: opq.compress(model, size=size, input_size=(3, 8, 8)).bytes for size in range(least, least + 60, 4)}
    assert all(got <= size for size, got in found.items())
    for size in (800, 1000, 1200, 1500):
        assert 0.97 * size <= opq.compress(model, size=size, input_size=(3, 8, 8)).bytes <= size


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(weights: dict[str, torch.Tensor], bad: float) -> None:
    broken = dict(weights, b=weights["b"].clone())
    broken["b"][3, 2, 1, 0] = bad
    with pytest.raises(NonFiniteError, match="tensor 'b' is not finite"):
        opq.compress(broken, bits=3)


def test_empty_models() -> None:
    for source in ({}, nn.ReLU(), {"n": torch.arange(3)}, {"e": torch.empty(0, 4)}):
        with pytest.raises(EmptyModelError):
            opq.compress(source, bits=3)


def test_not_a_source() -> None:
    with pytest.raises(SourceError):
        opq.compress(3, bits=3)
    with pytest.raises(SourceError):
        opq.compress("nowhere/at/all.safetensors", bits=3)


def test_a_model_that_does_not_match_the_file(tmp_path: Path) -> None:
    opq.compress(nn.Linear(16, 8), bits=60, probe=False).save(tmp_path / "f")
    other = nn.Sequential(nn.Linear(16, 8))
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(MismatchError, match=r"0\.weight missing in the file.*weight not in the model"):
        opq.load(tmp_path / "f", other)
    with pytest.raises(MismatchError, match=r"weight \(8, 16\) in the file, \(8, 17\) in the model"):
        opq.load(tmp_path / "f", nn.Linear(17, 8))
    assert all(torch.equal(other.state_dict()[n], before[n]) for n in before)


# --- real networks ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20_cifar10", "mobilenet_v1_075_imagenet"])
@pytest.mark.parametrize("bits", [4, 3])
def test_real_weights(shared: Path, name: str, bits: float, tmp_path: Path) -> None:
    result = opq.compress(shared / "weights" / f"{name}.safetensors", bits=bits)
    assert 0.995 * bits <= result.bits <= bits
    result.save(tmp_path / "f")
    state = opq.load_state_dict(tmp_path / "f")
    assert all(torch.equal(state[n], t) for n, t in result.state_dict().items())


# --- constraints through cvxpy ---------------------------------------------------------------


def test_constraints_hold(weights: dict[str, torch.Tensor]) -> None:
    c = opq.constraints
    plan = opq.solve(
        weights, bits=2, constraints=[c.sparsity("c", min=0.7), c.bits("a", min=1.0), c.equal_steps("[bc]")]
    )
    assert plan["c"].density <= 0.3 + 1e-6
    assert plan["a"].rate >= 1 - 1e-6
    assert plan["b"].step == pytest.approx(plan["c"].step)
    assert plan.residual <= 1e-5
    result = opq.compress(weights, bits=2, constraints=[c.sparsity("c", min=0.7)])
    assert float((result.codes["c"] != 0).float().mean()) <= 0.3 + 2e-3
    assert 0.995 * 2 <= result.bits <= 2


def test_a_multiply_accumulate_budget(weights: dict[str, torch.Tensor]) -> None:
    per_weight = {"a": 1.0, "b": 100.0, "c": 1.0}
    macs = {n: per_weight[n] * w.numel() for n, w in weights.items()}
    free = opq.solve(weights, bits=2)
    used = sum(macs[t.name] * t.density for t in free.compressed)
    plan = opq.solve(weights, bits=2, constraints=[opq.constraints.macs(used / 2, per_tensor=macs)])
    assert sum(macs[t.name] * t.density for t in plan.compressed) <= used / 2 * (1 + 1e-5)


def test_the_papers_densities_under_constraints(weights: dict[str, torch.Tensor]) -> None:
    bound = [opq.constraints.sparsity("a", max=0.95)]
    plan = opq.solve(weights, method="opq", sparsity=0.9, bits=3, constraints=bound)
    assert plan["a"].density >= 0.05 - 2e-3
    with pytest.raises(OptionError, match="bound densities"):
        opq.solve(weights, method="opq", bits=3, constraints=bound)
    with pytest.raises(OptionError, match="constraints= holds something else"):
        opq.solve(weights, bits=3, constraints=["a"])
