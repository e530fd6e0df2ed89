"""Puts named faults into a copy of the package, one at a time, and looks whether the tests that are named for it fail.

    python tests/helpers/put_faults.py [--named] [--in FOLDER ...] [--find WORDS] [--json FILE]

`named_faults.NAMED` are faults that the tests once let through, `folder_faults.FOLDERS` some of every folder that would
change what the package promises. A fault is caught if a test fails, or never ends; at the end the tests that failed are
run without any fault, where they must pass. `.ci/mutants` draws faults by chance instead. Run it in the environment of
the tests, on Linux; a fault takes the seconds of its tests.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from folder_faults import FOLDERS
from named_faults import NAMED, Fault
from paths import ROOT

CPU = 300
"""Seconds of processor after which tests are taken for ones that never end."""
HEAVY = (
    *("torch", "scipy.optimize", "scipy.integrate", "cvxpy", "constriction", "pcodec", "numba", "safetensors.torch"),
    *("hypothesis.extra.numpy", "typer.testing", "rich.console"),
)
"""Imported once, before the tests of each fault are run in a fork of this process."""
COPIED = ("opq", "tests")
"""What is copied: programs that tests start find the fault, too. The rest of the checkout is linked."""


@contextmanager
def copied() -> Iterator[Path]:
    """A checkout whose package may be changed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        copy.mkdir()
        for path in ROOT.iterdir():
            if path.name in COPIED:
                shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif path.name != ".git":
                (copy / path.name).symlink_to(path)
        if (shared := ROOT.parent / "shared").exists():
            (copy.parent / "shared").symlink_to(shared.resolve())
        yield copy


@contextmanager
def put(fault: Fault, copy: Path) -> Iterator[None]:
    """The fault is in the copy inside the block."""
    path = copy / "opq" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.before) != 1:
        raise ValueError(f"{fault.file} holds {fault.before!r} {text.count(fault.before)} times")
    path.write_text(text.replace(fault.before, fault.after), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


class _Failed:
    """A plugin of pytest that notes the first test that fails, in a file."""

    def __init__(self, noted: Path):
        self.noted = noted

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.noted.exists():
            self.noted.write_text(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport


def failing(copy: Path, tests: Sequence[str]) -> str | None:
    """The first of these tests of a checkout that fails, run in a fork of this process; None if all pass.

    Raises:
        ValueError: there are no such tests.
    """
    noted = copy.parent / "failed"
    noted.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 4
        try:
            status = _run(copy, tests, noted)
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    if noted.exists():
        return noted.read_text()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) > 1:  # pytest's own: wrong usage, or nothing to run
        raise ValueError(f"these tests cannot be run: {', '.join(tests)}")
    return "a test that does not end" if status else None


def _run(copy: Path, tests: Sequence[str], noted: Path) -> int:
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.path[:0] = [str(copy)]
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    options = ("-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(copy))
    assertions = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    return int(pytest.main([*options, *assertions, *(f"tests/{test}" for test in tests)], plugins=[_Failed(noted)]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--named", action="store_true", help="only those that the tests once let through")
    options.add_argument("--in", nargs="*", default=[], dest="within", metavar="FOLDER")
    options.add_argument("--find", default="", metavar="WORDS", help="only faults whose description holds these words")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for module in HEAVY:
        importlib.import_module(module)
    sys.path.append(str(ROOT / "examples" / "bench"))
    importlib.import_module("tiny").import_torchvision()
    for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", None) or "").startswith(f"{ROOT}/")]:
        if name != "__main__":  # the copy's own are imported by each fork
            del sys.modules[name]
    sys.path[:] = [p for p in sys.path if not Path(p or ".").resolve().is_relative_to(ROOT)]
    chosen = [f for f in (NAMED if asked.named else (*NAMED, *FOLDERS)) if asked.find in f.what]
    chosen = [f for f in chosen if not asked.within or f.file.split("/")[0].removesuffix(".py") in asked.within]
    results = []
    with copied() as copy:
        for fault in chosen:
            start = time.perf_counter()
            with put(fault, copy):
                test = failing(copy, fault.tests)
            results.append({"fault": fault.what, "file": fault.file, "test": test})
            result = f"caught by {test}" if test else "SURVIVED"
            print(f"{time.perf_counter() - start:5.1f} s  {fault.file}: {fault.what}: {result}", flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(results, indent=1))
        caught = sorted({r["test"].removeprefix("tests/") for r in results if r["test"] and "::" in r["test"]})
        if caught and (test := failing(copy, caught)):
            raise SystemExit(f"without any fault {test} fails, too")
    print(f"{sum(r['test'] is not None for r in results)} of {len(results)} caught")


if __name__ == "__main__":
    main()
