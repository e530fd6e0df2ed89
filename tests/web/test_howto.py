"""The code on docs/howto/web.md runs as it stands there, Python and JavaScript."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

import node
import pytest
from paths import DOCS

from opq.file.reader import Reader

pytestmark = pytest.mark.skipif(node.missing() is not None, reason=str(node.missing()))

PAGE = (DOCS / "howto/web.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "web.md", "exec"), {})  # the pages are this repository's own
    return tmp_path


def test_javascript_on_the_page_runs(folder: Path) -> None:
    found = []
    for k, block in enumerate(blocks("javascript")):
        (folder / f"{k}.mjs").write_text(block)
        done = subprocess.run(["node", f"{k}.mjs"], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert len(found) == 2
    with Reader(folder / "digits.opq.safetensors") as reader:
        assert all(name in text for text in found for name in reader.names)
        assert f"of {reader.bytes} bytes" in found[1]


def test_the_size_that_the_page_names_is_that_of_the_module() -> None:
    named = re.search(r"one\s+file\s+of\s+(\d+)\s+kB\s+gzipped", PAGE)
    assert named is not None
    assert abs(len(gzip.compress(node.MODULE.read_bytes(), 9)) / 1000 - int(named[1])) < 1
