"""The report: figures read from the file, one page that works in a browser, and the same charts for matplotlib."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import torch

import opq
from opq.allocation import laplace
from opq.base.counts import entropy
from opq.cli import app
from opq.errors import FileFormatError, MissingExtraError, OptionError, TruncatedFileError
from opq.plan import TensorPlan
from opq.quantizing import trellis
from opq.report import accounting, figures, groups, page, trellises


@pytest.fixture(scope="module")
def result() -> opq.Result:
    return opq.compress("demo:digits", bits=3, probe=False)


@pytest.fixture(scope="module")
def file(result: opq.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "digits.opq.safetensors"
    result.save(path)
    return path


def test_bytes_add_up(result: opq.Result) -> None:
    drawn = figures.figures(result.reader)
    assert drawn.file_bytes == drawn.coded_bytes + drawn.kept_bytes + drawn.other_bytes == result.bytes
    assert drawn.source_bytes == result.source_bytes
    assert drawn.elements == result.elements
    for tensor in drawn.compressed:
        codes = result.codes[tensor.plan.name].numpy()
        assert tensor.sparsity == pytest.approx(np.mean(codes == 0))
        assert tensor.counts.sum() == codes.size


@pytest.mark.parametrize(("tau", "step", "theta"), [(0.1, 0.05, 0.6), (1.0, 2.5, 0.7), (3e-4, 1e-4, 0.5)])
def test_fitted_scale(tau: float, step: float, theta: float) -> None:
    w = np.random.default_rng(0).laplace(scale=tau, size=100_000)
    q = np.sign(w) * np.floor(np.abs(w) / step + 1 - theta) * (np.abs(w) >= theta * step)
    codes, counts = np.unique(q.astype(np.int64), return_counts=True)
    fields: dict[str, Any] = {"step": step, "threshold": theta * step, "rounding": theta}
    plan = TensorPlan(name="w", shape=(w.size,), dtype="F32", action="compress", reason="", **fields)
    assert figures.fitted(codes, counts, plan) == pytest.approx(tau, rel=0.03)


@pytest.mark.parametrize(("tau", "step"), [(0.1, 0.009), (1.0, 0.4), (3e-4, 2.1e-4)])
def test_a_trellis_is_drawn_as_it_quantizes(tau: float, step: float) -> None:
    """Scale, zeros, rate and error of Laplacian weights, from the search itself."""
    w = np.random.default_rng(0).laplace(scale=tau, size=(512, 64)).astype(np.float32)
    x = w / np.float32(step)
    n = trellis.nearest(x, trellis.costs(x))
    codes, counts = np.unique(n.astype(np.int64), return_counts=True)
    fields: dict[str, Any] = {"step": step, "threshold": step / 2, "codebook": "trellis"}
    plan = TensorPlan(name="w", shape=w.shape, dtype="F32", action="compress", reason="", **fields)
    assert figures.fitted(codes, counts, plan) == pytest.approx(tau, rel=0.04)
    curve = trellises.on_trellis(figures.laplacian_curve(tau), tau)
    rate = 8 * accounting.information(plan, codes, counts) / w.size
    assert rate == pytest.approx(entropy(np.unique(trellis.paths(n), return_counts=True)[1]) / w.size)
    error = float(((w - n * step) ** 2).mean())
    assert 10 * math.log10(curve.distortion_at(rate) / error) == pytest.approx(0, abs=0.25)
    zero = float(counts[codes == 0].sum() / n.size)
    assert float(trellises.zero_fraction(np.array([step / tau]))[0]) == pytest.approx(zero, abs=0.025)
    assert 1 - float(curve.sample(np.array([rate]))[3][0]) == pytest.approx(zero, abs=0.04)


def test_the_probabilities_of_codes_on_a_trellis_add_up_to_one() -> None:
    for step in (0.05, 0.4, 1.5):
        assert np.exp(trellises.log_masses(np.arange(2000.0), step)).sum() == pytest.approx(1)


def test_of_a_trellis_no_dead_zone_is_drawn(result: opq.Result) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    plain = opq.compress("demo:digits", bits=3, probe=False, trellis=False)
    for made, zones in ((result, 0), (plain, 1)):
        (ax,) = made.plot("histogram").axes
        said = [text.get_text() for text in ax.get_legend().get_texts()]
        assert said.count("dead zone") == zones
        held = page.data(figures.figures(made.reader))
        assert {t["trellis"] for t in held["histograms"]} == {not zones}
        assert held["trellised"] == (0 if zones else 5)


def test_laplacian_curve_is_the_closed_form() -> None:
    curve = figures.laplacian_curve(0.2)
    for rate in (0.2, 0.5, 1.0, 2.0, 4.0):
        _, _, distortion = laplace.best_quantizer(rate)
        assert curve.distortion_at(rate) == pytest.approx(distortion * 0.04, rel=0.02)


def test_samples_carry_the_curve() -> None:
    curve = figures.laplacian_curve(1.0)
    held = figures.samples(curve)
    rate, slope = np.array(held["rate"]), np.array(held["slope"])
    assert (np.diff(rate) > 0).all()
    assert (np.diff(slope) <= 1e-4).all()
    mean = np.diff(np.array(held["distortion"])) / np.diff(rate)
    assert ((-mean <= np.exp(slope[:-1]) * 1.001) & (-mean >= np.exp(slope[1:]) * 0.999)).all()


def _many(layers: int, seed: int = 0) -> opq.Result:
    """A file of three tensors a layer, small ones that differ in scale, and one large tensor."""
    draw = np.random.default_rng(seed)
    state = {"head": torch.from_numpy(draw.laplace(size=(64, 64)).astype(np.float32))}
    for k in range(layers):
        for part in ("q", "up"):
            scale = 0.01 * (1 + k % 7)
            state[f"layers.{k}.{part}"] = torch.from_numpy(draw.laplace(scale=scale, size=(8, 16)).astype(np.float32))
        state[f"layers.{k}.norm"] = torch.ones(8)
    return opq.compress(state, bits=6)


def test_many_curves_as_few_give_the_same_rates_and_errors() -> None:
    drawn = figures.figures(_many(40).reader).compressed
    each = groups.curves(drawn)
    few = groups.curves(drawn, most=2)
    assert [c["name"] for c in few] == ["layers.*.q (40 tensors)", "all others (41 tensors)"]
    assert sum(c["size"] for c in few) == sum(c["size"] for c in each)
    assert sum(c["entropy"] for c in few) == pytest.approx(sum(c["entropy"] for c in each))

    def total(curves: list[dict[str, Any]], level: float, what: str, weight: str) -> float:
        at = [np.interp(-level, -np.array(c["curve"]["slope"]) - math.log(c["a"]), c["curve"][what]) for c in curves]
        return sum(a * c["size"] * (c["a"] if weight else 1) for a, c in zip(at, curves, strict=True))

    for level in (-6.0, -9.0, -12.0):
        assert total(few, level, "rate", "") == pytest.approx(total(each, level, "rate", ""), rel=0.02)
        assert total(few, level, "distortion", "a") == pytest.approx(total(each, level, "distortion", "a"), rel=0.05)


def test_a_page_of_many_tensors_is_bounded() -> None:
    held = page.data(figures.figures(_many(100).reader), rows=50, histograms=10)
    assert len(held["tensors"]) == 50
    assert len(held["histograms"]) == 10
    assert [c["name"] for c in held["curves"]] == ["head", "layers.*.q (100 tensors)", "layers.*.up (100 tensors)"]
    assert (held["compressed"], held["kept"]) == (201, 100)
    assert held["reasons"][0][1:3] == [100, 800]


class _Loads(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]


def test_page_loads_nothing(file: Path, tmp_path: Path) -> None:
    size = page.save_page(file, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert size == (tmp_path / "r.html").stat().st_size
    seen = _Loads()
    seen.feed(text)
    assert seen.found == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\s*\(", text)
    assert "Laplacian fitted" in text


def test_page_says_where_its_curves_are_from(file: Path, tmp_path: Path) -> None:
    page.save_page(file, tmp_path / "r.html", source="demo:digits")
    held = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text(), re.DOTALL)[1])
    assert held["measured"] is True
    assert len(held["histograms"]) == 5
    assert all(t["weights"] for t in held["histograms"])


def test_names_are_not_markup(tmp_path: Path) -> None:
    name = "</script><b>x</b>"
    result = opq.compress({name: torch.randn(20, 20, generator=torch.Generator().manual_seed(0))}, bits=4)
    result.to_html(tmp_path / "r.html")
    assert name not in (tmp_path / "r.html").read_text()


def test_page_of_a_truncated_file(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.opq.safetensors"
    cut.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(TruncatedFileError):
        page.save_page(cut, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_page_without_the_extra(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r'pip install "opq\[report\]"'):
        page.save_page(file, tmp_path / "r.html")


def test_command(file: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    path = tmp_path / "r.html"
    ran = CliRunner().invoke(app, ["report", str(file), "-o", str(path), "--json"])
    assert json.loads(ran.stdout)["bytes"] == path.stat().st_size
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "none"), "-o", str(tmp_path / "x.html")])
    assert isinstance(refused.exception, FileFormatError)


@pytest.mark.parametrize("kind", ["overview", "bytes", "allocation", "histogram", "curves", "entropy"])
def test_plots_draw_something(result: opq.Result, kind: Any) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    figure = result.plot(kind)
    figure.canvas.draw()
    artists = [a for ax in figure.axes for a in (*ax.lines, *ax.patches)]
    assert len(figure.axes) >= (4 if kind == "overview" else 1)
    assert len(artists) >= 2
    assert all(ax.get_xlabel() or ax.get_ylabel() for ax in figure.axes), "axes without a name"


def test_plot_of_nothing(result: opq.Result) -> None:
    with pytest.raises(OptionError, match="unknown chart"):
        result.plot("pie")
    with pytest.raises(OptionError, match="no tensor with a uniform grid: got 'nowhere'"):
        result.plot("histogram", tensor="nowhere")


# --- its solver under Node -------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine")
def test_the_page_s_solver_is_the_package_s(result: opq.Result, file: Path, tmp_path: Path) -> None:
    """What stands in the script before the first drawing, run without a page."""
    page.save_page(file, tmp_path / "r.html", source="demo:digits")
    held = re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text(), re.DOTALL)
    script = (Path(page.__file__).parent / "templates" / "report.js").read_text()
    solver = script[: script.index("let axes = ")]
    (tmp_path / "data.json").write_text(held[1] if held else "")

    def run(body: str) -> Any:
        data = f"require('fs').readFileSync({str(tmp_path / 'data.json')!r}, 'utf8')"
        stage = f"globalThis.document = {{ getElementById: () => ({{ textContent: {data} }}) }};"
        ask = f"console.log(JSON.stringify((() => {{ {body} }})()));"
        (tmp_path / "ask.js").write_text(f"{stage}\n{solver}\n{ask}")
        done = subprocess.run(["node", tmp_path / "ask.js"], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    _same_as_the_solver(run, result)
    assert run("return fileAt(here)") == pytest.approx(result.bytes, rel=1e-6)
    for size in (0.6 * result.bytes, 1.2 * result.bytes):
        assert run(f"return fileAt(lambdaFor({size}))") == pytest.approx(size, rel=1e-3)


# --- in a browser --------------------------------------------------------------------------

SOLVED = "return [...document.querySelectorAll('#solved b')].map((b) => b.innerText)"
MOVE = "const s = document.getElementById('budget'); s.value = {}; s.dispatchEvent(new Event('input')); "


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
def test_in_a_browser(result: opq.Result, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    page.save_page(file, path, source="demo:digits")
    with browser.browser() as shown:
        shown.open(path)
        assert shown.errors() == []
        assert shown.run("return document.documentElement.dataset.drawn") == "yes"
        here = shown.run(SOLVED)
        assert here[0] == f"{result.bytes / 1e3:.1f} kB"
        assert here[3] == "0.00 dB"
        moved = [shown.run(MOVE.format(at) + SOLVED) for at in (300, 600)]
        bits, errors = ([float(figures[k].split()[0]) for figures in moved] for k in (1, 3))
        assert bits[0] < bits[1] < result.bits
        assert errors[0] > errors[1] > 0
        _same_as_the_solver(shown.run, result)
        shown.run("document.getElementById('reset').click()")
        assert shown.run(SOLVED) == here
        assert shown.run("return document.querySelectorAll('#tensors tbody tr').length") == len(result.plan.compressed)
        for width, dark in ((1100, False), (390, True)):
            shown.shot(tmp_path / "shot.png", width=width, dark=dark)
            assert shown.run("return document.documentElement.scrollWidth") <= width
            assert (tmp_path / "shot.png").stat().st_size > 10_000
        assert shown.errors() == []


@pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))
def test_many_tensors_in_a_browser(tmp_path: Path) -> None:
    result = _many(100)
    result.to_html(tmp_path / "r.html")
    names = "return [...document.querySelectorAll('#tensors tbody td.name')].map((c) => c.innerText)"
    with browser.browser() as shown:
        shown.open(tmp_path / "r.html")
        assert shown.errors() == []
        assert shown.run(SOLVED)[0] == f"{result.bytes / 1e3:.1f} kB"
        assert float(shown.run(MOVE.format(500) + SOLVED)[1]) < result.bits
        assert shown.run(names) == [t.name for t in result.plan.compressed][:100]
        pager = "document.querySelectorAll('.pager')[0].querySelectorAll('button')[1].click(); "
        assert shown.run(pager + names) == [t.name for t in result.plan.compressed][100:200]
        find = (
            "const f = document.querySelector('.pager input'); f.value = '77.UP'; f.dispatchEvent(new Event('input'));"
        )
        assert shown.run(find + names) == ["layers.77.up"]
        clear = "const f = document.querySelector('.pager input'); f.value = ''; f.dispatchEvent(new Event('input'));"
        order = "document.querySelector('#tensors th button').click(); "
        assert shown.run(clear + order + names)[0] == "head"


def _same_as_the_solver(run: Callable[[str], Any], result: opq.Result) -> None:
    """The page's lambda for a number of bits is that of the solver on the same curves."""
    from opq.allocation.rate_distortion import allocate

    drawn = figures.figures(result.reader, source=opq.open_source("demo:digits")).compressed
    curves, plans = [t.curve for t in drawn if t.curve is not None], result.plan.compressed
    assert len(curves) == len(plans)
    assert {t.codebook for t in plans} == {"trellis"}
    sizes = [t.size for t in plans]
    for bits in (1.5, 2.5):
        wanted = allocate(curves, sizes, [t.sensitivity for t in plans], bits * sum(sizes))
        got = run(f"return solve({bits * sum(sizes)})")
        assert got == pytest.approx(math.log(wanted.multiplier), abs=0.05)
        rates = run(f"return curved.map((t) => rateAt(t, {got}))")
        assert np.dot(rates, sizes) == pytest.approx(bits * sum(sizes), rel=1e-3)
        large = [k for k, size in enumerate(sizes) if size > 5000]  # the curves of small tensors are jagged
        assert [rates[k] for k in large] == pytest.approx([wanted.points[k].rate for k in large], abs=0.06)
