"""Error feedback against a slow second implementation, and moments against the layers themselves."""

from __future__ import annotations

import dataclasses
import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import planned
from torch import nn

from opq.base.progress import silent
from opq.compression.alpha import weighed
from opq.compression.coders import DataFreeCoder
from opq.compression.fit import Fit
from opq.compression.options import Options
from opq.compression.problem import Problem, gather
from opq.compression.roles import assign
from opq.models.batch import Batch
from opq.plan import LARGEST_CODE, TensorPlan, as_stored
from opq.probing.collector import PRIOR
from opq.probing.layers import inputs_of, layers, spread
from opq.probing.moments import Moments
from opq.probing.sensitivity import Probe
from opq.probing.sensitivity import probe as make_probe
from opq.quantizing.feedback import LEAF, feedback, sweep
from opq.quantizing.grid import dequantize, quantize
from opq.quantizing.moment import DAMPING, DAMPING_REAL, Layout, Moment, factor
from opq.quantizing.rows import factors
from opq.sources import open_source
from opq.sources.base import Source


def plan(shape: tuple[int, ...], step: float, theta: float = 0.6, threshold: float | None = None) -> TensorPlan:
    threshold, rounding = (theta * step, theta) if threshold is None else (threshold, 0.5)
    return planned("w", shape, step=step, threshold=threshold, rounding=rounding)


def moment_of(d: int, *, groups: int = 1, seed: int = 0, layout: Layout | None = None) -> Moment:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 4 * d, d, generator=g) @ torch.randn(groups, d, d, generator=g)
    return Moment(layout or Layout(groups), (x.transpose(1, 2) @ x / x.shape[1],))


def slow(w: torch.Tensor, p: TensorPlan, s: torch.Tensor, damping: float) -> torch.Tensor:
    """Optimal brain surgeon as it is written: one weight at a time, a fresh inverse after each coordinate."""
    w, s = w.double().clone(), s.double()
    s = s + damping * s.diagonal().mean() * torch.eye(len(s), dtype=s.dtype)
    codes = torch.zeros(w.shape, dtype=torch.int16)
    order = (s.diagonal()).argsort(descending=True, stable=True).tolist()
    for i, j in enumerate(order):
        rest = order[i:]
        inverse = torch.linalg.inv(s[rest][:, rest])
        codes[:, j] = quantize(w[:, j].float(), p)
        error = w[:, j] - codes[:, j].double() * p.step
        w[:, rest] -= torch.outer(error / inverse[0, 0], inverse[0])
    return codes


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), d=st.integers(1, 12), seed=st.integers(0, 1000), step=st.sampled_from([0.2, 0.7, 2.0]))
def test_the_triangular_sweep_is_the_optimal_brain_surgeon(rows: int, d: int, seed: int, step: float) -> None:
    w = torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))
    moment = moment_of(d, seed=seed)
    fast, by_hand = (
        feedback(w, plan((rows, d), step), moment),
        slow(w, plan((rows, d), step), moment.blocks[0][0], DAMPING),
    )
    assert (fast != by_hand).float().mean() <= 0.05, "a value on the edge of a cell may fall to either side"


@pytest.mark.parametrize("d", [LEAF - 1, LEAF, LEAF + 1, 13 * LEAF - 5])
def test_halving_the_coordinates_and_parting_the_rows_do_not_show(d: int) -> None:
    w = torch.randn(6, d, generator=torch.Generator().manual_seed(d))
    moment = moment_of(d)
    one = feedback(w, plan((6, d), 0.8), moment)
    for parts in ({"leaf": 10**6}, {"leaf": 10**6, "rows_at_once": 4}):
        assert (one != feedback(w, plan((6, d), 0.8), moment, **parts)).float().mean() < 0.02


@pytest.mark.parametrize("layout", [Layout(), Layout(3), Layout(3, transposed=True)], ids=str)
def test_several_plans_in_one_sweep_have_each_their_own_codes(layout: Layout) -> None:
    shape = (6, 10, 2) if layout.transposed else (6, 20)
    width = shape[0] // layout.groups if layout.transposed else 20
    w, moment = torch.randn(shape), moment_of(width, groups=layout.groups, layout=layout)
    plans = [plan(shape, 0.2), plan(shape, 0.9, theta=0.7), plan(shape, 0.1, threshold=0.3)]
    for together, one in zip(sweep(w, plans, moment), plans, strict=True):
        assert together.shape == shape
        assert (together != feedback(w, one, moment)).float().mean() < 0.02


def test_the_factor_is_unit_triangular_and_makes_the_moment_diagonal() -> None:
    s = moment_of(9, groups=2).blocks[0]
    n = factor(s, 0.0).double()
    assert torch.equal(n, n.triu())
    torch.testing.assert_close(n.diagonal(dim1=1, dim2=2), torch.ones(2, 9).double())
    inverse = torch.linalg.inv(n)
    diagonal = inverse @ s.double() @ inverse.transpose(1, 2)
    scale = s.diagonal(dim1=1, dim2=2).mean()
    off = diagonal - torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(off / scale, torch.zeros_like(off), atol=1e-4, rtol=0)


def test_the_outputs_move_less_than_with_plain_rounding() -> None:
    w, moment = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)), moment_of(64)
    p = plan((32, 64), 1.0)
    s = moment.blocks[0][0]

    def moved(q: torch.Tensor) -> float:
        e = w - dequantize(q, p)
        return float(((e @ s) * e).sum())

    assert moved(feedback(w, p, moment)) < 0.5 * moved(quantize(w, p))


@pytest.mark.parametrize("codebook", ["grid", "trellis"])
def test_scaled_columns_are_swept_by_the_moment_of_the_inputs_that_they_then_have(codebook: str) -> None:
    """Weights divided by `c_j` meet inputs times `c_j`; damping and order are those of the inputs as they are."""
    w, moment = torch.randn(32, 24, generator=torch.Generator().manual_seed(1)), moment_of(24)
    f = np.random.default_rng(0).integers(-6, 7, 24).astype(np.int16)
    c = torch.from_numpy(factors(f)).float()
    p = dataclasses.replace(plan((32, 24), 0.5), codebook=codebook)
    ((order, n),) = moment.factors
    by_hand = SimpleNamespace(layout=Layout(), factors=[(order, n * c[order][:, None] / c[order])])
    found = feedback(w / c, p, moment, f=f)
    assert torch.equal(found, feedback(w / c, p, by_hand))
    s = moment.blocks[0][0]

    def moved(q: torch.Tensor) -> float:
        e = w - q * p.step * c
        return float(((e @ s) * e).sum())

    assert moved(found) < 0.7 * moved(feedback(w / c, p, moment))  # as if inputs were not scaled


def test_inputs_that_say_nothing_leave_plain_rounding() -> None:
    w = torch.randn(5, 7)
    p = plan((5, 7), 0.5)
    for s in (torch.eye(7), torch.zeros(7, 7)):
        assert torch.equal(feedback(w, p, Moment(Layout(), (s[None],))), quantize(w, p))


def test_the_threshold_of_the_papers_method_holds() -> None:
    w, moment = torch.randn(16, 24, generator=torch.Generator().manual_seed(2)), moment_of(24)
    q = feedback(w, plan((16, 24), 0.1, threshold=0.75), moment)
    assert int(q[q != 0].abs().min()) >= 7
    assert (q == 0).any()


def test_codes_stay_within_int16_and_keep_dtype_shape_and_device() -> None:
    w = torch.tensor([[1e4, -1e4, 3.0]], dtype=torch.float64)
    q = feedback(w, plan((1, 3), 1e-3), moment_of(3))
    assert q.dtype == torch.int16
    assert q.shape == w.shape
    assert int(q.abs().max()) == LARGEST_CODE


def test_moments_and_codes_do_not_depend_on_the_number_of_threads() -> None:
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(700, 40)), torch.randn(900, 700)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            source, moments = open_source(model), Moments(model, Batch((x,)))
            probe = Probe(model, {}, moments, Batch((x,)))
            coder = DataFreeCoder(source, probe)
            found.append((moments["0.weight"].blocks[0], next(coder.codes([dataclasses.replace(PLAN, step=0.02)]))[1]))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for blocks, codes in found[1:]:
        assert torch.equal(blocks, found[0][0])
        assert (codes == found[0][1]).all()


PLAN = dataclasses.replace(plan((40, 700), 1.0), name="0.weight")


CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(3, 8, 3, padding="same"),
    nn.Conv2d(4, 8, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(2, 1)),
    nn.Conv2d(4, 8, 3, groups=2, padding=1, padding_mode="reflect"),
    nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="circular"),
    nn.Conv3d(2, 4, 2, stride=2),
    nn.Linear(5, 3),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_the_weight_matrix_times_its_inputs_is_the_layers_output(layer: nn.Module) -> None:
    torch.manual_seed(0)
    dims = layer.weight.dim() - 2
    x = torch.randn(2, layer.in_channels, *[9] * dims) if dims else torch.randn(2, 7, 5)
    found_layer = layers(layer)["weight"]
    layout = found_layer.layout
    patches = inputs_of(found_layer, [x], 10**9, 0, {})
    found = layout.matrix(layer.weight) @ patches.transpose(1, 2)
    with torch.no_grad():
        layer.bias.zero_()
        wanted = layer(x)
    wanted = wanted.transpose(0, 1).reshape(found.shape) if dims else wanted.reshape(-1, 3).t()[None]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    if dims == 2:  # however the pixels lie in memory
        stored = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(inputs_of(found_layer, [stored], 10**9, 0, {}), patches)


def test_fewer_positions_are_positions_of_the_whole() -> None:
    layer, x = layers(nn.Conv2d(2, 3, 3))["weight"], torch.randn(4, 2, 20, 20)
    whole = {tuple(row.tolist()) for row in inputs_of(layer, [x], 10**9, 0, {})[0]}
    few, next_ones = ({tuple(row.tolist()) for row in inputs_of(layer, [x], 100, n, {})[0]} for n in (0, 100))
    assert len(few) == len(next_ones) == 100
    assert few | next_ones <= whole
    assert not few & next_ones


@pytest.mark.parametrize(("total", "count"), [(1, 1), (2, 1), (7, 3), (196, 50), (784, 783), (12544, 100), (10, 99)])
def test_spread_positions_are_different_and_leave_no_large_gap(total: int, count: int) -> None:
    for phase in (0, count, 5 * count):
        at = spread(total, count, phase).tolist()
        assert len(set(at)) == min(count, total)
        assert at == sorted(at)
        assert at[0] >= 0
        assert at[-1] < total
        gaps = [b - a for a, b in zip(at, [*at[1:], at[0] + total], strict=True)]
        assert max(gaps) <= 4 * total / count + 1


TRANSPOSED = [
    nn.ConvTranspose1d(4, 6, 3, stride=3),
    nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
    nn.ConvTranspose3d(2, 4, 2, stride=2),
]


@pytest.mark.parametrize("layer", TRANSPOSED, ids=str)
def test_transposed_convolutions_that_do_not_overlap_are_their_weight_matrix_times_their_inputs(layer: Any) -> None:
    torch.manual_seed(0)
    dims = len(layer.kernel_size)
    x = torch.randn(2, layer.in_channels, *[5] * dims)
    layout = layers(layer)["weight"].layout
    assert torch.equal(layout.tensor(layout.matrix(layer.weight), tuple(layer.weight.shape)), layer.weight)
    found = layout.matrix(layer.weight) @ inputs_of(layers(layer)["weight"], [x], 10**9, 0, {}).transpose(1, 2)
    with torch.no_grad():
        layer.bias.zero_()
        wanted = layer(x)
    rows = layer.out_channels // layer.groups
    axes = zip(range(2, 2 + dims), layer.kernel_size, strict=True)
    for axis, k in reversed(list(axes)):
        wanted = wanted.unflatten(axis, (5, k))
    # (samples, channels, positions and taps in turn) -> (channels, taps, samples, positions)
    wanted = wanted.permute(1, *range(3, 3 + 2 * dims, 2), 0, *range(2, 2 + 2 * dims, 2))
    assert found.shape[1] == rows * math.prod(layer.kernel_size)
    torch.testing.assert_close(found.flatten(), wanted.flatten(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("same", [True, False])
def test_attention_sees_queries_keys_and_values(same: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(6, 2, batch_first=True)
    q = torch.randn(4, 5, 6)
    k, v = (q, q) if same else (torch.randn(4, 7, 6), torch.randn(4, 7, 6))
    found = Moments(model, Batch((), {"query": q, "key": k, "value": v}))
    moment = found["in_proj_weight"]
    flat = [x.reshape(-1, 6)[: 4 * 5] for x in (q, k, v)]
    torch.testing.assert_close(moment.blocks[0], torch.stack([x.t() @ x / 20 for x in flat]))
    q = feedback(model.in_proj_weight, plan((18, 6), 0.3), moment)
    assert q.shape == (18, 6)
    assert (q != quantize(model.in_proj_weight, plan((18, 6), 0.3))).any()


def test_a_head_that_met_few_inputs_is_told_the_rest_by_its_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    features, w = model[:3], model[3].weight.detach()
    for samples in (8, 12):
        x = torch.randn(samples, 3, 6, 6)
        found = Moments(model, Batch((x,)))
        with torch.no_grad():
            s = features(x).t() @ features(x) / samples
        own = w.t() @ w
        wanted = s + PRIOR * s.trace() / own.trace() * own if samples < 12 else s
        torch.testing.assert_close(found["3.weight"].blocks[0][0], wanted)
        assert found["3.weight"].damping == (DAMPING_REAL if samples < 12 else DAMPING)
        assert found["0.weight"].damping == DAMPING  # 27 coordinates, but 16 inputs a sample


@pytest.mark.parametrize("layer", [*CONVOLUTIONS, SimpleNamespace], ids=str)
def test_layouts_go_to_matrices_and_back(layer: Any) -> None:
    if layer is SimpleNamespace:  # as Hugging Face's Conv1D stores it
        weight, layout = torch.randn(4, 6), Layout(transposed=True)
        assert torch.equal(layout.matrix(weight)[0], weight.t())
    else:
        weight, layout = layer.weight, layers(layer)["weight"].layout
    assert torch.equal(layout.tensor(layout.matrix(weight), tuple(weight.shape)), weight)


def test_conv1d_of_hugging_face_is_known() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(pytorch_utils.Conv1D(6, 4))
    found = Moments(model, Batch((torch.randn(64, 4),)))
    assert found["0.weight"].layout == Layout(transposed=True)
    assert found["0.weight"].width == 4
    q = feedback(model[0].weight, plan((4, 6), 0.01), found["0.weight"])
    assert q.shape == (4, 6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    features = [nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6)]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def probed() -> tuple[Source, Problem[Any], Probe]:
    """A small network with BatchNorm, its problem at 5 bits, and a probe of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16))
    source = open_source(model.eval())
    roles = assign(source.specs)
    stats = gather(source, roles)
    problem = Problem.of(Options(bits=5), roles, stats=stats, sensitivities=dict.fromkeys(stats, 1.0))
    return source, problem, make_probe(model, input_size=(3, 16, 16), samples=8)


def test_the_chosen_candidates_codes_are_those_of_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    source, problem, probe = probed()
    chosen, coder = weighed(DataFreeCoder(source, probe), problem, {})
    plan = as_stored(Fit(source, chosen, coder, silent).decide())
    fresh = list(DataFreeCoder(source, probe).codes(plan.compressed))
    monkeypatch.setattr(sys.modules["opq.compression.coders"], "sweep", None)
    for (name, q), (same, again) in zip(coder.codes(plan.compressed), fresh, strict=True):
        assert name == same
        assert (q != again).mean() < 0.02
    with pytest.raises(TypeError):
        list(coder.codes([dataclasses.replace(t, step=2 * t.step) for t in plan.compressed]))


def test_moments_do_not_depend_on_the_memory_allowed() -> None:
    model, batch = network(), Batch((torch.randn(12, 3, 10, 10),))
    free, tight = Moments(model, batch, micro_batch=4), Moments(model, batch, micro_batch=4, memory=1)
    assert list(free) == list(tight) == ["0.weight", "3.weight", "6.weight"]
    for name in free:
        torch.testing.assert_close(free[name].blocks, tight[name].blocks)
    assert "1.weight" not in free
    with pytest.raises(KeyError):
        free["1.weight"]


@pytest.mark.parametrize("memory", [1, 2**30], ids=["tight", "free"])
def test_what_moments_cost_does_not_depend_on_the_order_of_asking(memory: int) -> None:
    model, calls = network(), [0]
    model.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    passes = {}
    for names in (["0.weight", "3.weight", "6.weight"], ["6.weight", "0.weight", "3.weight"]):
        moments = Moments(model, Batch((torch.randn(12, 3, 10, 10),)), micro_batch=12, memory=memory)
        before, asked = calls[0], [*names, *reversed(names)]
        for name in asked:
            _ = moments[name]
        for group in moments.groups(names):
            assert set(moments.of(group)) == set(group)
        passes[tuple(names)] = calls[0] - before
    assert set(passes.values()) == {1} if memory > 1 else {6 + 3}


def test_groups_hold_what_fits_in_memory_whatever_the_order_of_the_names() -> None:
    model, batch = network(), Batch((torch.randn(12, 3, 10, 10),))
    largest = max(layer.bytes for layer in layers(model).values())
    tight = Moments(model, batch, memory=largest)
    names = ["6.weight", "0.weight", "3.weight"]
    assert [name for group in tight.groups(names) for name in group] == ["0.weight", "3.weight", "6.weight"]
    assert all(sum(layers(model)[n].bytes for n in group) <= largest for group in tight.groups(names))
    assert len(tight.groups(names)) > 1
    assert tight.groups(["3.weight"]) == [("3.weight",)]
    assert tight.groups([]) == []
    assert len(tight.dense.outputs) == 1


def test_codes_do_not_depend_on_the_memory_allowed_nor_on_the_order_of_the_tensors() -> None:
    model, batch = network(), Batch((torch.randn(12, 3, 10, 10),))
    source = open_source(model)
    plans = [
        planned(n, s.shape, "F32", step=0.05, threshold=0.03) for n, s in source.by_name.items() if len(s.shape) > 1
    ]
    found = []
    for memory, asked in ((2**30, plans), (1, plans), (1, plans[::-1])):
        coder = DataFreeCoder(source, Probe(model, {}, Moments(model, batch, memory=memory), batch))
        found.append({name: codes.tolist() for name, codes in coder.codes(asked)})
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == {plan.name for plan in plans}


def test_choosing_alpha_leaves_the_coder_as_it_was() -> None:
    source, problem, probe = probed()
    coder = DataFreeCoder(source, probe)
    _, chosen = weighed(coder, problem, {})
    assert not coder.known
    assert set(chosen.known) == set(problem.stats)


def test_a_moment_is_the_mean_of_the_outer_products() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    x = torch.randn(40, 3)
    hidden = torch.relu(model[0](x)).detach()
    found = Moments(model, Batch((x,)), micro_batch=7)
    torch.testing.assert_close(found["0.weight"].blocks[0][0], x.t() @ x / 40)
    torch.testing.assert_close(found["2.weight"].blocks[0][0], hidden.t() @ hidden / 40)


def test_wide_layers_have_moments_in_blocks() -> None:
    model, batch = nn.Sequential(nn.Linear(10, 4)), Batch((torch.randn(50, 10),))
    whole = Moments(model, batch)["0.weight"]
    blocks = Moments(model, batch, widest=4)["0.weight"]
    assert [b.shape[-1] for b in blocks.blocks] == [3, 3, 4]
    assert blocks.width == 10
    torch.testing.assert_close(blocks.blocks[1][0], whole.blocks[0][0, 3:6, 3:6])
    assert feedback(model[0].weight, plan((4, 10), 0.2), blocks).shape == (4, 10)


def test_layers_that_are_never_run_have_no_moment() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
    model.forward = lambda x: model["used"](x)
    found = Moments(model, Batch((torch.randn(8, 3),)))
    assert found.get("used.weight") is not None
    assert found.get("unused.weight") is None
