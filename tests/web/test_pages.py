"""The pages of examples/web in headless Chromium: their answers are those of Python's dense model from the same file.

By networks of two matrices, and, among the slow tests, by the two real ones that the pages are for.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import make_site
import numpy as np
import pytest
import torch
import zoo
from small_networks import VOCABULARY, hidden_states, image_network, scores, text_network
from web_server import Site, site

import opq
from opq.export.web_site import FILE

pytestmark = [
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
    pytest.mark.skipif(not make_site.DIST.is_dir(), reason="onnxruntime-web is missing: npm install in examples/web"),
]
pytest.importorskip("onnx")
image = pytest.importorskip("PIL.Image")

TEXTS = ["a small file", "files is downloaded", "w7 w8, W9!"]
NAMES = [f"class {k}" for k in range(1000)]
DROP = """
const [url, name] = JSON.parse(arguments[0]);
delete globalThis.seen;
return fetch(url).then((answer) => answer.blob()).then((data) => {
  const given = new DataTransfer();
  given.items.add(new File([data], name, { type: data.type }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true }));
});
"""
ASK = """
delete globalThis.found;
document.getElementById("query").value = arguments[0];
document.getElementById("form").requestSubmit();
"""


def photograph(width: int, height: int) -> bytes:
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    out = io.BytesIO()
    image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both pages, each with a network of two matrices."""
    folder = tmp_path_factory.mktemp("site")
    make_site.shell(folder)
    image_network(folder / "photographs")
    (folder / "photographs/sample0.jpg").write_bytes(photograph(224, 224))
    make_site.page(folder / "photographs", "photographs", dense=16_000, names=NAMES, samples=["sample0.jpg"])
    (folder / "photographs/wide.png").write_bytes(photograph(640, 320))
    (folder / "photographs/none.jpg").write_bytes(b"no photograph")
    text_network(folder / "sentences")
    (folder / "sentences/vocab.txt").write_text("\n".join(VOCABULARY))
    make_site.page(folder / "sentences", "sentences", dense=120_000, sentences=TEXTS)
    return folder


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    with browser.browser() as page:
        yield page


def waited(page: browser.Page, script: str) -> Any:
    """What a script returns, once that is something."""
    for _ in range(900):
        if (found := page.run(f"return {script}")) is not None:
            return found
        time.sleep(0.1)
    raise TimeoutError(page.errors())


def opened(page: browser.Page, server: Site, name: str) -> None:
    page.call("url", url=server.url(f"{name}/index.html"))
    told = waited(page, "document.documentElement.dataset.ready")
    assert told == "yes", page.run("return document.getElementById('told').textContent")
    assert not page.errors()


def text_of(page: browser.Page, identity: str) -> str:
    return str(page.run(f"return document.getElementById('{identity}').innerText"))


def dropped(page: browser.Page, name: str) -> None:
    """Drops a file of the folder onto the page."""
    page.call("execute/sync", script=DROP, args=[json.dumps([name, name])])


def fits(page: browser.Page, folder: Path) -> None:
    """Nothing of the page lies beside a wide or a narrow screen."""
    for width in (1100, 380, 320):
        page.shot(folder / "page.png", width=width)
        assert page.run("return document.documentElement.scrollWidth - innerWidth") <= 0, width


def boxes(page: browser.Page, folder: Path) -> None:
    """What each page says of its download."""
    size = (folder / FILE).stat().st_size + (folder / "network.onnx").stat().st_size
    dense = json.loads((folder / "about.json").read_text())["dense"]
    assert text_of(page, "bytes").split() == [f"{size:,}", "bytes,", "of", f"{dense:,}"]
    for name in ("download", "decode", "session"):
        assert re.match(r"[\d.]+ s\n", text_of(page, name)), name
    assert re.match(r"\d+ ms\n", text_of(page, "last"))


# --- by small networks -------------------------------------------------------------------------


def test_a_sampled_and_a_dropped_photograph_get_the_classes_of_the_dense_model(
    page: browser.Page, small: Path, tmp_path: Path
) -> None:
    folder = small / "photographs"
    with site(files(small)) as server:
        opened(page, server, "photographs")
        boxes(page, folder)
        fits(page, tmp_path)
        for name in ("sample0.jpg", "wide.png"):
            if name != "sample0.jpg":
                dropped(page, name)
            seen = waited(page, "globalThis.seen")
            wanted = scores(folder, seen["input"])
            np.testing.assert_allclose(seen["output"], wanted, atol=1e-4)
            best = np.argsort(-wanted)[:5]
            assert seen["best"] == best.tolist()
            assert [line.split("\t")[1] for line in text_of(page, "answer").splitlines()] == [NAMES[k] for k in best]
            mean = np.array(seen["input"]).reshape(3, 224, 224).mean((1, 2))
            if name == "sample0.jpg":
                exact = np.asarray(image.open(io.BytesIO(photograph(224, 224)))).transpose(2, 0, 1) / 127.5 - 1
                np.testing.assert_allclose(np.array(seen["input"]).reshape(3, 224, 224), exact, atol=1e-6)
            else:  # the middle 280 x 280 of 640 x 320: columns 180 to 459, rows 20 to 299
                rows, columns = np.mgrid[20:300, 180:460]
                exact = np.stack([rows % 256, columns % 256, (rows + columns) % 256]).mean((1, 2)) / 127.5 - 1
                np.testing.assert_allclose(mean, exact, atol=0.02)
        dropped(page, "none.jpg")
        waited(page, "document.getElementById('told').textContent || null")
        assert "No photograph" in text_of(page, "told")
        dropped(page, "sample0.jpg")
        assert waited(page, "globalThis.seen")["best"]
        assert text_of(page, "told") == ""


def test_the_nearest_sentence_is_that_of_the_dense_model(page: browser.Page, small: Path, tmp_path: Path) -> None:
    def vector(text: str) -> Any:
        states = hidden_states(small / "sentences", TOKENS[text])
        return states.mean(0) / np.linalg.norm(states.mean(0))

    with site(files(small)) as server:
        opened(page, server, "sentences")
        boxes(page, small / "sentences")
        fits(page, tmp_path)
        for text in TOKENS:
            page.call("execute/sync", script=ASK, args=[text])
            found = waited(page, "globalThis.found")
            np.testing.assert_allclose(found["vector"], vector(text), atol=1e-4)
            assert found["nearest"] == text
            assert text_of(page, "answer").split()[0] == "1.000"


TOKENS = {
    "a small file": [2, 5, 6, 7, 3],
    "files is downloaded": [2, 7, 8, 9, 10, 11, 3],
    "w7 w8, W9!": [2, VOCABULARY["w7"], VOCABULARY["w8"], 1, VOCABULARY["w9"], 1, 3],
}


def test_a_damaged_file_and_a_graph_of_another_network_are_said(page: browser.Page, small: Path) -> None:
    good = files(small)
    data = good[f"sentences/{FILE}"]
    for change, fact in (
        ({f"sentences/{FILE}": data[:-9]}, "is cut off"),
        ({f"sentences/{FILE}": b"<html>" + data}, "is not a safetensors file"),
        ({"sentences/network.onnx": good["photographs/network.onnx"]}, "the graph does not match the file"),
        ({"sentences/network.onnx": data}, "the graph is no ONNX file"),
    ):
        with site({**good, **change}) as server:
            page.call("url", url=server.url("sentences/index.html"))
            assert waited(page, "document.documentElement.dataset.ready") == "no"
            assert fact in text_of(page, "told")


# --- by the real ones --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script makes, of the weights alone to save time."""
    if not (zoo.SHARED / "weights").is_dir():
        pytest.skip("no folder shared beside the checkout")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("real")
    assert make_site.make(folder, probe=False) == {}
    return folder


@pytest.mark.slow
@torch.inference_mode()
def test_mobilenet_in_the_page_says_what_it_says_in_python(page: browser.Page, real: Path) -> None:
    folder = real / "photographs"
    model = opq.load(folder / FILE, zoo.mobilenet()).eval()
    with site(files(real)) as server:
        opened(page, server, "photographs")
        boxes(page, folder)
        assert (folder / FILE).stat().st_size < 980_000
        for k in (0, 5):
            page.run(f"delete globalThis.seen; document.querySelectorAll('#samples button')[{k}].click()")
            seen = waited(page, "globalThis.seen")
            x = torch.tensor(seen["input"]).reshape(1, 3, 224, 224)
            np.testing.assert_allclose(seen["output"], model(x)[0], atol=1e-4)
            own = np.asarray(image.open(folder / f"sample{k}.jpg").convert("RGB")).transpose(2, 0, 1) / 127.5 - 1
            assert np.abs(x[0].numpy() - own).mean() < 0.01, "the pixels of the photograph"


@pytest.mark.slow
def test_minilm_in_the_page_says_what_it_says_in_python(page: browser.Page, real: Path) -> None:
    folder = real / "sentences"
    dense, tokens = zoo.minilm()
    model = opq.load(folder / FILE, dense).eval()
    known = json.loads((folder / "about.json").read_text())["sentences"]
    others = zoo.embeddings(model, tokens, known)
    with site(files(real)) as server:
        opened(page, server, "sentences")
        boxes(page, folder)
        for text in (
            "The plane never left, so we had to stay the night.",
            known[7],
            "Na\u00efve caf\u00e9s: 100 % \u4e2d\u6587!",
        ):
            page.call("execute/sync", script=ASK, args=[text])
            found = waited(page, "globalThis.found")
            wanted = zoo.embeddings(model, tokens, [text])[0]
            np.testing.assert_allclose(found["vector"], wanted, atol=1e-4)
            assert found["nearest"] == known[int((others @ wanted).argmax())]
