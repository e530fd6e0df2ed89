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
from paths import GOLDEN, ROOT, TESTS

import opq
from opq.file.reader import Reader

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


@pytest.mark.skipif(shutil.which("deno") is None, reason="no deno on this machine")
def test_deno_reads_a_file_with_and_without_workers(tmp_path: Path) -> None:
    path = GOLDEN / "v1/pages.opq.safetensors"
    code = f"""
    import * as opq from {json.dumps(node.MODULE.as_uri())};
    for (const workers of [0, 1]) {{
      const model = await opq.open(new URL({json.dumps(path.as_uri())}), {{ workers }});
      const {{ data }} = await model.tensor("w");
      console.log(data.length, data.reduce((sum, value) => sum + value, 0));
    }}
    """
    (tmp_path / "read.mjs").write_text(code)
    command = ["deno", "run", "--no-config", "--allow-read", "read.mjs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Reader(path) as reader:
        codes, step = reader.codes("w"), reader.plan["w"].step
    assert done.stdout.splitlines() == [f"{codes.size} {step * int(codes.sum())}".removesuffix(".0")] * 2
