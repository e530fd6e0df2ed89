"""Files made wrong on purpose: refused by their own error, never taken for data, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fuzz
import limits
import pytest
from file_helpers import codes_in

from opq.coding import class_tables
from opq.coding.entropy import draft
from opq.coding.symbols import any_behind
from opq.errors import CorruptFileError, TruncatedFileError
from opq.file import reader

CASES = [5_000, pytest.param(fuzz.FULL, marks=pytest.mark.slow)]


@pytest.mark.parametrize("cases", CASES)
def test_no_wrong_file_passes(cases: int) -> None:
    """In a process of its own, so that a crash is seen as one."""
    done = subprocess.run(
        [sys.executable, fuzz.__file__, "--cases", str(cases), "--seed", "0"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads(done.stdout)
    assert figures["wrong"] == []
    assert figures["hangs"] == 0
    assert figures["cases"] == cases
    assert figures["memory"] < fuzz.MEMORY
    assert len(figures["kinds"]) >= 35
    assert set(figures["outcomes"]) == {"read", *(error.__name__ for error in fuzz.ANY)}


def test_the_valid_files_are_read() -> None:
    for data in fuzz.seeds():
        plan, state = fuzz.everything(data)
        assert set(state) == {tensor.name for tensor in plan}
    parts = fuzz.taken_apart(fuzz.seeds()[0])
    assert fuzz.everything(fuzz.put_together(parts))[0] == parts.plan


@limits.narrowed(**fuzz.NARROW)
def test_the_valid_files_hold_classes() -> None:
    """Small ones by tables, with bits behind symbols, told alone and after one another; large ones by pages."""
    _, items = fuzz.classes()
    small = draft(codes_in(items[0])).coding
    assert (small.kind, small.classes, small.contexts.first) == ("tables", 5, 1)
    assert any_behind(small.low, small.alphabet)
    ways = [
        [len(way(a, int(a.max()) + 1).finish()) for way in (class_tables._alone, class_tables._after)]
        for a in small.contexts.axes[:2]
    ]
    assert [after < alone for alone, after in ways] == [True, False]

    pages, tables, equal = (draft(codes_in(item)).coding for item in fuzz.large()[1])
    assert (pages.kind, tables.kind, equal.kind) == ("pages", "tables", "constant")
    assert pages.classes > 1


def test_the_judge_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    good = fuzz.seeds()[0]
    plan, state = fuzz.everything(good)
    original = (plan, {name: fuzz.raw_bytes(tensor) for name, tensor in state.items()})
    assert fuzz.judge(fuzz.Case("whole", good, False, ()), original) == "read"
    with pytest.raises(fuzz.Wrong, match="not the error"):
        fuzz.judge(fuzz.Case("cut", good[:-1], False, (CorruptFileError,)), original)
    assert fuzz.judge(fuzz.Case("cut", good[:-1], False, (TruncatedFileError,)), original) == "TruncatedFileError"
    parts = fuzz.taken_apart(good)
    other = fuzz.put_together(parts._replace(plan=parts.plan.replace(method="other")))
    assert fuzz.judge(fuzz.Case("signed", other, True, fuzz.SIGNED), original) == "read"
    with pytest.raises(fuzz.Wrong, match="damage taken for data"):
        fuzz.judge(fuzz.Case("unsigned", other, False, fuzz.ANY), original)
    monkeypatch.setattr(fuzz, "SMALLEST_LIMIT", 1)
    monkeypatch.setattr(fuzz, "EXPANSION", 1e9)
    zeros = fuzz.Plan(method="x", tensors=(fuzz.planned("w", (999, 999)),))
    bomb = fuzz.put_together(fuzz.Parts(zeros, (fuzz.Place("grid", 4),), (bytes(4),)))
    assert fuzz.judge(fuzz.Case("bomb", bomb, True, fuzz.SIGNED), original) == "read"
    monkeypatch.setattr(fuzz, "EXPANSION", 1.0)
    with limits.narrowed(memory=1 << 30), pytest.raises(fuzz.Wrong, match="bytes held"):
        fuzz.judge(fuzz.Case("bomb", bomb, True, fuzz.SIGNED), original)


@limits.narrowed()  # the fuzzer makes them smaller
def test_a_checksum_that_is_not_looked_at_is_found_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fuzzer finds a reader that does not check."""
    monkeypatch.setattr(fuzz, "cuts", lambda data: iter(()))
    monkeypatch.setattr(fuzz, "headers", lambda data: iter(()))

    class Agreeable(int):
        def __ne__(self, other: object) -> bool:
            return False

    monkeypatch.setattr(reader, "zlib", SimpleNamespace(crc32=lambda data: Agreeable()))
    figures = fuzz.run(1500, 0, tmp_path)
    assert any("damage taken for data" in wrong for wrong in figures["wrong"])
