"""The trellis against its own definition, its search against all paths, and files on it from end to end."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import planned
from torch import nn

import opq
from opq.errors import CorruptFileError, MismatchError, OptionError
from opq.file import writer
from opq.file.stored import Grid, Trellis
from opq.quantizing import grid, trellis
from opq.quantizing.feedback import feedback
from opq.quantizing.grid import dequantize
from opq.quantizing.moment import Layout, Moment
from opq.report.inspection import examine


def by_definition(k: np.ndarray) -> np.ndarray:
    """`n` of `k`, one code after the other."""
    n = np.empty_like(k)
    for column in range(k.shape[1]):
        for start in range(0, len(k), trellis.RUN):
            shifts, codes = [0] * 6, [0] * 6
            for row in range(start, min(start + trellis.RUN, len(k))):
                shift = (shifts[-1] + shifts[-6] + codes[-2] + codes[-4]) % 2
                n[row, column] = 2 * k[row, column] + shift
                shifts, codes = [*shifts[1:], shift], [*codes[1:], k[row, column]]
    return n


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 300), columns=st.integers(1, 4), seed=st.integers(0, 1000))
def test_numbers_are_the_recursion_and_paths_its_inverse(rows: int, columns: int, seed: int) -> None:
    k = np.random.default_rng(seed).integers(-9, 10, (rows, columns)).astype(np.int16)
    n = trellis.numbers(k)
    assert np.array_equal(n, by_definition(k))
    assert np.array_equal(trellis.paths(n), k)


def test_an_even_code_where_the_grid_is_shifted_is_refused() -> None:
    n = trellis.numbers(np.array([[1], [3], [0], [2]], np.int16))
    n[2] += 1
    with pytest.raises(MismatchError, match="follow no path"):
        trellis.paths(n)


def test_what_16_bits_do_not_hold_is_corrupt() -> None:
    k = np.array([[16383], [-16383]], np.int16)
    n = trellis.numbers(k)
    assert np.array_equal(trellis.paths(n), k)
    again = k.copy()
    assert trellis.numbers(again, out=again) is again
    assert np.array_equal(again, n)
    assert np.array_equal(trellis.numbers(np.asfortranarray(k)), n)
    with pytest.raises(CorruptFileError, match="a path beyond 16 bits"):
        trellis.numbers(k * 2)
    for shape in ((0, 3), (3, 0), ()):
        assert trellis.numbers(np.zeros(shape, np.int16)).shape == shape


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), seed=st.integers(0, 1000), spread=st.sampled_from([0.5, 2.0, 5.0]))
def test_the_search_finds_the_cheapest_of_all_paths(rows: int, seed: int, spread: float) -> None:
    x = spread * np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    bits = trellis.costs(x)
    middle = len(bits) // 2
    every = np.array(list(itertools.product(range(-min(middle, 4), min(middle, 4)), repeat=rows)), np.int16).T

    def price(n: np.ndarray, x: np.ndarray) -> np.ndarray:
        return ((x - n) ** 2 + trellis.PRICE * bits[(n >> 1) + middle]).sum(0)

    for column in range(2):
        own = x[:, column : column + 1]
        found = trellis.nearest(own, bits)
        trellis.paths(found)
        assert price(found, own)[0] <= price(by_definition(every), own).min() + 1e-4
    assert np.array_equal(trellis.nearest(x, bits), np.hstack([trellis.nearest(c[:, None], bits) for c in x.T]))


@pytest.mark.parametrize("largest", [3, 4, 5, 20000])
def test_numbers_far_beyond_what_has_a_price_still_follow_paths(largest: int) -> None:
    bits = trellis.costs(np.array([largest], np.float32))
    far = np.linspace(-90_000, 90_000, 41, dtype=np.float32)[:, None]
    n = trellis.nearest(far, bits)
    trellis.paths(n)
    assert (np.sign(n) == np.sign(far))[np.abs(far) > 10].all()


def test_long_columns_are_searched_in_parts() -> None:
    x = np.random.default_rng(0).laplace(size=(5 * trellis.RUN + 7, 3)).astype(np.float32) * 3
    bits = trellis.costs(x)
    whole = trellis.nearest(x, bits)
    trellis.paths(whole)
    assert np.array_equal(trellis.nearest(x, bits, at_once=2), whole)


def entropy(q: torch.Tensor) -> float:
    counts = torch.unique(q, return_counts=True)[1] / q.numel()
    return float(-(counts * counts.log2()).sum())


@pytest.mark.parametrize(("draw", "gain"), [(torch.randn, 0.9), (torch.distributions.Laplace(0, 0.7).sample, 0.6)])
def test_at_the_same_entropy_the_error_is_smaller(draw: Callable[[tuple[int, int]], torch.Tensor], gain: float) -> None:
    torch.manual_seed(0)
    w = draw((512, 400))
    paths = planned("w", tuple(w.shape), step=0.25, codebook="trellis")
    q = grid.quantize(w, paths)
    rate = entropy(torch.from_numpy(trellis.paths(q.numpy())))
    error = float((dequantize(q, paths) - w).square().mean())
    low, high = 0.3, 0.8
    for _ in range(20):  # the plain grid of this entropy, of the better of two dead zones
        step = (low + high) / 2
        grids = [planned("w", tuple(w.shape), step=step, threshold=t * step, rounding=t) for t in (0.5, 0.55)]
        plain = min(
            (float((dequantize(c, g) - w).square().mean()), entropy(c)) for g in grids for c in [grid.quantize(w, g)]
        )
        low, high = (step, high) if plain[1] > rate else (low, step)
    assert 10 * np.log10(plain[0] / error) > gain


@pytest.mark.parametrize("groups", [1, 3])
def test_feedback_along_paths(groups: int) -> None:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(groups * 130, 12, generator=g)
    x = torch.randn(groups, 60, 12, generator=g) @ torch.randn(groups, 12, 12, generator=g)
    moment = Moment(Layout(groups), (x.transpose(1, 2) @ x / 60,))
    plan = planned("w", tuple(w.shape), step=0.3, codebook="trellis")

    def error(q: torch.Tensor) -> float:
        e = moment.layout.matrix(dequantize(q, plan) - w)
        return float((e @ moment.blocks[0] @ e.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum())

    fed = feedback(w, plan, moment)
    trellis.paths(fed.numpy())
    assert error(fed) < 0.7 * error(grid.quantize(w, plan))
    with pytest.raises(OptionError, match=r"tensor 'w': paths down its inputs"):
        feedback(w.T.contiguous(), plan, Moment(Layout(transposed=True), moment.blocks))


def test_the_file_holds_the_paths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    w = torch.randn(200, 30, dtype=torch.float16)
    plan = planned("w", tuple(w.shape), step=0.2, codebook="trellis", dtype="F16")
    q = grid.quantize(w, plan).numpy()
    writer.write_file(tmp_path / "w.opq.safetensors", opq.Plan(method="rd", tensors=(plan,)), [Trellis("w", q)])
    with opq.Reader(tmp_path / "w.opq.safetensors") as reader:
        assert reader.kind("w") == "trellis"
        assert np.array_equal(reader.codes("w"), q)
        assert torch.equal(reader.tensor("w"), dequantize(torch.from_numpy(q), plan, torch.float16))
        assert reader.bytes < writer.size_of(opq.Plan(method="rd", tensors=(_gridded(plan),)), [Grid("w", q)]) - 500
    with pytest.raises(MismatchError, match="follow no path"):
        writer.pack(opq.Plan(method="rd", tensors=(plan,)), [Trellis("w", q + 1)])


def _gridded(plan: opq.TensorPlan) -> opq.TensorPlan:
    return planned("w", plan.shape, step=plan.step, dtype=plan.dtype)


class Network(nn.Module):
    """A convolution, a depthwise one, a linear layer, and one that is stored (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48)
        self.depthwise, self.up = nn.Conv2d(48, 48, 3, groups=48), nn.ConvTranspose2d(48, 24, 2)
        self.head = nn.Linear(24, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        result: torch.Tensor = self.head(torch.relu(self.up(self.depthwise(x))).mean((2, 3)))
        return result


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def test_compress_on_a_trellis(network: Network, tmp_path: Path) -> None:
    found = opq.compress(network, bits=4.5, input_size=(3, 12, 12), trellis=True)
    assert found.bytes <= 4.5 * found.elements / 8
    assert {t.name: t.codebook for t in found.plan.compressed} == {
        "first.weight": "trellis",
        "depthwise.weight": "trellis",
        "up.weight": "trellis-turned",
        "head.weight": "trellis",
    }
    found.save(tmp_path / "n.opq.safetensors")
    loaded = opq.load(tmp_path / "n.opq.safetensors", Network())
    again = opq.compress(network, bits=4.5, input_size=(3, 12, 12), trellis=True)
    assert b"".join(again.packed.parts) == b"".join(found.packed.parts)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name])


def test_weights_are_nearer_on_a_trellis_at_the_same_size(network: Network) -> None:
    def error(trellis: bool) -> float:
        """Relative to each tensor's weights, as they count without a probe."""
        decoded = opq.compress(network, bits=4.5, probe=False, trellis=trellis).state_dict()
        weights = [(w.detach(), decoded[name]) for name, w in network.named_parameters() if w.dim() > 1]
        return sum(float((w - found).square().sum() / w.square().sum()) for w, found in weights)

    assert error(trellis=True) < 0.95 * error(trellis=False)


@pytest.mark.parametrize("bits", [2.5, 4.0])
def test_a_plan_knows_what_a_trellis_saves(bits: float) -> None:
    torch.manual_seed(0)
    weights = {name: torch.randn(400, 300) for name in "abc"}
    predicted = {t: opq.solve(weights, bits=bits, trellis=t).predicted_bytes for t in (False, True)}
    assert all(p == pytest.approx(bits * 360_000 / 8, rel=0.01) for p in predicted.values())
    plan = opq.compress(weights, bits=bits, trellis=True).plan
    assert sum(t.rate * t.size for t in plan) / 8 == pytest.approx(plan.predicted_bytes, rel=0.01)
    finer = opq.solve(weights, bits=bits)["a"].distortion / plan["a"].distortion
    assert 1.2 < finer < 1.4  # 0.8 to 1.5 dB


def test_few_bits_stay_on_the_grid() -> None:
    torch.manual_seed(0)
    result = opq.compress({"w": torch.randn(300, 300), "b": torch.randn(300)}, bits=1.2, trellis=True)
    assert result.plan["w"].codebook == "grid"
    assert opq.compress({"w": torch.randn(300, 300)}, bits=3, trellis=True).plan["w"].codebook == "trellis"


def test_reports_export_and_nominal_count_take_it(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = opq.compress(network, bits=4.5, input_size=(3, 12, 12), trellis=True)
    assert "trellis" in str(result.report())
    assert 0 < result.nominal.ratio < 32
    result.to_html(tmp_path / "r.html")
    result.save(tmp_path / "n.opq.safetensors")
    assert examine(tmp_path / "n.opq.safetensors").file_bytes == result.bytes


def test_files_are_on_a_trellis_by_default_and_plans_are_not(network: Network) -> None:
    size = {"bits": 4.5, "probe": False}
    assert opq.compress(network, **size).plan == opq.compress(network, **size, trellis=True).plan
    assert any(t.codebook == "trellis" for t in opq.compress(network, **size).plan)
    bounded = opq.compress(network, **size, constraints=[opq.constraints.bits("head.*", min=4)])
    for plan in (bounded.plan, opq.compress(network, **size, trellis=False).plan, opq.solve(network, **size)):
        assert {t.codebook for t in plan.compressed} == {"grid"}


def test_what_does_not_go_with_it(network: Network) -> None:
    with pytest.raises(OptionError, match=r"method='opq' does not take trellis=: wanted method='rd'"):
        opq.compress(network, bits=4, method="opq", trellis=True)
    with pytest.raises(OptionError, match=r"trellis= does not go with constraints="):
        opq.compress(network, bits=4, trellis=True, constraints=[opq.constraints.bits("head.*", min=4)])
    with pytest.raises(OptionError, match=r"trellis=: got 8, wanted True, False or None"):
        opq.compress(network, bits=4, trellis=8)
    with pytest.raises(OptionError, match=r"method='kmeans' does not take trellis="):
        opq.compress(network, bits=4, method="kmeans", trellis=True)
