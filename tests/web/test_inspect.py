"""The inspect page: a file that is dropped onto it shows its tensors, and histograms of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import make
import node
import numpy as np
import pytest
from paths import GOLDEN, ROOT
from web_server import Site, site

import opq
from opq.file.folder_reader import open_reader

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))

PAGE = ROOT / "examples" / "web" / "inspect.html"
BASED, ROWS = make.BASED / "new.opq.safetensors", GOLDEN / "v1" / "by_rows.opq.safetensors"
DROP = """
const names = JSON.parse(arguments[0]);
delete document.documentElement.dataset.shown;
const file = (name) => fetch(name).then((answer) => answer.blob()).then((data) => new File([data], name));
return Promise.all(names.map(file)).then((files) => {
    const given = new DataTransfer();
    for (const file of files) given.items.add(file);
    document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true }));
  });
"""
TABLE = "return [...document.querySelectorAll('#table tr')].map((row) => [...row.children].map((c) => c.textContent));"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("inspect") / "digits.opq.safetensors"
    opq.compress("demo:digits", bits=3, probe=False).save(path)
    shards = {file.name: file.read_bytes() for file in (GOLDEN / "v1" / "shards").iterdir()}
    return {
        "index.html": PAGE.read_bytes(), "opq.js": node.MODULE.read_bytes(), path.name: path.read_bytes(), **shards,
        "based.opq.safetensors": BASED.read_bytes(), "rows.opq.safetensors": ROWS.read_bytes(),
        "cut.opq.safetensors": path.read_bytes()[:-9], "hostile.opq.safetensors": b"<script>alert(1)</script>",
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(files: dict[str, bytes]) -> Iterator[Site]:
    with site(files) as server:
        yield server


@pytest.fixture(scope="module")
def page(server: Site) -> Iterator[browser.Page]:
    with browser.browser() as page:
        page.call("url", url=server.url("index.html"))
        yield page


def dropped(page: browser.Page, *names: str) -> str:
    """What the page says of files that are dropped onto it."""
    page.call("execute/sync", script=DROP, args=[json.dumps(names)])
    for _ in range(200):
        if page.run("return document.documentElement.dataset.shown"):
            return str(page.run("return document.getElementById('told').textContent"))
        time.sleep(0.05)
    raise TimeoutError(page.errors())


def test_a_dropped_file_shows_its_tensors(page: browser.Page, files: dict[str, bytes], tmp_path: Path) -> None:
    name = "digits.opq.safetensors"
    (path := tmp_path / name).write_bytes(files[name])
    told, rows = dropped(page, name), page.run(TABLE)
    with open_reader(path) as reader:
        assert told.startswith(f"{reader.bytes:,} bytes hold {sum(t.size for t in reader.plan.own):,} elements")
        assert [row[0] for row in rows[1:]] == list(reader.names)
        for row, tensor in zip(rows[1:], reader.plan, strict=True):
            shape = " x ".join(map(str, tensor.shape))
            assert row[1:5] == [shape, tensor.dtype, tensor.action, reader.kind(tensor.name)]
            assert row[5] == f"{reader.sizes[tensor.name]:,}"


BARS = 101
"""From so many codes on the page counts several in one bar."""


def test_a_tensor_that_is_clicked_shows_its_histogram(
    page: browser.Page, files: dict[str, bytes], tmp_path: Path
) -> None:
    name = "digits.opq.safetensors"
    (path := tmp_path / name).write_bytes(files[name])
    dropped(page, name)
    with open_reader(path) as reader:
        found = {k: reader.codes(t.name).astype(int) for k, t in enumerate(reader.plan) if t.action == "compress"}
    wide = {k: np.ptp(codes) >= BARS for k, codes in found.items()}
    assert {*wide.values()} == {False, True}, "tensors of few codes and of many"
    for number, codes in found.items():
        heights, said = clicked(page, number)
        if wide[number]:
            assert (len(heights), sum(heights)) == (BARS, codes.size)
            assert said == f"Codes from {codes.min()} to {codes.max()}."
        else:
            assert heights == np.bincount(codes.reshape(-1) - codes.min()).tolist()
            assert said == f"Codes from {codes.min()} to {codes.max()}, {100 * np.mean(codes == 0):.1f} % of them 0."


def clicked(page: browser.Page, number: int) -> tuple[list[int], str]:
    """The histogram of a tensor, and what the page says below it."""
    heights: Any = None
    page.run("delete document.getElementById('one').dataset.heights")
    page.run(f"document.querySelectorAll('#table button')[{number}].click()")
    for _ in range(100):
        if heights := page.run("return document.getElementById('one').dataset.heights"):
            break
        time.sleep(0.05)
    return json.loads(heights), str(page.run("return document.getElementById('range').textContent"))


def test_a_folder_of_shards_is_dropped_file_by_file(page: browser.Page, files: dict[str, bytes]) -> None:
    names = [name for name in files if name.startswith("model")]
    assert len(names) > 2
    assert "elements of" in dropped(page, *names)
    with open_reader(GOLDEN / "v1" / "shards") as reader:
        assert [row[0] for row in page.run(TABLE)[1:]] == list(reader.names)


def test_of_a_file_of_differences_the_base_is_named(page: browser.Page) -> None:
    with open_reader(BASED) as reader:
        assert reader.base is not None
        told = f"Differences to a base of {reader.base.size:,} bytes of tensors, SHA-256 {reader.base.digest}."
    assert dropped(page, "based.opq.safetensors").endswith(told)


def test_codes_of_steps_by_row_are_drawn_as_codes(page: browser.Page) -> None:
    dropped(page, "rows.opq.safetensors")
    with open_reader(ROWS) as reader:
        for number, tensor in enumerate(reader.plan):
            if reader.kind(tensor.name).endswith("-rows") and tensor.size:
                assert clicked(page, number)[1].startswith(f"Codes from {reader.codes(tensor.name).min()} to ")


@pytest.mark.parametrize(("name", "why"), [("cut", "cut off"), ("hostile", "safetensors file")])
def test_what_is_wrong_with_a_file_is_said(name: str, why: str, page: browser.Page) -> None:
    assert why in dropped(page, f"{name}.opq.safetensors")
    assert page.run("return document.getElementById('table').hidden")
    assert not page.run("return document.querySelector('#told script')")


def test_it_fits_a_narrow_screen(page: browser.Page, tmp_path: Path) -> None:
    dropped(page, "digits.opq.safetensors")
    page.run("document.querySelectorAll('#table button')[0].click()")
    for width in (375, 1100):
        page.shot(tmp_path / f"{width}.png", width=width)
        assert page.run("return document.documentElement.scrollWidth") <= width
