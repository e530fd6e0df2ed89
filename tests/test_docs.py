"""The documentation builds without a warning, and the code on its pages runs."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from paths import ROOT

from opq.quantizing.trellis import LEAST

DOCS = ROOT / "docs"
PAGES = ["quickstart.md", *sorted(f"howto/{p.name}" for p in (DOCS / "howto").glob("*.md"))]

ELSEWHERE = re.compile(r"hf:|timm:|torchvision:|FILE|FOLDER|photographs/|ORG/NAME|PIPELINE|model\.opq")
"""Commands that fetch weights or name a file of the reader's own."""


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)])
def test_code_on_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for block in blocks(page):
            exec(compile(block, page, "exec"), names)  # the pages are this repository's own


def test_commands_on_the_pages_are_there() -> None:
    """Every `opq` command and option that a page shows is one that the command line knows."""
    from typer.main import get_command

    from opq.cli import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    shown = [line for p in PAGES for line in re.findall(r"^\$ opq (.+)$", (DOCS / p).read_text(), re.MULTILINE)]
    assert len(shown) > 10
    for line in shown:
        name, *rest = line.split()
        options = {o for parameter in known[name].params for o in (*parameter.opts, *parameter.secondary_opts)}
        assert {w for w in rest if w.startswith("-")} <= options, line


def test_commands_on_the_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command that needs no network, in the order of the pages, in one folder."""
    from typer.testing import CliRunner

    from opq.cli import app

    monkeypatch.chdir(tmp_path)
    shown = [line for p in PAGES for line in re.findall(r"^\$ opq (.+)$", (DOCS / p).read_text(), re.MULTILINE)]
    here = [line for line in dict.fromkeys(shown) if not ELSEWHERE.search(line)]
    assert len(here) >= 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the ONNX exporter
        for line in here:
            ran = CliRunner().invoke(app, line.split())
            assert ran.exit_code == 0, f"{line}: {ran.exception or ran.output}"
    written = {path.name for path in tmp_path.iterdir()}
    assert {"digits.opq.safetensors", "report.html", "digits.safetensors", "digits.onnx"} <= written


@pytest.mark.parametrize("page", PAGES)
def test_blocks_that_do_not_run_say_so(page: str) -> None:
    """A block of Python is executed above, or is marked `norun` and the sentence before it says what it needs."""
    kinds = re.findall(r"^```(.*(?:\n:.*)*)", (DOCS / page).read_text(), re.MULTILINE)
    python = [kind for kind in kinds if "python" in kind]
    assert all(kind == "python" or ":class: norun" in kind for kind in python)


def test_pages_and_notebooks_tell_from_how_many_bits_on_a_trellis_is_taken() -> None:
    pages = [*DOCS.glob("*.md"), *DOCS.glob("howto/*.md"), *(ROOT / "examples/notebooks").glob("*.ipynb")]
    said = {
        (page.name, rate)
        for page in pages
        for paragraph in re.split(r"\n\n|\],\n", page.read_text())
        if "trellis" in paragraph
        for rate in re.findall(r"([\d.]+) bits (?:per|a) weight (?:on\b|or\s+more)", " ".join(paragraph.split()))
    }
    assert len(said) >= 6
    assert {rate for _, rate in said} == {f"{LEAST:g}"}, said


def test_every_error_is_on_its_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import error_page

    error_page.write(tmp_path / "errors.md")
    assert (DOCS / "errors.md").read_text() == (tmp_path / "errors.md").read_text(), (
        "build the docs and commit errors.md"
    )


def test_every_command_is_on_its_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import cli_page
    from typer.main import get_command

    from opq.cli import app

    cli_page.write(tmp_path / "cli.md")
    text = (DOCS / "cli.md").read_text()
    assert text == (tmp_path / "cli.md").read_text(), "build the docs and commit cli.md"
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        section = text.split(f"\n## opq {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            assert all(f"`{o}`" in section for o in parameter.opts if o.startswith("-")), parameter.name
            assert parameter.help in section


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path / "site")]
    ran = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert (tmp_path / "site" / "notebooks" / "1_one_call.html").exists()
