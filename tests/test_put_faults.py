"""Faults that are put into the package on purpose: the lists fit today's code, and every one is caught."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from folder_faults import FOLDERS
from named_faults import NAMED, Fault
from paths import HELPERS, ROOT, TESTS
from put_faults import put

FAULTS = (*NAMED, *FOLDERS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_changes_one_place_of_the_code_and_names_tests_that_exist(fault: Fault) -> None:
    text = (ROOT / "opq" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.before) == 1, "the code has changed: put the fault into the code of today"
    assert fault.after != fault.before
    assert fault.tests
    for test in fault.tests:
        file, _, function = test.partition("::")
        assert (TESTS / file).exists()
        assert not function or f"def {function}(" in (TESTS / file).read_text(encoding="utf-8")


def test_every_folder_of_the_package_has_faults() -> None:
    folders = {path.parent.name for path in (ROOT / "opq").glob("*/*.py")} - {"opq"}
    tried = {fault.file.split("/")[0] for fault in FAULTS if "/" in fault.file}
    assert folders <= tried


def test_a_fault_is_in_the_copy_for_a_while_only(tmp_path: Path) -> None:
    path = tmp_path / "opq" / "some.py"
    path.parent.mkdir()
    path.write_text("a = 1\nb = 2\n")
    fault = Fault(what="b is three", file="some.py", before="b = 2", after="b = 3", tests=("test_some.py",))
    with put(fault, tmp_path):
        assert path.read_text() == "a = 1\nb = 3\n"
    assert path.read_text() == "a = 1\nb = 2\n"
    path.write_text("b = 2\nb = 2\n")
    with pytest.raises(ValueError, match="2 times"), put(fault, tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="tests run in forks with limits of the processor's time")
def test_every_fault_that_tests_once_let_through_is_caught() -> None:
    command = [sys.executable, str(HELPERS / "put_faults.py"), "--named"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(NAMED)} of {len(NAMED)} caught" in done.stdout
