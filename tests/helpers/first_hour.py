"""The first hour of a new user: the wheel alone, none of the extras, and every command that the pages show.

python tests/helpers/first_hour.py FOLDER       unpacks the wheel into FOLDER and runs all of it there

The wheel is built from the working tree and unpacked, as an installer does, so that what is not in the wheel is not
there; packages of the extras are made not importable by a finder, so that a machine with all of them shows what one
without them would.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paths import DOCS, ROOT

EXTRAS = (
    *("PIL", "transformers", "huggingface_hub", "timm", "torchvision", "matplotlib", "jinja2", "optuna", "sklearn"),
    *("onnx", "onnxscript", "onnxruntime", "ninja", "sentence_transformers", "compressed_tensors"),
)
"""What the core must do without."""
PAGES = (ROOT / "README.md", DOCS / "quickstart.md", *sorted((DOCS / "howto").glob("*.md")))
BLOCKS = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.compile(r"hf:|timm:|torchvision:|FILE|FOLDER|photographs/|ORG/NAME|model\.opq|\./|native")
"""Commands that fetch weights, name a file of the reader's own, or compile."""
BLOCK = """import sys
class _Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, _Absent())
"""


@dataclasses.dataclass(frozen=True)
class Ran:
    """One command as the user saw it."""

    line: str
    code: int
    shown: str


def unpacked_wheel(folder: Path) -> Path:
    """Builds the wheel and unpacks it into a folder of its own, which is returned."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("opq-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def documented() -> list[str]:
    """The `opq` commands of README, quickstart and how-tos that need no network, once each, in order."""
    blocks = (block for page in PAGES for block in BLOCKS.findall(page.read_text()))
    shown = (line for block in blocks for line in re.findall(r"^(?:\$ )?(?:.* && )?opq (.+)$", block, re.MULTILINE))
    lines = (line.split("#")[0].strip() for line in shown)
    return [line for line in dict.fromkeys(lines) if not ELSEWHERE.search(line)]


def first_hour(folder: Path, *, extras: bool) -> Iterator[Ran]:
    """Runs every documented command in a fresh folder against the unpacked wheel.

    Args:
        extras: whether packages of the extras may be imported.
    """
    site = unpacked_wheel(folder)
    if not extras:
        (site / "sitecustomize.py").write_text(BLOCK.format(names=set(EXTRAS)))
    home = folder / "home"
    home.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "80"}
    for line in documented():
        ran = subprocess.run(
            [sys.executable, "-m", "opq", *line.split()], cwd=home, env=env, capture_output=True, text=True, check=False
        )
        yield Ran(line, ran.returncode, ran.stdout + ran.stderr)


ALONE = 'import sys\nsys.modules["torchvision"] = None\n'
"""A machine without torchvision: one that was built for another torch keeps transformers from being imported."""
READ_BACK = """
import importlib.util, json, sys
import numpy, onnxruntime, torch
import opq.hub
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

texts = ["a small file", "networks are large", "the cat sat"]
source, hf, hub = (SentenceTransformer(folder).encode(texts) for folder in (sys.argv[1], "hf", "hub"))
found = {"cosine": float((source * hf).sum(1).min()), "sentences of hub": float(numpy.abs(hf - hub).max())}
tokens = AutoTokenizer.from_pretrained("hf")(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    names = ["hf", "hub", *(["ct"] if importlib.util.find_spec("compressed_tensors") else [])]
    states = {name: AutoModel.from_pretrained(name).eval()(**tokens).last_hidden_state for name in names}
found |= {name: float((states[name] - states["hf"]).abs().max()) for name in names[1:]}
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
shown = session.run(None, {one.name: tokens[one.name].numpy() for one in session.get_inputs()})[0]
found["onnx"] = float(numpy.abs(shown - states["hf"].numpy()).max())
found["inputs"] = [[one.name, one.shape] for one in session.get_inputs()]
print(json.dumps(found))
"""
"""Exports of a sentence transformer, opened by the packages that they are for: how far their outputs are apart."""


def read_back(folder: Path, model: Path) -> dict[str, Any]:
    """What `READ_BACK` finds of every export of a sentence transformer that the unpacked wheel writes.

    Args:
        model: its folder in Hugging Face layout.
    """
    site, home = unpacked_wheel(folder), folder / "home"
    (site / "sitecustomize.py").write_text(ALONE)
    home.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def run(*words: str) -> str:
        ran = subprocess.run([sys.executable, *words], cwd=home, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    file = "model.opq.safetensors"
    run("-m", "opq", "compress", f"hf:{model}", "--bits", "6", "--code-bits", "8", "--no-probe", "-o", file)
    for kind, path in (("hf", "hf"), ("hub", "hub"), ("compressed-tensors", "ct"), ("onnx", "model.onnx")):
        run("-m", "opq", "export", file, "--to", kind, "--model", f"hf:{model}", "-o", path)
    return dict(json.loads(run("-c", READ_BACK, str(model)).splitlines()[-1]))


if __name__ == "__main__":
    for one in first_hour(Path(sys.argv[1]), extras="--extras" in sys.argv):
        print(f"$ opq {one.line}\n{one.shown}[{one.code}]\n")
