"""A method as an object and by its name: the same bytes, and the same refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import opq
from opq import methods
from opq.errors import BudgetError, OptionError, PatternError
from opq.methods import calling

BATCHES = [(torch.randn(16, 12, generator=torch.Generator().manual_seed(k)), torch.arange(16) % 4) for k in range(3)]
THETA = {"*": (0.5, 3)}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


PAIRS: list[tuple[dict[str, Any], methods.Method, dict[str, Any]]] = [
    ({"method": "rd"}, methods.RateDistortion(), {"bits": 6}),
    ({}, methods.RateDistortion(), {"bits": 6}),
    ({"trellis": True}, methods.RateDistortion(trellis=True), {"bits": 6}),
    ({"alpha": 0.5, "probe": True}, methods.RateDistortion(alpha=0.5, probe=True), {"bits": 6}),
    ({"probe": False}, methods.RateDistortion(probe=False), {"bits": 6}),
    ({"sensitivities": {"0.weight": 9.0}}, methods.RateDistortion(sensitivities={"0.weight": 9.0}), {"bits": 6}),
    (
        {"constraints": [opq.constraints.bits("*", min=1)]},
        methods.RateDistortion(constraints=[opq.constraints.bits("*", min=1)]),
        {"bits": 7},
    ),
    (
        {"calibration": [x for x, _ in BATCHES]},
        methods.RateDistortion(calibration=[x for x, _ in BATCHES]),
        {"bits": 6},
    ),
    ({"method": "opq"}, methods.Opq(), {"ratio": 5}),
    ({"method": "opq", "sparsity": 0.5}, methods.Opq(sparsity=0.5), {"bits": 4}),
    ({"method": "magnitude", "method_options": {"bits": 5}}, methods.Magnitude(bits=5), {"ratio": 5}),
    ({"method": "lamp", "method_options": {"sparsity": 0.5}}, methods.Lamp(sparsity=0.5), {}),
    (
        {"method": "kmeans", "data": BATCHES, "method_options": {"sparsity": 0.5, "epochs": 1}},
        methods.KMeans(data=BATCHES, sparsity=0.5, epochs=1),
        {},
    ),
    ({"method": "pq", "method_options": {"centroids": 16}}, methods.ProductQuantization(centroids=16), {"ratio": 4}),
    (
        {"method": "clipq", "data": BATCHES, "method_options": {"theta": THETA, "epochs": 1}},
        methods.ClipQ(data=BATCHES, theta=THETA, epochs=1),
        {},
    ),
    (
        {"method": "olmp", "data": BATCHES,
         "method_options": {"epochs": 2, "prune_epochs": 1, "evaluations": 10, "delta": 1.0, "bounds": (0.0, 2.0)}},
        methods.Olmp(data=BATCHES, epochs=2, prune_epochs=1, evaluations=10, delta=1.0, bounds=(0.0, 2.0)),
        {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("short", "how", "rest"), PAIRS, ids=lambda v: repr(v) if isinstance(v, methods.Method) else ""
)
@pytest.mark.filterwarnings("ignore::opq.errors.SearchWarning")
def test_names_and_objects_give_the_same_bytes(
    short: dict[str, Any], how: methods.Method, rest: dict[str, Any]
) -> None:
    by_name, by_object = opq.compress(network(), **short, **rest), opq.compress(network(), method=how, **rest)
    assert by_name.packed.parts == by_object.packed.parts
    assert by_object.plan.method == how.name


def test_every_method_is_compared() -> None:
    assert {how.name for _, how, _ in PAIRS} == set(calling.METHODS)


def test_a_size_in_words_gives_the_bytes_of_the_number() -> None:
    in_words, number = (opq.compress(network(), size=size).packed.parts for size in ("1.2kB", 1200))
    assert in_words == number


def test_a_folder_takes_the_object_too(source: Path, tmp_path: Path) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}

    opq.compress_folder(source, tmp_path / "name", bits=4, method="opq", probe=False)
    opq.compress_folder(source, tmp_path / "object", bits=4, method=methods.Opq(probe=False))
    assert files(tmp_path / "name") == files(tmp_path / "object")


def test_a_keyword_fills_what_the_object_leaves_open() -> None:
    how = calling.method_of(
        methods.RateDistortion(trellis=True), {"probe": False, "alpha": None, "trellis": None}, None
    )
    assert how == methods.RateDistortion(trellis=True, probe=False)
    assert calling.method_of(methods.ClipQ(epochs=3), {"data": BATCHES}, None).data is BATCHES  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "rd", "data": BATCHES}, "method='rd' does not take data=: wanted method= one of clipq, kmeans"),
        ({"method": "rd", "evaluate": len}, "method='rd' does not take evaluate="),
        ({"checkpoint": "c"}, "method='rd' does not take checkpoint=: wanted method= one of clipq"),
        ({"method_options": {"bits": 3}}, "method='rd' does not take method_options=: wanted method= one of clipq"),
        ({"method": "opq", "method_options": {}}, "method='opq' does not take method_options="),
        ({"method": "opq", "data": BATCHES}, "method='opq' does not take data="),
        ({"sparsity": 0.5}, "sparsity= goes with method='opq': got method='rd'"),
        ({"method": "lamp", "sparsity": 0.5}, "method='lamp' does not take sparsity=: wanted sparsity in method_o"),
        ({"method": "clipq", "sparsity": 0.5}, "method='clipq' does not take sparsity=: wanted method='opq'"),
        ({"method": "opq", "trellis": True}, "method='opq' does not take trellis=: wanted method='rd'"),
        ({"method": "kmeans", "trellis": True}, "method='kmeans' does not take trellis=: wanted method='rd'"),
        ({"method": "kmeans", "constraints": [1]}, "does not take constraints=: wanted method= one of rd, opq"),
        ({"method": "olmp", "sensitivities": {"a": 1.0}}, "method='olmp' does not take sensitivities="),
        ({"method": "pq", "calibration": [1]}, "method='pq' does not take calibration="),
        ({"method": "lamp", "probe": True}, "method='lamp' does not take probe="),
        ({"method": "lamp", "alpha": 0.5}, "method='lamp' does not take alpha="),
        ({"method": methods.Opq(), "trellis": True}, "method='opq' does not take trellis=: wanted method='rd'"),
        ({"method": methods.Lamp(), "sparsity": 0.5}, "method='lamp' does not take sparsity="),
        ({"method": methods.Opq(alpha=0.5), "alpha": 1}, r"given twice: got alpha= and method=Opq\(alpha=...\)"),
        ({"method": methods.Lamp(), "method_options": {"bits": 3}},
         r"method_options= goes with the name of a method: got method=Lamp\(\). Pass them to Lamp\(...\)"),
        ({"method": methods.ClipQ}, r"method= is a class: got ClipQ, wanted an object, ClipQ\(...\)"),
        ({"method": "magic"}, "unknown method=: got 'magic', wanted rd or opq or clipq .* or an object"),
        ({"method": None}, "unknown method=: got None"),
        ({"trellis": True, "constraints": [opq.constraints.bits("*", min=1)]}, "trellis= does not go with const"),
        ({"trellis": 1}, "trellis=: got 1, wanted True, False or None"),
        ({"probe": False, "calibration": [1]}, "calibration= needs the probe: got probe=False"),
        ({"method": "opq", "constraints": [opq.constraints.bits("*", min=1)]}, "constraints= with method='opq'"),
        ({"constraints": ["a"]}, "constraints= holds something else: got 'a'"),
        ({"alpha": 2}, "alpha= is out of range: got 2, wanted a number from 0 to 1"),
        ({"bits": None, "ratio": 3, "method": "opq", "sparsity": 0.5}, "sparsity= goes with bits= per kept"),
        ({"method": "opq", "sparsity": 1.0}, "sparsity= is out of range: got 1.0, wanted 0 <= sparsity < 1"),
        ({"method": "clipq", "data": BATCHES}, "method='clipq' takes no budget of the file: got bits"),
        ({"method": methods.Olmp(data=BATCHES)}, "method='olmp' takes no budget of the file: got bits"),
        ({"method": "lamp", "method_options": {"epochs": 2}}, r"method_options\['epochs'\]: got 2, wanted 0"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any], says: str) -> None:
    for call in (opq.compress, opq.solve):
        with pytest.raises(OptionError, match=says):
            call(network(), **{"bits": 6, **options})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (methods.Opq(sparsity=0.5), "sparsity= does not go with a folder as output"),
        (methods.RateDistortion(calibration=[1]), "calibration= does not go with a folder as output"),
        (methods.Lamp(), "method='lamp' does not stream: wanted rd or opq"),
    ],
)
def test_objects_that_do_not_stream(how: Any, says: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=says):
        opq.compress_folder(source, tmp_path / "out", bits=4, method=how)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: methods.ClipQ(weight=-1), r"ClipQ\(weight=\): got -1, wanted a number from 0"),
        (lambda: methods.Magnitude(epochs=2), r"Magnitude\(epochs=\): got 2, wanted 0.* opq.finetune"),
        (lambda: methods.Olmp(bounds=(3.0, 1.0)), r"Olmp\(bounds=\): got \(3.0, 1.0\), wanted \(low, high\)"),
        (lambda: methods.RateDistortion(alpha=-1), "alpha= is out of range: got -1"),
        (lambda: methods.RateDistortion(sensitivities={"a": 0.0}), r"sensitivities\['a'\]: got 0.0"),
    ],
)
def test_an_object_says_what_is_wrong_with_it_when_it_is_made(make: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make()


def test_tensors_that_are_not_there_are_said_before_the_probe() -> None:
    class Never(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the model was run")

    with pytest.raises(PatternError, match="sensitivities= names no compressed tensor: got nobody"):
        opq.compress(Never(), bits=6, sensitivities={"nobody": 1.0})


def test_a_budget_is_one_whatever_the_method() -> None:
    for name in calling.METHODS:
        with pytest.raises(BudgetError, match="the budget is not one option"):
            opq.compress(network(), bits=3, ratio=4, method=name)


# --- as text ---------------------------------------------------------------------------------

NUMBERS = st.integers(1, 8)
FRACTIONS = st.floats(0, 0.99)
THETAS = st.dictionaries(st.text(), st.tuples(FRACTIONS, NUMBERS))
SCOPES = st.sampled_from(["tensor", "network"])
CONSTRAINTS = (opq.constraints.sparsity("a*", min=0.2), opq.constraints.equal_bits("*"))
EXAMPLES = st.one_of(
    st.builds(methods.RateDistortion, trellis=st.booleans(), alpha=st.none() | FRACTIONS, probe=st.booleans()),
    st.builds(methods.RateDistortion, constraints=st.just(CONSTRAINTS)),
    st.builds(methods.Opq, sparsity=FRACTIONS, sensitivities=st.dictionaries(st.text(), st.floats(0.1, 9))),
    st.builds(methods.ClipQ, epochs=NUMBERS, theta=st.none() | THETAS),
    st.builds(methods.KMeans, bits=NUMBERS, scope=SCOPES, checkpoint=st.none() | st.text()),
    st.builds(methods.Lamp, sparsity=st.none() | FRACTIONS),
    st.builds(methods.Magnitude, bits=st.integers(2, 15)),
    st.builds(methods.Olmp, bounds=st.tuples(FRACTIONS, st.floats(1, 9)), gamma=st.just({"conv": 1.0, "linear": 2.0})),
    st.builds(methods.ProductQuantization, centroids=st.integers(2, 99), distill=FRACTIONS),
)  # fmt: skip


@given(EXAMPLES)
def test_a_method_reads_back_from_json(how: methods.Method) -> None:
    assert methods.from_json(how.to_json()) == how
    assert json.loads(how.to_json())["method"] == how.name


@given(EXAMPLES.filter(lambda how: not getattr(how, "constraints", ())))
def test_a_repr_is_the_constructor_call(how: methods.Method) -> None:
    assert eval(repr(how), vars(methods)) == how  # noqa: S307


def test_a_repr_says_what_is_not_the_default_and_no_live_object() -> None:
    assert repr(methods.RateDistortion()) == "RateDistortion()"
    assert repr(methods.ClipQ(data=BATCHES, epochs=3, teacher=network(), distill=0.5)) == "ClipQ(epochs=3, distill=0.5)"
    bound = methods.RateDistortion(constraints=[opq.constraints.bits("a", min=4)])
    assert repr(bound) == "RateDistortion(constraints=[bits('a', min=4, max=inf)])"


def test_live_objects_have_no_place_in_json() -> None:
    for how in (methods.ClipQ(data=BATCHES), methods.RateDistortion(calibration=BATCHES), methods.Olmp(evaluate=len)):
        with pytest.raises(OptionError, match=r"(data|calibration|evaluate)= cannot be written as JSON"):
            how.to_json()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the method cannot be read"),
        ("3", "the method cannot be read"),
        ('{"method": "magic"}', "unknown method="),
        ('{"method": "rd", "sparsity": 1}', "method='rd' has no option of this name: got sparsity"),
        ('{"method": "lamp", "bits": 99}', r"Lamp\(bits=\): got 99"),
    ],
)
def test_text_that_is_no_method(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        methods.from_json(text)


def test_methods_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        methods.Lamp().bits = 3  # type: ignore[misc]
