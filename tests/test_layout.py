"""The rules of the layout, read from the real imports."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys

import layout
import pytest
from paths import DOCS, ROOT, TESTS

import opq


def test_every_module_stands_in_a_storey() -> None:
    assert {name.split(".")[0] for name in layout.modules()} == set(layout.STOREYS)


def test_a_file_imports_only_from_its_own_folder_and_from_storeys_before_it() -> None:
    floor = {name: k for k, name in enumerate(layout.STOREYS)}
    wrong = [str(i) for i in layout.imports() if floor[i.storeys[1]] > floor[i.storeys[0]]]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not layout.cycles()


def test_nothing_private_crosses_a_folder() -> None:
    assert not [str(i) for i in layout.imports() if i.name and i.name.startswith("_") and i.storeys[0] != i.storeys[1]]


def test_other_folders_use_what_a_folder_offers() -> None:
    """A name of the folder itself, or one of the modules that its `__all__` lists."""
    wrong = []
    for found in layout.imports():
        here, there = found.storeys
        names = layout.offered(there)
        if here != there and names is not None:
            wanted = found.module.split(".")[1] if "." in found.module else found.name
            if wanted is not None and wanted not in names:
                wrong.append(str(found))
    assert not wrong


@pytest.mark.parametrize("folder", [s for s in layout.STOREYS if layout.offered(s) is not None and s != "__init__"])
def test_a_folder_says_what_it_is_for_and_offers_only_what_is_there(folder: str) -> None:
    room = importlib.import_module(f"opq.{folder}")
    assert inspect.getdoc(room)
    for name in layout.offered(folder) or ():
        assert hasattr(room, name) or importlib.import_module(f"opq.{folder}.{name}"), name


def test_no_module_bears_the_name_of_a_public_function() -> None:
    functions = {name for name in opq.__all__ if inspect.isroutine(getattr(opq, name))}
    assert not [name for name in layout.modules() if name.split(".")[-1] in functions]


def test_the_public_modules_are_exactly_these() -> None:
    run = [sys.executable, "-c", "import opq; print(*(n for n in dir(opq) if type(getattr(opq, n)) is type(opq)))"]
    shown = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert shown == sorted(layout.PUBLIC_MODULES)


def test_documentation_names_nothing_private() -> None:
    """`opq.x` in how-tos, in the reference and in README is a public name, or a member of a public module."""
    public = {*opq.__all__, *layout.PUBLIC_MODULES, "safetensors", "js"}
    pages = [ROOT / "README.md", DOCS / "api.md", DOCS / "quickstart.md", *sorted((DOCS / "howto").glob("*.md"))]
    wrong = []
    for page in pages:
        for name in re.findall(r"(?<![\w./-])opq\.([a-z_]\w*)", page.read_text(), re.IGNORECASE):
            if name not in public and not name.startswith("__"):
                wrong.append(f"{page.name}: opq.{name}")
    assert not wrong


def test_the_drawing_in_the_documentation_is_today_s() -> None:
    assert layout.drawn() == layout.drawing(), "run: python tests/helpers/layout.py"


def test_the_files_and_functions_on_the_page_are_there() -> None:
    """Rows `| stage | file | functions |` of docs/architecture.md."""
    rows = re.findall(r"^\|[^|]*\| `([\w/]+\.py)` \| ([^|]*) \|$", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for file, names in rows:
        text = (layout.PACKAGE / file).read_text()
        missing = [
            n for n in re.findall(r"`(\w+)`", names) if not re.search(rf"^(def|class) {n}\b", text, re.MULTILINE)
        ]
        assert not missing, (file, missing)


def test_nothing_is_cited_that_a_reader_does_not_have() -> None:
    """Documents of the founding, `DESIGN` and the like: what is cited stands in docs/."""
    pages = [*layout.modules().values(), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.py"), ROOT / "README.md"]
    assert not [str(path) for path in pages if re.search(r"\b(DESIGN|ARCHITECTURE|STYLE)\b", path.read_text())]


def test_the_version_stands_in_one_place() -> None:
    assert re.search(r'^dynamic = \["version", "readme"\]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    holders = [ROOT / name for name in ("pyproject.toml", "CITATION.cff", "RELEASE.md", "docs/conf.py")]
    assert not [str(path) for path in holders if re.search(rf"\b{re.escape(opq.__version__)}\b", path.read_text())]


def test_no_test_is_imported() -> None:
    """What tests share stands in tests/helpers; and no two helpers or tests have one name."""
    files = [path for path in TESTS.rglob("*.py") if "__pycache__" not in path.parts]
    imported = re.compile(r"^\s*(?:from|import) (?:tests\.)?(?:\w+\.)*test_\w+", re.MULTILINE)
    assert not [str(path) for path in files if imported.search(path.read_text())]
    helpers = [path.stem for path in files if path.parent.name in ("helpers", "golden")]
    assert len(set(helpers)) == len(helpers)
    assert not [name for name in helpers if name.startswith("test_")]


def test_files_that_are_named_are_there() -> None:
    """`tests/...py`, `opq/...py` and `examples/...py` in pages and sources."""
    pages = [*layout.modules().values(), *DOCS.rglob("*.md"), *TESTS.rglob("*.py"), *ROOT.glob("*.md")]
    pages += (ROOT / "examples").rglob("*.py")
    named = (
        (page, path)
        for page in pages
        for path in re.findall(r"\b(?:tests|opq|examples)/[a-z_/]+\.py\b", page.read_text())
    )
    assert not [f"{page.relative_to(ROOT)}: {path}" for page, path in named if not (ROOT / path).exists()]
