"""The folder of a page that runs the shipped network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from paths import ROOT

import opq
from opq import demo
from opq.export.web_site import Site, save_web
from opq.sources.digits import load

RUNTIME = ROOT / "examples" / "web" / "node_modules" / "onnxruntime-web" / "dist"
"""Where `npm install` in examples/web puts it."""


def digits_site(folder: Path, *, runtime: Path | None = None) -> tuple[Path, Site]:
    """The file and the folder."""
    file = folder / "digits.opq.safetensors"
    opq.compress("demo:digits", bits=3, probe=False).save(file)
    return file, save_web(file, folder / "site", load(), runtime=runtime)


def asked(file: Path, images: int = 5) -> tuple[torch.Tensor, np.ndarray]:
    """Some images, and what Python's dense model from the file says of them."""
    x = demo.test_split()[0][:images]
    with torch.no_grad():
        return x, opq.load(file, load())(x).numpy()
