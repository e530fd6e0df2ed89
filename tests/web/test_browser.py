"""`opq.js` in headless Chromium: in a page, in a Web Worker, with workers of its own and with none."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import node
import numpy as np
import pytest
from paths import TESTS
from plans import planned
from web_helpers import laplace, made
from web_server import Site, site

from opq.file.reader import Reader
from opq.file.stored import Grid, Trellis
from opq.quantizing.trellis import numbers

pytestmark = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))

WEB = TESTS / "web"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tensor in pages, one on a trellis, a small one."""
    rng = np.random.default_rng(0)
    codes = numbers(laplace(rng, 300, 1000, scale=1.5))
    path = tmp_path_factory.mktemp("browser") / "f.opq.safetensors"
    data = made(
        (planned("pages", (1000, 600)), Grid("pages", laplace(rng, 1000, 600, scale=2))),
        (planned("trellis", (300, 1000), "F16", codebook="trellis"), Trellis("trellis", codes)),
        (planned("small", (20, 30), "BF16"), Grid("small", laplace(rng, 20, 30, scale=2))),
    )
    path.write_bytes(data)
    return path


def files(path: Path) -> dict[str, bytes]:
    pages = {name: (WEB / name).read_bytes() for name in ("page.html", "look.js")}
    return {**pages, "opq.js": node.MODULE.read_bytes(), "f.safetensors": path.read_bytes()}


@pytest.fixture(scope="module")
def shown() -> Iterator[browser.Page]:
    with browser.browser() as page:
        yield page


def asked(shown: browser.Page, server: Site, **question: Any) -> dict[str, Any]:
    """What a page, or a worker in it, finds."""
    question = {"module": server.url("opq.js"), "url": server.url("f.safetensors"), **question}
    shown.call("url", url="about:blank")
    shown.call("url", url=f"{server.url('page.html')}#{urllib.parse.quote(json.dumps(question))}")
    for _ in range(600):
        if found := shown.run("return document.documentElement.dataset.found"):
            return dict(json.loads(found))
        time.sleep(0.1)
    raise TimeoutError(shown.errors())


@pytest.mark.parametrize("worker", [False, True], ids=["page", "worker"])
@pytest.mark.parametrize("options", [{}, {"workers": 0}, {"workers": 2}], ids=["usual", "none", "two"])
@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_file_is_read_by_its_address(
    shown: browser.Page, path: Path, worker: bool, options: dict[str, int], ranges: bool
) -> None:
    with site(files(path), ranges=ranges) as server, Reader(path) as reader:
        found = asked(shown, server, worker=worker, options=options)
        assert found.get("tensors") == {name: node.digest(reader.tensor(name)) for name in reader.names}, found
        assert found["inside"] == worker
        assert found["loaded"] >= path.stat().st_size
        if options:  # each worker loads the module anew
            modules = sum(name == "opq.js" for name, _ in server.asked)
            assert modules == 1 + options["workers"]
        assert shown.errors() == []


def test_a_file_that_was_dropped_is_read(shown: browser.Page, path: Path) -> None:
    with site(files(path)) as server, Reader(path) as reader:
        found = asked(shown, server, file=True)
        assert found.get("tensors") == {name: node.digest(reader.tensor(name)) for name in reader.names}, found


def test_a_module_from_another_origin_has_workers_too_and_decodes_in_place_where_none_can_be_had(
    shown: browser.Page, path: Path
) -> None:
    with site(files(path)) as server, site(files(path)) as other, Reader(path) as reader:
        wanted = {name: node.digest(reader.tensor(name)) for name in reader.names}
        module = other.url("opq.js")
        found = asked(shown, server, module=module, url=other.url("f.safetensors"), options={"workers": 2})
        assert found.get("tensors") == wanted, found
        assert shown.errors() == []
        text = node.MODULE.read_bytes().replace(b'new URL("./opq.js", import.meta.url)', b'"/nowhere.js"')
        assert text != node.MODULE.read_bytes()
        server.files["opq.js"] = text
        found = asked(shown, server, options={"workers": 2})
        assert found.get("tensors") == wanted, found
        assert any(name == "nowhere.js" for name, _ in server.asked)


def test_wrong_files_and_servers_are_errors_of_this_module(shown: browser.Page, path: Path) -> None:
    for change, code in (
        (lambda data: data[:-5], "truncated"),
        (lambda data: b"<html>" + data, "foreign"),
        (lambda data: data.replace(b'"opq":"1"', b'"opq":"9"'), "newer"),
        (lambda data: data[:-1] + b"\7", "corrupt"),
    ):
        with site({**files(path), "f.safetensors": change(path.read_bytes())}) as server:
            found = asked(shown, server)
            assert (found["code"], found["ours"]) == (code, True)
    with site(files(path)) as server:
        found = asked(shown, server, url=server.url("none.safetensors"))
        assert (found["code"], found["ours"]) == ("missing", True)
