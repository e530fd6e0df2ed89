"""A network in headless Chromium: given tensors that opq.js decoded, it says what Python's dense model says."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from site_helpers import RUNTIME, asked, digits_site
from web_server import Site, site

pytestmark = [
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
    pytest.mark.skipif(not RUNTIME.is_dir(), reason="onnxruntime-web is not installed: npm install in examples/web"),
]
pytest.importorskip("onnxscript")

RUN = """
const { ort, session } = globalThis.network;
const told = JSON.parse(arguments[0]);
return session.run({ [session.inputNames[0]]: new ort.Tensor("float32", told.data, told.shape) })
  .then((found) => Array.from(found[session.outputNames[0]].data));
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_site(tmp_path_factory.mktemp("site"), runtime=RUNTIME)[0]


def served(file: Path) -> dict[str, bytes]:
    folder = file.parent / "site"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ready(page: browser.Page, server: Site) -> str:
    """What the page says once it is done."""
    page.call("url", url=server.url("index.html"))
    for _ in range(600):
        if page.run("return document.documentElement.dataset.ready"):
            return str(page.run("return document.getElementById('told').textContent"))
        time.sleep(0.1)
    raise TimeoutError(page.errors())


def outputs(page: browser.Page, x: Any) -> np.ndarray[Any, Any]:
    told = json.dumps({"data": x.flatten().tolist(), "shape": list(x.shape)})
    return np.array(page.call("execute/sync", script=RUN, args=[told]))


def test_outputs_are_those_of_the_dense_model(file: Path) -> None:
    x, wanted = asked(file)
    with site(served(file)) as server, browser.browser() as page:
        told = ready(page, server)
        assert re.match(r"[\d,]+ bytes downloaded in [\d.]+ s and decoded in [\d.]+ s", told), told
        found = outputs(page, x)
        assert not page.errors()
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-4)


def test_a_graph_that_does_not_match_the_file_and_a_damaged_file_are_said(file: Path) -> None:
    files = served(file)
    described = json.loads(files["network.json"])
    described["tensors"]["tensor0"] = "nowhere"
    data = files["model.opq.safetensors"]
    with browser.browser() as page:
        with site({**files, "network.json": json.dumps(described).encode()}) as server:
            assert "the graph does not match the file: got no tensor nowhere" in ready(page, server)
        with site({**files, "model.opq.safetensors": data[:-5]}) as server:
            assert "cut off" in ready(page, server)
