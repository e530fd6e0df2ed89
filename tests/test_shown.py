"""Everything that a user gets says in one line what it is, and prints and shows itself for people."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layout import PUBLIC_MODULES
from torch import nn

import opq
from opq import constraints, evaluation, methods

KINDS = (constraints.Constraint, methods.Method)
"""Base classes: what is made of them is shown."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)).eval()


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[type, Any]:
    """One of each public class."""
    from opq import export, report

    folder = tmp_path_factory.mktemp("shown")
    model = network()
    result = opq.compress(model, bits=6, probe=False, trellis=False)
    result.save(folder / "m.opq.safetensors")
    batches = [(torch.randn(8, 64), torch.randint(10, (8,))) for _ in range(2)]
    finetuned = opq.finetune(network(), result, batches)
    examined = report.examine(folder / "m.opq.safetensors")
    made = [
        *(result, result.plan, result.plan.tensors[0], result.plan.budget, result.nominal, result.report()),
        *(finetuned, finetuned.history[0], opq.Training(), opq.probe(model, input_size=(64,), samples=4)),
        *(opq.Reader(folder / "m.opq.safetensors"), opq.open_source(model), examined, examined.tensors[0]),
        *(streamed(folder, model), evaluation.ImageSet(3, int, (0, 1, 0)), evaluation.Score(3, 0.5, 1.0, 0.1)),
        *(export.Exported(10, {"a": "int8"}, ()), export.Site(9, {"a": "w"}, 3)),
        *(constraints.bits("a", min=3), methods.RateDistortion()),
        *(methods.Opq(), methods.ClipQ(data=batches), methods.KMeans(), methods.Lamp(), methods.Magnitude()),
        *(methods.Olmp(data=batches), methods.ProductQuantization(data=batches)),
    ]
    return {type(thing): thing for thing in made}


def streamed(folder: Any, model: nn.Module) -> Any:
    from safetensors.torch import save_file

    (folder / "in").mkdir()
    save_file(model.state_dict(), folder / "in" / "model.safetensors")
    return opq.compress_folder(folder / "in", folder / "out", bits=6)


def public_classes() -> set[type]:
    homes: list[Any] = [opq, *(importlib.import_module(f"opq.{name}") for name in PUBLIC_MODULES)]
    found = [getattr(home, name) for home in homes for name in getattr(home, "__all__", ())]
    return {c for c in found if inspect.isclass(c) and not issubclass(c, (BaseException, nn.Module)) and c not in KINDS}


def test_there_is_one_of_every_public_class(things: dict[type, Any]) -> None:
    assert not {c for c in public_classes() if c not in things}


def test_each_says_in_one_short_line_what_it_is(things: dict[type, Any]) -> None:
    for thing in things.values():
        said = repr(thing)
        assert "\n" not in said
        assert len(said) < 400, said
        assert not re.search(r"np\.|array\(|tensor\(|0x[0-9a-f]{6}", said), said
        assert type(thing).__name__ in said or said.startswith("bits("), said


TABLES = ("Result", "Plan", "Report", "Finetuned", "Probe", "Source", "Inspection", "Streamed")


def test_what_is_a_table_prints_and_shows_itself_as_one(things: dict[type, Any]) -> None:
    shown = {type(thing).__name__: thing for thing in things.values()}
    for name in TABLES:
        thing = shown[name]
        assert thing._repr_html_().count("<tr>") >= 2, name
        assert len(str(thing).splitlines()) >= 2 or name in ("Result", "Streamed"), name


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_result_survives_a_pickle(copied: Callable[[Any], Any], things: dict[type, Any]) -> None:
    result = things[opq.Result]
    assert result.nominal.ratio > 1  # what is cached is no part of the copy
    again = copied(result)
    assert again.packed.parts == result.packed.parts
    assert again.plan == result.plan
    assert torch.equal(again.tensor("0.weight"), result.tensor("0.weight"))
    assert again.report().lines
