"""The Plan: a frozen value that survives JSON exactly."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opq.errors import BudgetError, MismatchError, OptionError
from opq.plan import LARGEST_BUDGET, SMALLEST_BUDGET, Budget, Plan, TensorPlan, rows

positive = st.floats(min_value=1e-300, max_value=1e300)


@st.composite
def tensor_plans(draw: st.DrawFn, name: str) -> TensorPlan:
    action = draw(st.sampled_from(["compress", "keep", "share"]))
    return TensorPlan(
        name=name,
        shape=tuple(draw(st.lists(st.integers(0, 5), max_size=4))),
        dtype=draw(st.sampled_from(["F32", "BF16", "I64"])),
        action=action,
        reason=draw(st.text(max_size=5)),
        like="other" if action == "share" else None,
        step=draw(positive),
        threshold=draw(positive),
        rounding=draw(st.floats(0.5, 1)),
        sensitivity=draw(positive),
        rate=draw(positive),
        density=draw(st.floats(0, 1)),
        distortion=draw(positive),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    tensors = tuple(draw(tensor_plans(name)) for name in draw(st.lists(st.text(max_size=4), unique=True, max_size=4)))
    budget = draw(
        st.none()
        | st.builds(Budget, st.sampled_from(["bits", "ratio", "size"]), st.floats(SMALLEST_BUDGET, LARGEST_BUDGET))
    )
    return Plan(method="rd", tensors=tensors, budget=budget, multiplier=draw(positive), predicted_bytes=7)


@settings(deadline=None, max_examples=50)
@given(plans())
def test_json_round_trip_is_exact(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"budget":null}', '{"budget":null,"tensors":[{}],"method":"rd"}', "null"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="not the JSON of a plan"):
        Plan.from_json(text)


def test_repr_is_the_constructor_call() -> None:
    tensor = TensorPlan(name="w", shape=(2, 3), dtype="F32", action="compress", reason="weight", step=0.5)
    assert eval(repr(tensor)) == tensor  # noqa: S307
    assert tensor.size == 6


def test_frozen() -> None:
    plan = Plan(method="rd", tensors=())
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.method = "opq"  # type: ignore[misc]


def test_lookup_by_name() -> None:
    tensor = TensorPlan(name="w", shape=(2,), dtype="F32", action="keep", reason="")
    plan = Plan(method="rd", tensors=(tensor,))
    assert plan["w"] is tensor
    assert plan.compressed == ()
    assert (len(plan), list(plan)) == (1, [tensor])
    with pytest.raises(MismatchError, match="no tensor 'v' in the plan"):
        plan["v"]


def test_a_tensor_stands_once() -> None:
    tensor = TensorPlan(name="w", shape=(2,), dtype="F32", action="keep", reason="")
    with pytest.raises(OptionError, match="twice in the plan: got w"):
        Plan(method="rd", tensors=(tensor, tensor))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"action": "drop"}, "unknown action: got drop"),
        ({"action": "compress", "step": 0.0}, "bad step: got 0.0"),
        ({"action": "compress", "step": math.inf}, "bad step: got inf"),
        ({"action": "share"}, "`like` goes with action 'share'"),
        ({"action": "keep", "like": "v"}, "`like` goes with action 'share'"),
    ],
)
def test_a_tensor_plan_has_a_meaning(changes: dict[str, object], text: str) -> None:
    fields: dict[str, object] = {"name": "w", "shape": (2,), "dtype": "F32", "action": "keep", "reason": ""}
    with pytest.raises(OptionError, match=text):
        TensorPlan(**{**fields, **changes})


def test_budgets_in_bytes() -> None:
    assert Budget.of(bits=3).bytes(elements=800, source_bytes=3200) == 300
    assert Budget.of(ratio=10).bytes(elements=800, source_bytes=3200) == 320
    assert Budget.of(size=77).bytes(elements=800, source_bytes=3200) == 77


@pytest.mark.parametrize("value", [np.int64(3), np.float32(3), np.float64(3), 3])
def test_a_budget_may_be_a_number_of_numpy(value: float) -> None:
    budget = Budget.of(size=value)
    assert budget.value == 3
    assert type(budget.value) in (int, float)


@pytest.mark.parametrize("options", [{}, {"bits": 3, "ratio": 10}, {"bits": 3, "ratio": 10, "size": 5}])
def test_exactly_one_budget(options: dict[str, float]) -> None:
    with pytest.raises(BudgetError, match="exactly one of bits=, ratio=, size="):
        Budget.of(**options)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "3", True])
def test_a_budget_is_a_positive_number(value: object) -> None:
    with pytest.raises(BudgetError, match="bits="):
        Budget.of(bits=value)


def _plan(*names: str) -> Plan:
    tensors = [TensorPlan(name=n, shape=(2, 3), dtype="F16", action="keep", reason="") for n in names]
    tied = TensorPlan(name="tied", shape=(2, 3), dtype="F16", action="share", reason="", like=names[0])
    whole = TensorPlan(name="whole", shape=(5,), dtype="I64", action="keep", reason="")
    return Plan(method="rd", tensors=(*tensors, tied, whole))


def test_a_plan_knows_its_tensors_by_name() -> None:
    plan = _plan("a", "b")
    assert "a" in plan
    assert "c" not in plan
    assert plan["b"] is plan.tensors[1]
    assert plan.holder("tied") is plan.tensors[0]
    assert plan.names == ("a", "b", "tied", "whole")
    with pytest.raises(MismatchError, match="no tensor 'c'"):
        plan["c"]


def test_sizes_count_tied_tensors_once_and_elements_are_floating_point() -> None:
    plan = _plan("a", "b")
    assert plan.elements == 12
    assert plan.source_bytes == 12 * 2 + 5 * 8


def test_a_copy_and_a_pickle_look_up_their_own_tensors() -> None:
    """What a plan has looked up is no part of it."""
    plan, fresh = _plan("a", "b"), _plan("a", "b")
    assert plan["a"] is plan.tensors[0]
    assert pickle.dumps(plan) == pickle.dumps(fresh)
    assert plan.to_json() == fresh.to_json()
    assert pickle.loads(pickle.dumps(plan)) == copy.copy(plan) == plan
    other = plan.replace(tensors=plan.tensors[1:2])
    assert "a" not in other
    assert hash(plan) == hash(fresh)


def test_what_a_plan_rests_on_is_shown_and_kept_and_makes_no_other_plan_of_it() -> None:
    plan = _plan("a", "b")
    based = plan.replace(basis="a probe")
    assert Plan.from_json(based.to_json()).basis == "a probe"
    assert based == plan
    assert "basis" not in plan.to_json()
    assert str(based).endswith("\nBy a probe.")
    assert "<p>By a probe.</p>" in based._repr_html_()


def test_predicted_sizes_are_bytes() -> None:
    compressed = TensorPlan(name="w", shape=(40, 30), dtype="F32", action="compress", reason="", step=0.1, rate=2.5)
    kept = TensorPlan(name="b", shape=(40,), dtype="F32", action="keep", reason="")
    tied = TensorPlan(name="t", shape=(40, 30), dtype="F32", action="share", reason="", like="w")
    plan = Plan(method="rd", tensors=(compressed, kept, tied))
    assert plan.predicted_sizes == {"w": 1200 * 2.5 / 8, "b": 160}


def test_a_row_of_the_report_has_step_dead_zone_and_sparsity_of_what_is_compressed_only() -> None:
    kind = {"shape": (40, 30), "dtype": "F32", "reason": ""}
    compressed = TensorPlan(name="w", action="compress", step=0.1, threshold=0.06, density=0.25, **kind)
    kept = TensorPlan(name="b", action="keep", **kind)
    tied = TensorPlan(name="t", action="share", like="w", **kind)
    found = list(rows(Plan(method="rd", tensors=(compressed, kept, tied)), {"w": 300, "b": 4800}))
    shown = ("40x30", "F32")
    assert found[0] == ("w", *shown, "compress", "0.1", "0.600", "75.0%", "2.000", "300", "")
    assert found[1] == ("b", *shown, "keep", "", "", "", "32.000", "4,800", "")
    assert found[2] == ("t", *shown, "share", "", "", "", "", "", "")
    assert kept.dead_zone == 0.0
