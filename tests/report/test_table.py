"""Bits are eight times bytes, wherever the report says bits."""

from __future__ import annotations

import pytest
import torch

import opq
from opq.report.table import COLUMNS, rows


@pytest.fixture(scope="module")
def result() -> opq.Result:
    torch.manual_seed(0)
    return opq.compress({"a": torch.randn(64, 48), "b": torch.randn(96, 30), "bias": torch.randn(64)}, bits=3)


def test_the_table_gives_bits_a_weight_and_bytes_of_the_same_payload(result: opq.Result) -> None:
    found = [dict(zip(COLUMNS, cells, strict=True)) for cells in rows(result.plan, result.packed.sizes)]
    for row, tensor in zip(found, result.plan, strict=True):
        size = int(row["bytes"].replace(",", ""))
        assert float(row["bits/weight"]) == pytest.approx(8 * size / tensor.size, abs=6e-4)
    assert sum(int(row["bytes"].replace(",", "")) for row in found) < result.bytes


def test_bits_of_a_result_are_those_of_its_file(result: opq.Result) -> None:
    assert result.bits == pytest.approx(8 * sum(map(len, result.packed.parts)) / (64 * 48 + 96 * 30 + 64))
    assert f"{result.bits:.3f} bits" in repr(result)


def test_the_chart_of_the_allocation_shows_bits_a_weight(result: opq.Result) -> None:
    patches = pytest.importorskip("matplotlib.patches")
    axes = result.plot("allocation").axes
    heights = [bar.get_height() for bar in axes[0].patches if isinstance(bar, patches.Rectangle)]
    sizes = [result.packed.sizes[t.name] for t in result.plan.compressed]
    assert heights == pytest.approx([8 * n / t.size for n, t in zip(sizes, result.plan.compressed, strict=True)])


def test_a_report_prints_as_its_table_and_shows_itself_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = opq.compress("demo:digits", bits=3, probe=False)
    report = result.report()
    printed = str(report)
    assert all(tensor.name in printed for tensor in result.plan)
    assert "\x1b" not in printed
    assert repr(report).startswith(f"<opq.report.Report of {len(result.plan)} tensors: demo:digits: ")
    assert "\n" not in repr(report)
    assert "<table>" in report._repr_html_()
