"""The rules of the layout, read from the real imports."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys

import layout
import pytest
from paths import DOCS, ROOT

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
