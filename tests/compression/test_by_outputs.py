"""Which tensors have steps by row, factors by column or are turned, and what becomes of them on all ways."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import planned
from torch import Tensor, nn
from torch.func import functional_call

import opq
from opq.base.arrays import Codes, Floats
from opq.compression import by_outputs, in_file
from opq.compression.by_outputs import ByOutputs
from opq.compression.roles import assign
from opq.errors import GridWarning
from opq.plan import Plan, TensorPlan
from opq.quantizing import rows
from opq.quantizing.moment import Layout
from opq.quantizing.turned import Turn
from opq.report import save_page
from opq.sources import open_source


class Gated(nn.Module):
    """A recurrent layer whose gates have inputs of very different scales, and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(20, 24, batch_first=True)
        self.linear = nn.Linear(24, 16)
        with torch.no_grad():
            self.lstm.weight_ih_l0 *= torch.logspace(-2.5, 0.5, 96)[torch.randperm(96)][:, None]

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.linear(self.lstm(x)[0][:, -1])
        return last


GATES = "lstm.weight_ih_l0"


def chosen(state: dict[str, Tensor]) -> set[str]:
    source = open_source(state)
    scaled = ByOutputs.of(source, assign(source.specs))
    return set(scaled.exponents) if isinstance(scaled, ByOutputs) else set()


@dataclasses.dataclass
class Says:
    """A probe that tells what a test wants."""

    rows: dict[str, Floats] = dataclasses.field(default_factory=dict)
    cost: dict[str, Floats] = dataclasses.field(default_factory=dict)
    layouts: dict[str, Layout] = dataclasses.field(default_factory=dict)
    sensitivity: dict[str, float] = dataclasses.field(default_factory=dict)
    usage: dict[str, Floats] = dataclasses.field(default_factory=dict)

    def columns(self, names: Collection[str]) -> dict[str, Floats]:
        return {name: self.cost[name] for name in names if name in self.cost}

    def layout(self, name: str) -> Layout | None:
        return self.layouts.get(name)


def told(shapes: dict[str, tuple[int, ...]], probe: Says, **options: bool) -> ByOutputs | None:
    source = open_source({name: torch.ones(shape) for name, shape in shapes.items()})
    found = ByOutputs.of(source, assign(source.specs), probe, **options)
    return found if isinstance(found, ByOutputs) else None


def test_rows_of_64_weights_have_steps_by_what_is_told_of_them_and_shorter_ones_have_not() -> None:
    shapes = {"long": (8, 64), "short": (8, 63), "weight_hh_l0": (8, 64)}
    found = told(shapes, Says({name: np.arange(1.0, 9.0) for name in shapes}))
    assert found is not None
    assert set(found.exponents) == {"long"}


def test_in_a_recurrent_layer_rows_of_16_weights_have_steps() -> None:
    steep = torch.randn(32, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 0, 32)[:, None]
    assert chosen({"weight_hh_l0": steep, "weight_hh_l1": steep[:, :15].clone()}) == {"weight_hh_l0"}


def test_rows_that_count_no_outputs_have_no_steps() -> None:
    probe = Says({"turned": np.arange(1.0, 81.0)}, layouts={"turned": Layout(transposed=True)})
    assert told({"turned": (80, 64)}, probe, turning=False) is None


def test_columns_of_64_weights_have_factors_unless_nothing_is_told_of_any() -> None:
    shapes = {"wide": (64, 70), "few": (63, 70), "dead": (64, 70)}
    cost = {name: np.ones(70) for name in shapes}
    cost["wide"][3], cost["dead"][:] = 0.0, 0.0
    rows_of = {name: np.ones(shape[0]) for name, shape in shapes.items()}
    found = told(shapes, Says(rows_of, cost, {name: Layout() for name in shapes}))
    assert found is not None
    assert set(found.across) == {"wide"}
    assert found.across["wide"].tolist() == [0] * 3 + [8] + [0] * 66  # two octaves, of a power of 256


def test_a_matrix_of_more_rows_than_a_trellis_searches_at_once_is_not_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Says(layouts={"conv": Layout(transposed=True)})
    for tallest, turned in ((48, ["conv"]), (47, [])):
        monkeypatch.setattr(by_outputs.trellis, "TALLEST", tallest)
        found = told({"conv": (70, 48)}, probe)
        assert list(found.turns if found else []) == turned


def test_exponents_stay_as_they_were_where_none_moves_by_more_than_one() -> None:
    new = np.array([0, 4, -3, 7], np.int16)
    near, far = new + np.array([1, -1, 0, 1], np.int16), new + np.array([0, 2, 0, 0], np.int16)
    assert by_outputs._as_before(near, new) is near
    assert by_outputs._as_before(far, new) is new
    assert by_outputs._as_before(new[:1], new) is new
    assert by_outputs._as_before(None, new) is new


@pytest.mark.parametrize(
    ("rows_of", "cost", "on_grid", "on_trellis"),
    [
        ({"other": np.ones(1)}, {}, "grid", "trellis-turned"),
        ({"w": np.ones(48)}, {}, "grid-turned-rows", "trellis-turned-rows"),
        ({"other": np.ones(1)}, {"w": np.ones(70)}, "grid-columns", "trellis-columns"),
    ],
)
def test_the_plan_of_the_file_names_the_kind_of_what_is_stored(
    rows_of: dict[str, Floats],
    cost: dict[str, Floats],
    on_grid: str,
    on_trellis: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(by_outputs, "COLUMNS_FELT", 40)
    source = told({"w": (70, 48)}, Says(rows_of, cost, {"w": Layout(transposed=True)}))
    assert source is not None
    for codebook, wanted in (("grid", on_grid), ("trellis", on_trellis)):
        plan = planned("w", (70, 48), codebook=codebook)
        (made,) = in_file.told(source, Plan(method="rd", tensors=(plan,)))
        item: Any = in_file.stored(source, plan, np.zeros((48, 70), np.int16))
        assert made.codebook == item.kind == wanted


@dataclasses.dataclass
class Older:
    """An older file with one tensor."""

    plan: dict[str, TensorPlan]
    e: Codes | None = None
    turned: Turn | None = None

    def exponents(self, name: str) -> Codes | None:
        return self.e

    def columns(self, name: str) -> Codes | None:
        return None

    def turn(self, name: str) -> Turn | None:
        return self.turned


def test_an_older_plan_is_taken_over_where_the_file_saw_the_same_rows_and_the_same_matrix() -> None:
    turn, layouts = Turn(0, 1), {"w": Layout(transposed=True)}

    def taken(source: ByOutputs | None, codebook: str, e: Codes | None = None, at: Turn | None = None) -> str | None:
        older: Any = Older({"w": planned("w", (70, 48), codebook=codebook)}, e, at)
        assert source is not None
        found = in_file.of_older(source, older, "w")
        return None if found is None else found.codebook

    bare = told({"w": (70, 48)}, Says(layouts=layouts))
    assert taken(bare, "grid") == "grid", "codes of a plain grid lie in the file as the weights do"
    assert taken(bare, "trellis-turned", at=turn) == "trellis"
    assert taken(bare, "trellis") is None
    assert taken(bare, "grid-rows", np.zeros(70, np.int16)) is None
    by_row = told({"w": (70, 48)}, Says({"w": np.arange(1.0, 49.0)}, layouts=layouts))
    assert by_row is not None
    e = by_row.exponents["w"]
    assert taken(by_row, "grid-turned-rows", e, turn) == "grid"
    assert taken(by_row, "trellis-turned-rows", e, turn) == "trellis"
    assert taken(by_row, "grid-turned-rows", e + np.int16(1), turn) is None
    assert taken(by_row, "grid") is None


def test_what_a_file_was_made_of_is_found_again_also_where_it_only_has_steps_by_row() -> None:
    result = opq.compress(Gated().state_dict(), bits=5)
    assert {t.codebook for t in result.plan.compressed if t.by_row} & {"grid-rows", "trellis-rows"}
    codes = {name: q.numpy() for name, q in result.codes.items()}
    seen, plan, own = in_file.rebuilt(open_source(Gated().state_dict()), result.plan, codes, result.reader)
    assert in_file.told(seen, plan) == result.plan
    for tensor in plan.compressed:
        item: Any = in_file.stored(seen, tensor, own[tensor.name])
        assert item.kind == result.plan[tensor.name].codebook


def test_a_recurrent_layer_has_them_and_its_rows_keep_their_relative_precision() -> None:
    model = Gated()
    result = opq.compress(model.state_dict(), bits=5)
    assert result.plan[GATES].by_row
    assert not result.plan["linear.weight"].by_row
    w, found = model.lstm.weight_ih_l0.detach(), result.tensor(GATES)
    error = ((found - w).square().sum(1) / w.square().sum(1)).sqrt()
    assert float(error.max()) < 4 * float(error.median())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_outputs, "RECURRENT", 99.0)
        plain = opq.compress(model.state_dict(), bits=5).tensor(GATES)
    assert float(((plain - w).square().sum(1) / w.square().sum(1)).sqrt().max()) > 0.9  # whole rows were lost


def test_from_the_weights_alone_no_others_have_them() -> None:
    torch.manual_seed(0)
    steep, even = torch.randn(32, 40) * torch.logspace(-2, 0, 32)[:, None], torch.randn(32, 40)
    assert chosen({"steep.weight": steep, "weight_hh_l0": even, "weight_ih_l0": steep[:, :8].clone()}) == set()
    assert chosen({"weight_ih_l1_reverse": steep, "cell.weight_hh": 2 * steep}) == {
        "weight_ih_l1_reverse",
        "cell.weight_hh",
    }


class Rescaled(nn.Module):
    """Two units of a layer are 300 times as large as the others, and their outputs are divided by that."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(64, 100), nn.Linear(100, 10)
        with torch.no_grad():
            self.first.weight[:2] *= 300
            self.first.bias[:2] *= 300
            self.last.weight[:, :2] /= 300

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu())
        return out


@pytest.mark.parametrize("bare", [True, False])
def test_a_row_far_larger_than_all_others_does_not_make_them_coarse(bare: bool) -> None:
    """At three bits the others keep their relative precision, from the weights alone and with a probe."""
    model = Rescaled()
    result = opq.compress(model.state_dict() if bare else model, bits=3)
    assert result.plan["first.weight"].by_row
    w, found = model.first.weight.detach()[2:], result.tensor("first.weight")[2:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_outputs, "FAR", 4 * 99)
        plain = opq.compress(model.state_dict() if bare else model, bits=3).tensor("first.weight")[2:]
    assert float((found - w).square().sum()) < 0.55 * float((plain - w).square().sum())


def test_rows_that_differ_as_in_ordinary_networks_have_one_step() -> None:
    torch.manual_seed(0)
    w = torch.randn(100, 64) * torch.logspace(-1, 1, 100)[:, None]
    assert chosen({"w": w}) == set()
    w[7] *= 5000
    assert chosen({"w": w}) == {"w"}


def steps_by_row(w: Tensor, probe: Says | None = None, *, name: str = "w") -> list[int] | None:
    source = open_source({name: w})
    scaled = ByOutputs.of(source, assign(source.specs), probe)
    return scaled.exponents[name].tolist() if isinstance(scaled, ByOutputs) else None


def test_a_row_of_more_than_64_times_the_median_one_is_scaled_down_to_4_times_that() -> None:
    """Turned or not, whatever a probe tells of the others; in a recurrent layer to once that, as all rows there."""
    ones, w, edge = torch.ones(80, 70), torch.ones(80, 70), torch.ones(80, 70)
    w[3], w[5], edge[3] = 2 ** (25 / 4), 2 ** (16 / 4), 2 ** (24 / 4)
    wanted = [0] * 3 + [17] + [0] * 76
    assert steps_by_row(edge) is None
    assert steps_by_row(w) == wanted
    assert steps_by_row(w.T, Says(layouts={"w": Layout(transposed=True)})) == wanted
    told_of = Says({"w": np.repeat([1.0, 16.0], [41, 39])})
    of_others = steps_by_row(ones, told_of)
    assert of_others == [0] * 41 + [-4] * 39
    assert steps_by_row(w, told_of) == [*of_others[:3], 17, *of_others[4:]]
    source = open_source({"w": w})
    scaled = ByOutputs.of(source, assign(source.specs), told_of)
    assert isinstance(scaled, ByOutputs)
    assert np.array_equal(scaled.importance["w"], told_of.rows["w"])
    assert steps_by_row(w, name="weight_hh_l0") == [0] * 3 + [25, 0, 16] + [0] * 74


def test_where_batchnorm_is_or_where_nobody_looks_a_far_row_stays() -> None:
    layer = nn.Linear(64, 20)
    with torch.no_grad():
        layer.weight[3] *= 1e3
    bare, normed = open_source(layer), open_source(nn.Sequential(layer, nn.BatchNorm1d(20)))
    assert ByOutputs.of(bare, assign(bare.specs)) is not bare
    assert ByOutputs.of(bare, assign(bare.specs), looking=False) is bare
    assert ByOutputs.of(normed, assign(normed.specs)) is normed


class Heads(nn.Module):
    """Outputs that weigh differently, by what follows them."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.up, self.few = nn.Embedding(50, 64), nn.Linear(64, 72), nn.Linear(6, 6)
        self.mid, self.out = nn.Linear(72, 80), nn.Linear(80, 6)
        self.norm = nn.BatchNorm1d(72) if norm else nn.Identity()
        with torch.no_grad():
            self.out.weight *= torch.logspace(-1.5, 0, 80)

    def forward(self, input_ids: Tensor) -> Tensor:
        found: Tensor = self.few(self.out(self.mid(self.norm(self.up(self.table(input_ids).mean(1)))).tanh()))
        return found


def test_a_probe_gives_smaller_steps_to_rows_whose_errors_count_for_more() -> None:
    model = Heads()
    source, probe = open_source(model), opq.probe(model, example_inputs=torch.randint(50, (4, 9)))
    scaled = ByOutputs.of(source, assign(source.specs), probe)
    assert isinstance(scaled, ByOutputs)
    assert set(scaled.exponents) == {"up.weight", "mid.weight", "out.weight"}
    e, felt = scaled.exponents["mid.weight"], probe.rows["mid.weight"]
    assert np.corrcoef(e, np.arange(80))[0, 1] < -0.7  # the later rows count for more
    assert int(e.max()) <= 4  # no row is coarser than twice the median one
    assert felt.mean() == pytest.approx(probe.sensitivity["mid.weight"], rel=1e-3)
    assert torch.equal(scaled.tensor("mid.weight"), rows.divided(model.mid.weight, e, scaled.across["mid.weight"]))
    assert torch.equal(scaled.tensor("table.weight"), model.table.weight)


def test_rows_that_synthetic_inputs_leave_dead_keep_a_step_of_use() -> None:
    model = Heads()
    with torch.no_grad():
        model.out.weight[:, :60] = 0.0
    source, probe = open_source(model), opq.probe(model, example_inputs=torch.randint(50, (4, 9)))
    scaled = ByOutputs.of(source, assign(source.specs), probe)
    assert isinstance(scaled, ByOutputs)
    assert (probe.rows["mid.weight"] == 0).sum() == 60
    dead, alive = np.split(scaled.exponents["mid.weight"], [60])
    assert len(set(dead)) == 1
    assert dead[0] - np.median(alive) == pytest.approx(4, abs=1)  # twice the step of those that count


def test_a_row_that_counts_for_far_more_than_all_others_does_not_decide_on_them() -> None:
    model = Heads()
    with torch.no_grad():
        model.out.weight[:, 40] = 1000.0
    source, probe = open_source(model), opq.probe(model, example_inputs=torch.randint(50, (4, 9)))
    scaled = ByOutputs.of(source, assign(source.specs), probe)
    assert isinstance(scaled, ByOutputs)
    felt, kept = probe.rows["mid.weight"], scaled.importance["mid.weight"]
    assert felt[40] > 1000 * np.median(felt)
    assert kept[40] == pytest.approx(by_outputs.FAINT * np.median(felt))
    assert int(scaled.exponents["mid.weight"][40]) == -4  # half the median row's step
    assert 1.0 > by_outputs.of_rows(scaled, {"mid.weight": 1.0})["mid.weight"] > 0.3


def test_where_batchnorm_is_rows_have_one_step_with_a_probe_too() -> None:
    result = opq.compress(Heads(norm=True), bits=5, example_inputs=torch.randint(50, (4, 9)))
    assert not any(t.by_row for t in result.plan)


@pytest.mark.parametrize("where", [slice(None), 5])
def test_nan_among_the_weights_is_refused_by_name_as_ever(where: slice | int) -> None:
    state = Gated().state_dict()
    state[GATES].view(-1)[where] = float("nan")
    with pytest.raises(opq.OpqError, match=GATES):
        opq.compress(state, bits=4)


@pytest.mark.parametrize("options", [{"trellis": True}, {"trellis": False}, {"method": "opq"}])
def test_files_are_read_back_to_what_the_result_says(options: dict[str, object], tmp_path: Path) -> None:
    result = opq.compress(Gated().state_dict(), bits=4, **options)
    result.save(tmp_path / "m.opq.safetensors")
    kind = {"trellis": "trellis-rows"} if options.get("trellis") else {"trellis": "grid-rows"}
    with opq.Reader(tmp_path / "m.opq.safetensors") as reader:
        assert reader.plan == result.plan
        assert reader.kind("lstm.weight_hh_l0") in ("grid", "trellis", *kind.values())
        assert (reader.exponents(GATES) is not None) == ("method" not in options)
        assert torch.equal(reader.tensor(GATES), result.tensor(GATES))
        if (e := reader.exponents(GATES)) is not None:
            by_hand = reader.codes(GATES).astype(float) * rows.steps(reader.plan[GATES].step, e).astype(float)[:, None]
            assert np.array_equal(by_hand.astype(np.float32), reader.tensor(GATES).numpy())


def test_the_paper_and_constraints_have_one_step_a_tensor() -> None:
    state = Gated().state_dict()
    assert not any(t.by_row for t in opq.compress(state, bits=4, method="opq").plan)
    few = opq.constraints.code_bits("*", max=8)
    assert not any(t.by_row for t in opq.compress(state, bits=4, constraints=[few]).plan)


def test_with_a_probe_they_are_fed_back_and_the_outputs_are_near() -> None:
    model = Gated().eval()
    result = opq.compress(model, bits=5, input_size=(12, 20))
    assert result.plan[GATES].by_row
    x = torch.randn(8, 12, 20)
    with torch.no_grad():
        dense = model(x)
        model.load_state_dict(result.state_dict())
        error = (model(x) - dense).square().mean() / dense.var()
    assert float(error) < 0.02


def test_an_unchanged_tensor_keeps_its_bytes(tmp_path: Path) -> None:
    model = Gated()
    old = tmp_path / "old.opq.safetensors"
    opq.compress(model.state_dict(), bits=5).save(old)
    changed = model.state_dict()
    changed["linear.weight"] = changed["linear.weight"] + 0.3 * torch.randn(16, 24)
    result = opq.compress(changed, bits=5, like=old)
    with opq.Reader(old) as reader:
        assert result.plan[GATES] == reader.plan[GATES]
        assert torch.equal(result.tensor(GATES), reader.tensor(GATES))
        assert bytes(result.reader._payload(GATES)) == bytes(reader._payload(GATES))


def test_training_takes_plain_grids_in_their_place() -> None:
    model = Gated()
    result = opq.compress(model, bits=5, probe=False, trellis=False)
    with pytest.warns(GridWarning, match="a step for each row"):
        opq.attach(model, result)
    opq.detach(model)
    assert not any(t.by_row for t in opq.solve(model, bits=5, probe=False))


def test_a_user_s_sensitivity_is_that_of_the_weights() -> None:
    model, steep = Gated(), {GATES: 3.0}
    plan = opq.compress(model, bits=5, probe=False, sensitivities=steep).plan
    e = rows.exponents(model.lstm.weight_ih_l0)
    assert plan[GATES].sensitivity == pytest.approx(3.0 / np.mean(rows.factors(e) ** -2.0), rel=0.01)


def test_the_report_shows_the_scaled_weights(tmp_path: Path) -> None:
    model = Gated()
    result = opq.compress(model, bits=5, probe=False)
    assert "by row" in str(result.report())
    assert result.to_html(tmp_path / "report.html", source=model) > 1000


def test_updates_between_such_files_give_the_new_one_byte_for_byte(tmp_path: Path) -> None:
    model = Gated()
    old, new, update = (tmp_path / name for name in ("old.opq.safetensors", "new.opq.safetensors", "u.opq.safetensors"))
    opq.compress(model, bits=5, probe=False).save(old)
    with torch.no_grad():
        model.lstm.weight_ih_l0[::3] *= 1.3
    opq.compress(model, bits=5, probe=False).save(new)
    opq.delta(old, new, update)
    opq.apply(old, update, tmp_path / "made.opq.safetensors")
    assert (tmp_path / "made.opq.safetensors").read_bytes() == new.read_bytes()


class Conv1D(nn.Module):
    """A layer whose weight is (inputs, outputs), under the name that Hugging Face's has."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.nf = weight.shape[1]
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def stored(as_inputs: bool) -> nn.Sequential:
    """A network whose weights are (inputs, outputs), or the same one with (outputs, inputs)."""
    rng, layers = torch.Generator().manual_seed(3), list[nn.Module]()
    for out, inputs in ((300, 64), (160, 300), (40, 160)):
        scale = (0.2 + torch.rand(out, 1, generator=rng)) / math.sqrt(inputs)
        w = torch.randn(out, inputs, generator=rng) * scale
        layer: nn.Module = Conv1D(w.T.clone()) if as_inputs else nn.Linear(inputs, out, bias=False)
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(w)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def decibels(model: nn.Module, result: opq.Result) -> float:
    """The error of the outputs on new inputs of the probe's kind, beside the outputs."""
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        y = model(x)
        error = functional_call(model, result.state_dict(), x) - y
    return 10 * math.log10(float(error.square().mean() / y.square().mean()))


@pytest.mark.parametrize("bits", [4, 3])
def test_weights_stored_as_inputs_by_outputs_come_out_like_all_others(bits: float, tmp_path: Path) -> None:
    """With paths down their outputs and steps by output; on plain grids the error is 1.1 dB larger."""
    found = {}
    for as_inputs in (False, True):
        model = stored(as_inputs)
        result = opq.compress(model, bits=bits, input_size=(64,))
        *wide, last = (t.codebook.removeprefix("trellis").removeprefix("grid") for t in result.plan.compressed)
        assert set(wide) == {"-columns"}
        assert last == f"{'-turned' * as_inputs}-rows"  # of 40 outputs, too few for factors of its inputs
        found[as_inputs] = decibels(model, result)
        result.save(tmp_path / "m.opq.safetensors")
        with opq.Reader(tmp_path / "m.opq.safetensors") as reader:
            assert all(torch.equal(reader.tensor(n), w) for n, w in result.state_dict().items())
    assert found[True] == pytest.approx(found[False], abs=0.4)


def test_turned_weights_are_found_unchanged_in_an_older_file(tmp_path: Path) -> None:
    model = stored(True)
    opq.compress(model, bits=3, input_size=(64,)).save(tmp_path / "old.opq.safetensors")
    with torch.no_grad():
        model[4].weight[0, 0] += 0.02
    result = opq.compress(model, bits=3, input_size=(64,), like=tmp_path / "old.opq.safetensors")
    with opq.Reader(tmp_path / "old.opq.safetensors") as old:
        same = [n for n in old.names if np.array_equal(old.codes(n), result.codes[n].numpy())]
    assert same == ["0.weight", "2.weight"]


def test_without_feedback_or_a_trellis_no_tensor_is_turned() -> None:
    model = stored(True)
    for options in ({"probe": False}, {"input_size": (64,), "trellis": False}, {"input_size": (64,), "method": "opq"}):
        assert not any(t.turned for t in opq.compress(model, bits=3, **options).plan)


class Turning(nn.Module):
    """Transposed convolutions, one of them in groups, and a stack of experts as transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.groups = nn.ConvTranspose2d(12, 40, 3, stride=2), nn.ConvTranspose2d(40, 20, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.groups(self.up(x).relu())


def test_transposed_convolutions_are_turned_unless_they_are_in_groups() -> None:
    result = opq.compress(Turning(), bits=4, input_size=(12, 6, 6))
    assert {t.name: t.turned for t in result.plan.compressed} == {"up.weight": True, "groups.weight": False}
    assert result.reader.turn("up.weight") == Turn(0, 1)
    exponents = result.reader.exponents("up.weight")
    assert exponents is None or exponents.shape == (40 * 9,)


def test_codes_of_turned_weights_stay_while_the_rest_is_trained(tmp_path: Path) -> None:
    model = nn.Sequential(*stored(True), nn.Linear(40, 4))
    result = opq.compress(model, bits=3.5, input_size=(64,))
    assert sum(t.turned for t in result.plan.compressed) >= 3
    batches = [(torch.randn(32, 64), torch.randint(4, (32,))) for _ in range(4)]
    trained = opq.finetune(model, result, batches, epochs=1, codes="keep")
    assert all(torch.equal(trained.result.codes[t.name], result.codes[t.name]) for t in result.plan.compressed)
    assert not torch.equal(trained.result.tensor("5.bias"), result.tensor("5.bias"))
    assert trained.result.plan.compressed == result.plan.compressed


def test_turned_weights_are_exported_with_the_steps_of_their_outputs(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = stored(True), torch.randn(3, 64)
    result = opq.compress(model, bits=4, input_size=(64,))
    result.save(tmp_path / "m.opq.safetensors")
    made = opq.export.save_onnx(tmp_path / "m.opq.safetensors", tmp_path / "m.onnx", model, example_inputs=x)
    assert "3 tensors as integers" in repr(made)
    assert result.plan["0.weight"].by_column
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        wanted = functional_call(model, result.state_dict(), x)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_the_page_and_the_table_show_turned_weights(tmp_path: Path) -> None:
    model = stored(True)
    result = opq.compress(model, bits=4, input_size=(64,))
    report = str(result.report())
    assert (report.count(" by output"), report.count(" by row and column")) == (1, 2)
    result.save(tmp_path / "m.opq.safetensors")
    save_page(tmp_path / "m.opq.safetensors", tmp_path / "page.html", source=model)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "trellis-turned-rows" in page
    assert "trellis-columns" in page


class Uneven(nn.Module):
    """Layers whose inputs differ widely in power, and depend on one another."""

    mixing: Tensor
    power: Tensor

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(80, 160), nn.Linear(160, 96)
        self.norm = nn.BatchNorm1d(160) if norm else nn.Identity()
        self.register_buffer("mixing", torch.randn(80, 80) / 9, persistent=False)
        self.register_buffer("power", torch.logspace(-1, 1, 80), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.norm(self.first((x @ self.mixing) * self.power)).relu())
        return found


def errors(model: nn.Module, **options: object) -> float:
    result = opq.compress(model, bits=3, input_size=(80,), **options)
    x = torch.randn(2000, 80, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        y = model(x)
        return float((functional_call(model, result.state_dict(), x) - y).square().mean() / y.square().mean())


def test_columns_whose_errors_cost_more_have_smaller_factors_and_outputs_are_nearer() -> None:
    model = Uneven().eval()
    result = opq.compress(model, bits=3, input_size=(80,))
    assert all(t.by_column for t in result.plan.compressed)
    f = result.reader.columns("first.weight")
    assert f is not None
    assert np.corrcoef(f, np.arange(80))[0, 1] < -0.8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_outputs, "COLUMNS_FELT", 1 << 20)  # no tensor has so many outputs
        patch.setattr(by_outputs, "COLUMNS", 1 << 20)
        without = errors(model)
    assert errors(model) < 0.95 * without


def test_an_input_that_never_varies_does_not_get_a_step_without_limit() -> None:
    model = Uneven().eval()
    model.power[::2] = 0.0
    probe = opq.probe(model, input_size=(80,))
    source = open_source(model)
    scaled = ByOutputs.of(source, assign(source.specs), probe)
    assert isinstance(scaled, ByOutputs)
    f = scaled.across["first.weight"]
    assert int(f[::2].max()) <= 4 * 2  # two octaves, of a power of 256
    cost = probe.columns(["first.weight"])["first.weight"]
    assert 0 < cost[::2].max() < np.median(cost[1::2])  # what the weights of a head tell of it is left


@pytest.mark.parametrize("options", [{"probe": False}, {"constraints": [opq.constraints.sparsity("*", min=0.1)]}])
def test_without_feedback_no_column_has_a_factor(options: dict[str, object]) -> None:
    result = opq.compress(Uneven(), bits=3, input_size=(80,), **options)
    assert not any(t.by_column for t in result.plan)


def test_where_batchnorm_is_no_column_has_a_factor() -> None:
    assert not any(t.by_column for t in opq.compress(Uneven(norm=True), bits=3, input_size=(80,)).plan)


def test_a_sensitivity_of_the_user_counts_for_the_weights_where_columns_are_scaled() -> None:
    """Errors in scaled weights count as much as those that they become, weighted by what these cost."""
    model = Uneven().eval()
    result = opq.compress(model, bits=3, input_size=(80,), sensitivities={"first.weight": 3.0})
    e, f = result.reader.exponents("first.weight"), result.reader.columns("first.weight")
    assert e is not None
    assert f is not None
    probe = opq.probe(model, input_size=(80,))
    d, a = probe.columns(["first.weight"])["first.weight"], probe.rows["first.weight"]
    d, a = np.clip(d, np.median(d) / 256, np.median(d) * 256), np.clip(a, np.median(a) / 16, np.median(a) * 16)
    wanted = 3.0 * np.average(rows.factors(e) ** 2, weights=a) * np.average(rows.factors(f) ** 2, weights=d)
    assert result.plan["first.weight"].sensitivity == pytest.approx(wanted, rel=0.01)


def test_a_file_with_factors_by_column_is_read_compared_and_updated(tmp_path: Path) -> None:
    model = Uneven().eval()
    old, new, update = (tmp_path / name for name in ("old.opq.safetensors", "new.opq.safetensors", "u.opq.safetensors"))
    first = opq.compress(model, bits=3, input_size=(80,))
    first.save(old)
    with opq.Reader(old) as reader:
        assert all(torch.equal(reader.tensor(n), w) for n, w in first.state_dict().items())
        with torch.no_grad():
            model.second.weight[0, 0] += 0.02
        again = opq.compress(model, bits=3, input_size=(80,), like=old)
        assert bytes(again.reader._payload("first.weight")) == bytes(reader._payload("first.weight"))
    again.save(new)
    opq.delta(old, new, update)
    opq.apply(old, update, tmp_path / "made.opq.safetensors")
    assert (tmp_path / "made.opq.safetensors").read_bytes() == new.read_bytes()


def test_codes_with_factors_by_column_stay_while_the_rest_is_trained() -> None:
    model = Uneven()
    result = opq.compress(model, bits=3, input_size=(80,))
    batches = [(torch.randn(32, 80), torch.randint(96, (32,))) for _ in range(4)]
    trained = opq.finetune(model, result, batches, epochs=1, codes="keep")
    for tensor in result.plan.compressed:
        assert torch.equal(trained.result.tensor(tensor.name), result.tensor(tensor.name))
    assert trained.result.plan.compressed == result.plan.compressed
