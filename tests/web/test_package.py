"""`opq.js` as a package: small, without dependencies, with types that a compiler checks, in the wheel."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import node
import pytest
from paths import ROOT, TESTS

import opq

WEB = node.MODULE.parent
MOST = 30_000
"""Bytes that the module may take, gzipped."""
COMPILER = "typescript@5"


def test_the_module_is_small() -> None:
    assert len(gzip.compress(node.MODULE.read_bytes(), 9)) <= MOST


def test_the_module_depends_on_nothing_and_evaluates_nothing() -> None:
    code = re.sub(r"/\*.*?\*/|^\s*//.*$", "", node.MODULE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^\s*import\b|\bimport\(|\brequire\(|\beval\(|new Function|innerHTML", code, re.MULTILINE)
    package = json.loads((WEB / "package.json").read_text())
    assert not {"dependencies", "peerDependencies", "devDependencies", "scripts"} & set(package)


def test_the_package_says_the_version_of_this_one_and_names_files_that_are_there() -> None:
    package = json.loads((WEB / "package.json").read_text())
    assert package["version"] == opq.__version__
    named = {*package["files"], package["types"], *package["exports"]["."].values()}
    assert all((WEB / name).is_file() for name in named)


def test_the_wheel_holds_the_module() -> None:
    listed = re.search(r"package-data\]\nopq = (\[.*\])", (ROOT / "pyproject.toml").read_text())
    assert listed is not None
    held = json.loads(listed[1])
    matched = {path for pattern in held for path in (ROOT / "opq").glob(pattern)}
    assert {WEB / name for name in ("opq.js", "opq.d.ts", "package.json", "README.md")} <= matched


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the TypeScript compiler from npm, and the module as the package that it is."""
    if (reason := node.missing()) or shutil.which("npm") is None:
        pytest.skip(reason or "no npm on this machine")
    folder = tmp_path_factory.mktemp("typescript")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), COMPILER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm has no {COMPILER} here: {done.stderr.strip()[-200:]}")
    shutil.copytree(WEB, folder / "node_modules/opq-web")
    return folder


def test_types_are_those_of_the_documentation(compiler: Path) -> None:
    shutil.copy(TESTS / "web/usage.ts", compiler)
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable"]
    tsc = compiler / "node_modules/.bin/tsc"
    done = subprocess.run([tsc, *options, "usage.ts"], cwd=compiler, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_all_that_the_types_promise_is_there() -> None:
    if reason := node.missing():
        pytest.skip(reason)
    text = (WEB / "opq.d.ts").read_text()
    declared = set(re.findall(r"^export declare (?:const|function|class) (\w+)", text, re.MULTILINE))
    code = f"import({json.dumps(node.MODULE.as_uri())}).then((m) => console.log(JSON.stringify(Object.keys(m))))"
    found = set(json.loads(subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout))
    assert found == declared | {"default", "narrowed"}  # the last is for the tests
