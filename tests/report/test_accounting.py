"""Both ways to count, against counting one channel at a time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import opq
from opq.report import figures, page
from opq.report.accounting import NOTHING, of_codes
from opq.report.inspection import examine


def test_by_hand() -> None:
    q = torch.tensor([[0, 1, -2, 0], [0, 0, 0, 0], [3, 0, 0, 0]], dtype=torch.int16)
    found = of_codes(q)
    assert (found.weights, found.kept) == (12, 3)
    assert found.value_bits == pytest.approx(2 * math.log2(1 - -2 + 1) + 1 * math.log2(1))
    assert found.sparsity == 0.75
    assert found.ratio == pytest.approx(32 * 12 / 4)


def test_nothing_kept() -> None:
    found = of_codes(torch.zeros(4, 4, dtype=torch.int16))
    assert (found.kept, found.bits_per_kept, found.ratio) == (0, 0, math.inf)


def test_what_is_counted_of_several_tensors_is_the_sum_of_each() -> None:
    one, other = of_codes(torch.tensor([[0, 1, -2, 0]])), of_codes(torch.tensor([[3, 1], [1, 0]]))
    both = sum([one, other], NOTHING)
    assert (both.weights, both.kept) == (8, 5)
    assert both.value_bits == one.value_bits + other.value_bits == 2 * math.log2(4) + 2 * math.log2(3)


def test_the_published_rate_of_alexnet() -> None:
    """PAPERS: 92.30 % pruned and 2.99 bits a survivor are the published 138.96x, by this count."""
    published = 138.96
    assert published == pytest.approx(32 / ((1 - 0.9230) * 2.99), rel=2e-3)
    g = torch.Generator().manual_seed(0)
    w = torch.distributions.Laplace(0, 1).icdf(torch.rand(400, 500, generator=g).clamp(1e-6, 1 - 1e-6))
    result = opq.compress({"w": w}, method="opq", sparsity=0.923, bits=2.99)
    assert result.nominal.ratio == pytest.approx(published, rel=0.03)
    assert result.ratio < 60, "the positions of the survivors are not free"


def test_inspection_counts_what_the_result_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = opq.compress(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)), bits=6, probe=False)
    result.save(tmp_path / "f")
    found = examine(tmp_path / "f")
    assert found.file_bytes == result.bytes
    assert found.bits == pytest.approx(result.bits)
    assert found.ratio == pytest.approx(result.ratio)
    assert found.nominal_ratio == pytest.approx(result.nominal.ratio)
    assert found.sparsity == pytest.approx(result.nominal.sparsity)
    assert sum(t.coded_bytes for t in found.tensors) < found.file_bytes
    assert f"({found.coded_bytes / found.entropy_bytes - 1:+.2%})" in found.summary()
    for tensor in found.tensors:
        if tensor.action == "compress":
            codes = result.codes[tensor.name]
            held = codes >> 1 if result.plan[tensor.name].codebook == "trellis" else codes
            _, counts = torch.unique(held, return_counts=True)
            p = counts.double() / codes.numel()
            assert tensor.entropy_bytes == pytest.approx(float(-(p * p.log2()).sum()) * codes.numel() / 8)
            assert tensor.sparsity == pytest.approx(float((codes == 0).double().mean()))


def test_of_a_file_without_codes_the_summary_says_so(tmp_path: Path) -> None:
    opq.compress({"scale": torch.ones(40)}, size=4000).save(tmp_path / "f")
    assert "codes 0 bytes, their zeroth-order entropy 0 (+0.00%)" in examine(tmp_path / "f").summary()


def test_of_a_file_of_differences_inspection_and_page_name_the_base(tmp_path: Path) -> None:
    old = {"w": torch.randn(40, 40)}
    new = {"w": old["w"] + 0.01 * torch.randn(40, 40)}
    result = opq.compress(new, bits=2, base=old)
    result.save(tmp_path / "new")
    base = result.reader.base
    assert base is not None
    words = f"differences to a base of 6,400 bytes of tensors, SHA-256 {base.digest}"
    found = examine(tmp_path / "new")
    assert found.base == base
    assert found.summary().splitlines()[-1] == words
    assert page.data(figures.figures(result.reader))["base"] == words
    alone = opq.compress(new, bits=2)
    alone.save(tmp_path / "alone")
    assert examine(tmp_path / "alone").base is None
    assert examine(tmp_path / "alone").summary().splitlines()[-1] == "by the weights alone, or training"
    assert page.data(figures.figures(alone.reader))["base"] == ""
