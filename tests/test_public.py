"""The public surface is small, sorted, documented, and what `__all__` says."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import opq

PACKAGE = Path(opq.__file__).parent


def test_all_is_sorted_and_there() -> None:
    assert list(opq.__all__) == sorted(opq.__all__)
    assert all(hasattr(opq, name) for name in opq.__all__)


def test_nothing_else_is_public() -> None:
    assert set(dir(opq)) == {*opq.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = opq.nothing


def test_everything_public_is_documented() -> None:
    for name in opq.__all__:
        assert inspect.getdoc(getattr(opq, name)), name


def test_typed() -> None:
    assert (Path(opq.__file__).parent / "py.typed").exists()


def test_importing_any_module_needs_what_the_core_requires_and_nothing_else() -> None:
    required = {re.split(r"[<>=]", r)[0] for r in requires("opq") or () if "extra" not in r}
    allowed = set(sys.stdlib_module_names) | required | {"opq"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, path.name


def test_every_requirement_of_the_core_has_an_oldest_version_and_is_used() -> None:
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for requirement in requires("opq") or ():
        if "extra" not in requirement:
            name = re.split(r"[<>=]", requirement)[0]
            assert ">=" in requirement, requirement
            assert re.search(rf"^\s*(import|from) {name}\b", text, re.MULTILINE), name


def test_cvxpy_is_imported_where_constraints_are_used_and_nowhere_else() -> None:
    call = "opq.compress('demo:digits', bits=3, probe=False{})"
    bare, bound = call.format(""), call.format(", constraints=[opq.constraints.bits('15*', min=4)]")
    code = f"import sys, opq; sys.modules['cvxpy'] = None; {bare}; opq.report, opq.export, opq.evaluation; "
    code += f"del sys.modules['cvxpy']; {bound}; assert 'cvxpy' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
