"""The codec's benchmark: the budget of equal error is the least, and what today's code has measured stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import codec
import pytest
import results
import torch


@pytest.mark.parametrize("method", codec.METHODS)
def test_the_budget_of_equal_error_is_the_least(method: str) -> None:
    state = {"weight": torch.randn(128, 96, generator=torch.Generator().manual_seed(0)) * 0.1}
    other = codec.ours("random", state, 3.0, codec.nothing, method="rd")
    found = codec.equal_error("random", state, other, codec.nothing, method=method)
    assert found["method"] == f"{method}, at that error"
    assert 0.9 * other["mse"] <= found["mse"] <= other["mse"]
    less = codec.ours("random", state, found["budget"] - 2 * codec.WITHIN, codec.nothing, method=method)
    assert less["mse"] >= found["mse"]
    if method == "rd, trellis":
        assert found["file_bytes"] < other["file_bytes"]


def test_only_rows_of_today_s_code_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert codec.held("n") == []
    rows: list[dict[str, Any]] = [
        {"model": model, "method": "rd", "stamp": {"code": code}}
        for model, code in (("n", results.digest("codec")), ("n", "an older digest"), ("m", results.digest("codec")))
    ]
    (tmp_path / "codec.json").write_text(json.dumps(rows))
    assert codec.held("n") == rows[:1]


def test_another_tool_s_row_is_asked_for_before_those_at_its_error() -> None:
    rows: list[dict[str, Any]] = []
    names = [method for method, _ in codec.tasks("n", {}, codec.nothing, rows, with_peers=True)]
    assert names.index(f"nncodec qp={codec.QP}") < names.index("rd, trellis, at that error")
    assert not any("at that error" in method for method, _ in codec.tasks("n", {}, codec.nothing, rows, False))
