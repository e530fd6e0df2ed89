"""The golden files reach every branch of reader and writer: what none of them executes could change unseen."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import GOLDEN

from opq.base import rounding
from opq.coding import (
    adaptive,
    class_tables,
    classes,
    entropy,
    numbers,
    pages,
    stack,
    symbols,
    tables,
    tensor_model,
    text,
)
from opq.file import (
    codebook,
    compressed_kinds,
    folder_reader,
    header,
    index,
    index_columns,
    index_rows,
    kept_kinds,
    payload,
    reader,
    stored,
    writer,
)
from opq.quantizing import grid, rows, trellis, turned

COVERED = GOLDEN / "covered.py"
MODULES = (
    *(adaptive, class_tables, classes, entropy, numbers, pages, stack, symbols, tables, tensor_model, text),
    *(codebook, compressed_kinds, folder_reader, header, index, index_columns, index_rows, kept_kinds, payload, reader),
    *(stored, writer, grid, rounding, rows, trellis, turned),
)
ELSEWHERE = {
    classes: "numpy_seconds",
    entropy: "coded_size Large.codes",
    tensor_model: "Coding.same",
    folder_reader: "FolderReader.__repr__ FolderReader.basis FolderReader.sizes FolderReader.bytes "
    "FolderReader.base FolderReader.exponents FolderReader.columns FolderReader.turn FolderReader.check_base "
    "FolderReader.tensor FolderReader.verify parts_of check_payloads _crc index_bytes",
    header: "header payload_starts",
    reader: "InMemory.parts Reader.exponents Reader.columns Reader.turn Reader.__repr__ Reader.basis Reader.sizes "
    "Reader.bytes",
    payload: "Payload.size Stored.payload Stored.restore Stored.digest Stored.codes_of Stored.check Coded.read "
    "Stored.exponents_of Stored.columns_of Stored.turn_of",
    compressed_kinds: "Listed.entries Turned.matrix Turned.exponents_of Turned.behind",
    writer: "Packed.size Packed.write Packed.verify Packed._same write_file size_of foreseen",
    grid: "quantize _on_paths _quantize dequantize",
    rounding: "rounded",
    rows: "exponents in_quarters spread divided",
    trellis: "step nearest numpy_seconds _viterbi costs counted error price prices _excess "
    "Follower.__init__ Follower.__call__",
    turned: "Turn.spread Turn.spread_columns",
}
"""Functions that neither give nor read the bytes of a file: sizes, writing aside, dense files, how codes are chosen,
and those that each kind of payload has for itself."""

Functions = dict[str, dict[str, Any]]


def executed(way: str) -> dict[Path, Functions]:
    """Of every file of the package, what reading or writing the golden files executed, function by function."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}  # no second one in the child
    done = subprocess.run([sys.executable, COVERED, way], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)["files"]
    return {Path(name).resolve(): file["functions"] for name, file in report.items()}


@pytest.fixture(scope="module")
def read() -> dict[Path, Functions]:
    return executed("read")


@pytest.fixture(scope="module")
def written() -> dict[Path, Functions]:
    return executed("write")


def file_of(module: ModuleType) -> Path:
    return Path(str(module.__file__)).resolve()


ALSO_ERRORS = ("checked(int(out.min()))", 'return memoryview(b"")')
"""Lines that come before an error only: a call that raises; an empty file, which has no header."""


def errors(source: str) -> set[int]:
    """The lines of blocks that end in `raise`, of handlers of exceptions, and of what machine code does in numpy's
    place: too much work for a golden file, compared with numpy by tests/coding."""
    lines = {k for k, line in enumerate(source.splitlines(), 1) if line.strip() in ALSO_ERRORS}
    for node in ast.walk(ast.parse(source)):
        for body in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if isinstance(body, list) and body and isinstance(body[-1], ast.Raise) and not _function(node):
                lines |= _lines(body)
        if isinstance(node, ast.If) and "LOOPS(" in ast.unparse(node.test):
            lines |= _lines(node.body)
        if isinstance(node, ast.ExceptHandler):
            lines |= _lines([node, *node.body])
    return lines


def _function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.Module)


def _lines(body: list[Any]) -> set[int]:
    return {line for node in body for line in range(node.lineno, node.end_lineno + 1)}


def missing(module: ModuleType, functions: Functions, also: Functions) -> Iterator[str]:
    """Lines and branches of functions that were entered, but for errors and what `also` executed."""
    allowed = errors(file_of(module).read_text())
    for name, found in functions.items():
        if not found["executed_lines"]:
            continue
        other = also.get(name, {"executed_lines": [], "executed_branches": []})
        lines = set(found["missing_lines"]) - allowed - set(other["executed_lines"])
        branches = {(a, b) for a, b in found["missing_branches"] if a not in allowed and b not in allowed}
        branches -= {(a, b) for a, b in other["executed_branches"]}
        yield from (f"{module.__name__}.{name}: line {line}" for line in sorted(lines))
        yield from (f"{module.__name__}.{name}: branch {a} -> {b}" for a, b in sorted(branches))


UPDATES = {text: ("put_bytes",)}
"""Functions that the files of updates need too, whose bytes tests/updates look at."""
WRITING_TOO = {rounding: ("fits", "pattern_of")}
"""Functions of the writer that the reader enters, for one of the widths."""


def test_reading_the_golden_files_takes_every_branch_of_the_reader(
    read: dict[Path, Functions], written: dict[Path, Functions]
) -> None:
    """But for errors, which other tests make."""
    left: list[str] = []
    for module in MODULES:
        also = {name: written[file_of(module)][name] for name in WRITING_TOO.get(module, ())}
        left += missing(module, read[file_of(module)], also)
    assert left == []


def test_writing_the_golden_files_takes_every_branch_of_the_writer(
    read: dict[Path, Functions], written: dict[Path, Functions]
) -> None:
    """Of what only the writer enters; a branch in common may be the reader's."""
    left = [
        what
        for m in MODULES
        for what in missing(
            m, {n: f for n, f in written[file_of(m)].items() if n not in UPDATES.get(m, ())}, read[file_of(m)]
        )
    ]
    assert left == []


def test_every_function_belongs_to_one_of_them_or_is_named(
    read: dict[Path, Functions], written: dict[Path, Functions]
) -> None:
    for module in MODULES:
        both = read[file_of(module)], written[file_of(module)]
        idle = {n for n in both[0] if n and not any(found[n]["executed_lines"] for found in both)}
        assert idle == set(ELSEWHERE.get(module, "").split()), module.__name__


def test_a_branch_that_no_golden_file_takes_is_named() -> None:
    """The judge of coverage: an error may be missing, nothing else."""
    source = "def f(x):\n    if x:\n        raise ValueError\n    if x > 1:\n        x = 2\n    return x\n"
    assert errors(source) == {3}
    module = ModuleType("m")
    module.__file__ = str(COVERED)
    found = {"executed_lines": [1, 2, 4, 6], "missing_lines": [5], "missing_branches": [[4, 5], [4, 6]],
             "executed_branches": []}  # fmt: skip
    assert list(missing(module, {"f": found}, {})) == ["m.f: line 5", "m.f: branch 4 -> 5", "m.f: branch 4 -> 6"]
    assert (
        list(missing(module, {"f": found}, {"f": {"executed_lines": [5], "executed_branches": [[4, 5], [4, 6]]}})) == []
    )
