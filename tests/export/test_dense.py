"""Dense files, model cards and reports of files that are odd but valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import kept, planned
from safetensors.torch import load_file

from opq.errors import WriteError
from opq.export.dense import save_dense
from opq.export.model_card import code, model_card
from opq.file.reader import Reader
from opq.file.stored import Grid, Raw
from opq.file.writer import write_file
from opq.plan import Plan, TensorPlan
from opq.report.figures import figures
from opq.report.page import data

CODES = np.rint(np.random.default_rng(0).laplace(size=(64, 64)) * 2).astype(np.int16)


def test_tied_tensors_are_decoded_once_and_stand_under_each_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share: dict[str, Any] = {"shape": (64, 64), "dtype": "F32", "action": "share", "reason": "tied", "like": "w"}
    bias = torch.arange(3.0)
    tensors = (TensorPlan(name="a", **share), planned("w", (64, 64)), kept("b", bias), TensorPlan(name="z", **share))
    write_file(tmp_path / "m", Plan(method="x", tensors=tensors), [Grid("w", CODES), Raw("b", bias)])
    asked: list[str] = []
    tensor = Reader.tensor

    def counted(self: Reader, name: str) -> torch.Tensor:
        asked.append(name)
        return tensor(self, name)

    monkeypatch.setattr(Reader, "tensor", counted)
    assert save_dense(tmp_path / "m", tmp_path / "d") == (tmp_path / "d").stat().st_size
    assert sorted(asked) == ["b", "w"]
    found = load_file(tmp_path / "d")
    assert sorted(found) == ["a", "b", "w", "z"]
    assert torch.equal(found["b"], bias)
    for name in "awz":
        assert torch.equal(found[name], torch.from_numpy(CODES * 0.03125).float())


def test_a_tensor_that_no_safetensors_file_can_name_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    plan = Plan(method="x", tensors=(kept("__metadata__", torch.ones(2)),))
    write_file(tmp_path / "m", plan, [Raw("__metadata__", torch.ones(2))])
    with pytest.raises(WriteError, match="cannot hold a tensor called '__metadata__'"):
        save_dense(tmp_path / "m", tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("step", [1e300, 1.7e308, 1e-300, 5e-324])
def test_the_report_of_any_finite_step_is_json(step: float, tmp_path: Path) -> None:
    odd = planned("w", (64, 64), step=step, threshold=step / 2, rounding=0.5, sensitivity=1e300)
    write_file(
        tmp_path / "m", Plan(method="x", tensors=(odd, planned("v", (64, 64)))), [Grid("w", CODES), Grid("v", CODES)]
    )
    with Reader(tmp_path / "m") as reader:
        text = json.dumps(data(figures(reader)), allow_nan=False)
    assert [curve["name"] for curve in json.loads(text)["curves"]] == ["v"]


def test_a_method_s_name_does_not_leave_its_line_of_the_model_card(tmp_path: Path) -> None:
    method = "x`\n\n# Headline <script>alert(1)</script> ``` [link](http://a.b)"
    write_file(tmp_path / "m", Plan(method=method, tensors=(planned("w", (64, 64)),)), [Grid("w", CODES)])
    with Reader(tmp_path / "m") as reader:
        lines = model_card(reader, source="model").splitlines()
    assert not [line for line in lines if line.startswith("# ")]
    (said,) = [line for line in lines if line.startswith("Method ")]
    assert said.startswith("Method ```` x`")
    assert said.endswith(" ````.")


@pytest.mark.parametrize(("text", "wanted"), [("rd", "`rd`"), ("a`b", "`` a`b ``"), ("", "`  `"), ("a\nb", "`a\\nb`")])
def test_code_in_markdown(text: str, wanted: str) -> None:
    assert code(text) == wanted
