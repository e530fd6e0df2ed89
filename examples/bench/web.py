"""Reading weights in a page: the decoder in JavaScript next to the reader in Python and to downloading float32.

    python examples/bench/web.py [--quick] [--only NAME]

Needs chromium and chromedriver. Each network is compressed to 3 bits and read from memory: by Python; by `opq.js` in
headless Chromium on the page's own thread, and by workers; and as dense float32. Both times are medians of three fresh
pages: `first_seconds` of the first reading, which still compiles, `decode_seconds` of the best in a page, of five
readings and of as many as take two seconds. `seconds` is what a visitor waits at 50 Mbit/s: the file's bytes, and the
first reading. Prints a table and writes results/web.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import results
import torch
import zoo
from codec import resnet50
from safetensors.torch import save

import opq

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "helpers"))

import browser  # noqa: E402
from web_server import Site, site  # noqa: E402

COLUMNS = (
    "model",
    "method",
    "file_bytes",
    "first_seconds",
    "decode_seconds",
    "decode_rate",
    "download_seconds",
    "seconds",
)
BITS, MEGABIT = 3.0, 50.0
PAGES, TIMES, SECONDS = 3, 5, 2.0
WORKERS = max((os.cpu_count() or 2) - 1, 2)
State = Mapping[str, torch.Tensor]


def networks(quick: bool) -> Iterator[tuple[str, Callable[[], State]]]:
    """Name, and what gives the weights."""
    if (zoo.SHARED / "weights").is_dir():
        yield "resnet-20", lambda: zoo.resnet20().state_dict()
        yield "mobilenet-v1-0.75", lambda: zoo.mobilenet().state_dict()
    if not quick:
        yield "minilm-l6", lambda: zoo.minilm()[0].state_dict()
        yield "resnet-50-shapes", resnet50


def rows(name: str, state: State, shown: browser.Page, folder: Path) -> Iterator[dict[str, Any]]:
    """What the ways to read one network take."""
    path = folder / f"{name}.opq.safetensors"
    opq.compress(dict(state), bits=BITS).save(path)
    floats = {k: v.float().contiguous().clone() for k, v in state.items() if v.is_floating_point()}
    weights, small, plain = sum(v.numel() for v in floats.values()), path.read_bytes(), save(floats)
    files = {"page.html": (HERE / "web.html").read_bytes(), "small": small, "dense": plain}
    files["opq.js"] = (Path(opq.__file__).parent / "web" / "opq.js").read_bytes()

    def row(method: str, size: int, first: float, best: float) -> dict[str, Any]:
        download = 8 * size / (MEGABIT * 1e6)
        rate = weights / best / 1e6 if size < weights else None  # dense ones are views
        times = {"first_seconds": first, "decode_seconds": best, "decode_rate": rate}
        waits = {"download_seconds": download, "seconds": download + first}
        return {"model": name, "method": method, "file_bytes": size, "weights": weights, **times, **waits}

    with site(files) as server:
        yield row("dense float32 in the page", len(plain), *in_page(shown, server, "dense", {}))
        yield row("opq.js, one thread", len(small), *in_page(shown, server, "small", {"workers": 0}))
        yield row(f"opq.js, {WORKERS} workers", len(small), *in_page(shown, server, "small", {"workers": WORKERS}))
    yield row("Python", len(small), *in_python(path))


def in_page(shown: browser.Page, server: Site, kind: str, options: dict[str, int]) -> tuple[float, float]:
    """Seconds of the first reading in a fresh page, and of the best in it: medians of some pages."""
    asked = {"url": f"./{kind}", "kind": kind, "options": options, "times": TIMES, "seconds": SECONDS}
    found = [
        measured(shown, f"{server.url('page.html')}#{urllib.parse.quote(json.dumps(asked))}") for _ in range(PAGES)
    ]
    return statistics.median(seconds[0] for seconds in found), statistics.median(map(min, found))


def measured(shown: browser.Page, url: str) -> list[float]:
    """Seconds of the first reading in a page, and of the best."""
    shown.call("url", url="about:blank")
    shown.call("url", url=url)
    for _ in range(3000):
        if text := shown.run("return document.documentElement.dataset.found"):
            found = json.loads(text)
            if "error" in found:
                raise SystemExit(found["error"])
            return list(found["seconds"])
        time.sleep(0.1)
    raise SystemExit(f"no answer from the page: {shown.errors()}")


def in_python(path: Path) -> tuple[float, float]:
    seconds = []
    for _ in range(TIMES):
        before = time.perf_counter()
        with opq.Reader(path) as reader:
            reader.state_dict()
        seconds.append(time.perf_counter() - before)
    return seconds[0], min(seconds)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="small networks only")
    options.add_argument("--only", help="one network")
    chosen = options.parse_args()
    if reason := browser.missing():
        raise SystemExit(reason)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, browser.browser() as shown:
        for name, state in networks(chosen.quick):
            if chosen.only in (None, name):
                found += rows(name, state(), shown, Path(folder))
                results.show(found[-4:], COLUMNS, f"{name}, {BITS:g} bits, {MEGABIT:g} Mbit/s")
    print(results.merge("web", found))


if __name__ == "__main__":
    main()
