"""The README's code runs, and what it shows is what is printed."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

HERE = {**os.environ, "PYTHONPATH": str(ROOT)}
SEEN: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_python_blocks_run(tmp_path: Path) -> None:
    code = "\n".join(blocks("python"))
    assert "opq.compress(" in code
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=HERE, check=True)
    assert (tmp_path / "digits.opq.safetensors").exists()


@pytest.mark.parametrize("block", blocks("console"))
def test_commands_print_what_is_shown(block: str, tmp_path: Path) -> None:
    """Commands of `opq` run in turn; output that the README shows is compared to the letter, but for seconds.

    Bytes may differ by a thousandth: a probe's arithmetic is the machine's.
    """
    for shown in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = shown.partition("\n")
        opq = command.rpartition("&& ")[2].split("#")[0].split()
        if opq[0] != "opq":
            continue
        ran = subprocess.run([sys.executable, "-m", *opq], cwd=tmp_path, env=HERE, **SEEN)
        if output.strip():
            got, wanted = _timeless(ran.stdout), _timeless(output)
            assert re.sub(BYTES, "", got) == re.sub(BYTES, "", wanted)
            assert _bytes(got) == pytest.approx(_bytes(wanted), rel=1e-3)


BYTES = r"([\d,]+)(?= bytes)"


def test_the_description_on_an_index_has_no_link_into_the_repository() -> None:
    described = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")["described"]
    inner = re.compile(r"\]\((?!https?:|#)")
    assert inner.search(README)
    bare = described(README, "", "v1")
    assert not inner.search(bare)
    assert "![" not in bare
    assert "[the comparison]" not in bare
    assert "the comparison" in bare
    whole = described(README, "https://host/opq/", "v1.2.3")
    assert not inner.search(whole)
    assert "[the comparison](https://host/opq/blob/v1.2.3/docs/comparison.md)" in whole
    assert "](https://host/opq/raw/v1.2.3/docs/pictures/readme.png)" in whole


def _timeless(text: str) -> str:
    return re.sub(r"[\d.]+ s\b", "", text).strip()


def _bytes(text: str) -> list[int]:
    return [int(found.replace(",", "")) for found in re.findall(BYTES, text)]


def test_the_test_command_is_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    for command in ('python -m pip install -c constraints.txt -e ".[test]"', "python -m pytest"):
        assert command in README
        assert command.split(" -m ")[1].split()[0] in ci
