"""Tiny architectures of many kinds go through a default call: a dozen here, all of them in a slow test."""

from __future__ import annotations

import json

import architectures
import pytest
import results
import tiny
import torch

FEW = (
    "torch.nn/convtranspose",
    "torch.nn/lstm-time-first",
    "torch.nn/multihead-attention",
    "torch.nn/two-embeddings",
    "torch.nn/matrix",
    "graph/gcn",
    "graph/state-space",
    "transformers/wav2vec2",
    "transformers/clip",
    "transformers/t5:Seq2SeqLM",
    "transformers/mamba:CausalLM",
    "diffusers/DiTTransformer2DModel",
)
ROWS = json.loads((results.RESULTS / "architectures.json").read_text())


def check(row: architectures.Row) -> None:
    assert not row.failed
    assert row.runs
    assert row.loads
    assert row.equal
    assert not row.worse, (row.error, row.error_without)


def test_the_tables_of_the_page_are_those_of_the_rows() -> None:
    held = architectures.PAGE.read_text(encoding="utf-8").partition(architectures.BEGIN)[2]
    assert held.partition(architectures.END)[0].strip() == architectures.tables(ROWS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW)
def test_a_default_call_serves_the_architecture(name: str) -> None:
    row = architectures.measured(name, tiny.fill()[name])
    check(row)
    assert row.probed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(tiny.fill()))
def test_a_default_call_serves_every_architecture(name: str) -> None:
    check(architectures.measured(name, tiny.fill()[name]))


def test_there_are_at_least_120_of_seven_libraries_and_kinds() -> None:
    names = list(tiny.fill())
    assert len(names) >= 120
    assert {name.partition("/")[0] for name in names} >= {"torch.nn", "graph", "transformers", "timm", "torchvision"}


def test_a_raw_exception_is_shown_as_one() -> None:
    def broken() -> torch.nn.Module:
        model = torch.nn.Linear(40, 40)
        model.state_dict = lambda *_, **__: 1 / 0  # type: ignore[method-assign,assignment]
        return model

    row = architectures.measured("torch.nn/broken", broken)
    assert row.failed.startswith("raw ZeroDivisionError")
    assert row.worse


def test_the_page_has_the_tables_of_the_results() -> None:
    assert architectures.tables(ROWS) in architectures.PAGE.read_text()
    assert {row["model"] for row in ROWS} == set(tiny.fill())


def test_a_changed_figure_would_be_noticed() -> None:
    changed = [dict(row) for row in ROWS]
    changed[3]["error"] = 1.5 * (changed[3]["error"] or 1)
    assert architectures.tables(changed) not in architectures.PAGE.read_text()
