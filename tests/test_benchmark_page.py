"""The page of benchmarks calls one thing by one name, the best rows first; the report's figures are the benchmarks'."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import DOCS, ROOT

sys.path.insert(0, str(DOCS))
import benchmark_page

RESULTS = ROOT / "examples" / "bench" / "results"
DATAFREE: list[dict[str, Any]] = json.loads((RESULTS / "datafree.json").read_text())


@pytest.mark.parametrize("benchmark", sorted(benchmark_page.NAMES))
def test_every_method_of_opq_has_a_name_that_says_what_was_called(benchmark: str) -> None:
    rows = json.loads((RESULTS / f"{benchmark}.json").read_text())
    methods = {str(row["method"]) for row in rows if re.match(r"rd\b", str(row.get("method")))}
    assert methods == set(benchmark_page.NAMES[benchmark])
    shown = benchmark_page.ordered(rows, benchmark_page.NAMES[benchmark])
    assert not [row for row in shown if str(row["method"]).startswith("rd")]
    assert len(shown) == len(rows)


def test_the_first_rows_of_a_network_are_its_best_without_data() -> None:
    shown = benchmark_page.ordered(DATAFREE, benchmark_page.NAMES["datafree"])
    for model in ("minilm", "mobilenet-v1-0.75"):
        own = [row for row in shown if row["model"] == model and row["budget"] == 3 and "real" not in row["method"]]
        assert own[0]["top1"] == max(row["top1"] for row in own)


def test_the_page_begins_with_what_a_user_gets(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("codec", "datafree"):
        (folder / f"{name}.json").write_text((RESULTS / f"{name}.json").read_text())
    benchmark_page.write(tmp_path / "benchmarks.md", folder)
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.index("## Accuracy without data") < text.index("## Size, error and speed")
    codec = text[text.index("## Size, error and speed") :]
    assert "opq, weights only" in codec
    assert "opq, default" not in codec


@pytest.mark.parametrize("name", ["readme", "datafree"])
def test_a_committed_picture_was_drawn_from_the_rows_of_today(name: str) -> None:
    """`python docs/benchmark_page.py` and `python examples/bench/datafree.py` draw them anew."""
    pil = pytest.importorskip("PIL.Image")
    rows = DATAFREE if name == "readme" else [row for row in DATAFREE if "top1" in row]
    with pil.open(DOCS / "pictures" / f"{name}.png") as picture:
        assert picture.text["Source"] == benchmark_page.mark(rows)["Source"]


def test_the_picture_of_readme_shows_the_default_call() -> None:
    assert benchmark_page.NAMES["datafree"][benchmark_page.IN_README[0]] == benchmark_page.DEFAULT
    other = [{**row, "top1": row.get("top1", 0) + 1} for row in DATAFREE]
    assert benchmark_page.mark(other) != benchmark_page.mark(DATAFREE)


def test_what_the_report_tells_to_expect_is_what_was_measured() -> None:
    page = " ".join((ROOT / "opq/report/templates/report.html").read_text().split())
    lost = {
        bits: max(
            row["top1_dense"] - row["top1"]
            for row in DATAFREE
            if row["method"] == "rd, trellis"
            and row.get("budget") == bits
            and row["model"] in ("mobilenet-v1-0.75", "resnet-20")
        )
        for bits in (4.0, 3.0, 2.5)
    }
    said = re.search(
        r"4 bits a weight cost at most ([\d.]+) points .* 3 bits at most ([\d.]+) and 2.5 bits at most ([\d.]+),", page
    )
    assert said is not None
    assert [float(number) for number in said.groups()] == [round(loss, 1) for loss in lost.values()]
