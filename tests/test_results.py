"""Rows of the benchmarks say what code they were measured with, and it is today's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import results

NAMES = sorted(path.stem for path in results.RESULTS.glob("*.json"))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of its own."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "UNCHANGED", tmp_path / "unchanged.json")
    return tmp_path


def test_every_file_of_results_says_what_it_depends_on() -> None:
    assert sorted(results.DEPENDS) == NAMES
    for name, storeys in results.DEPENDS.items():
        for storey in storeys:
            assert (results.PACKAGE / storey).is_dir() or (results.PACKAGE / f"{storey}.py").exists(), (name, storey)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_says_when_and_by_what_code_it_was_measured(name: str) -> None:
    for row in json.loads((results.RESULTS / f"{name}.json").read_text()):
        assert row["stamp"] == results.BEFORE or set(row["stamp"]) == {"commit", "date", "code"}, row


@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_older_than_the_code_that_it_measures(name: str) -> None:
    old = [{k: row[k] for k in ("model", "method", "what", "bits") if k in row} for row in results.stale(name)]
    assert not old, (
        f"{len(old)} rows of {name}.json were measured with other code than today's, the first {old[0]}. Run them anew "
        f'or, where no figure moves: python examples/bench/results.py unchanged {name} "WHY" (see CONTRIBUTING.md)'
    )


def test_what_was_said_to_be_unchanged_has_a_reason_and_a_row() -> None:
    for one in results.unchanged():
        rows = json.loads((results.RESULTS / f"{one['benchmark']}.json").read_text())
        assert one["why"]
        assert all(len(why) > 30 for why in one["why"]), one
        assert any(row["stamp"].get("code") == one["code"] for row in rows), (
            f"no row is left that this speaks of: {one}"
        )


# --- how it is found out ---------------------------------------------------------------------

CODE = '''"""A module."""

def f(a: int, b: int = 2) -> int:
    """What it does."""
    # why
    return g(a, b)
'''


@pytest.mark.parametrize(
    "same",
    [
        CODE.replace("A module", "Another sentence"),
        CODE.replace("    # why\n", ""),
        CODE.replace("# why", "# why not"),
        CODE.replace("g(a, b)", "g(\n        a,\n        b,\n    )"),
        CODE.replace("    return", "\n\n    return"),
    ],
)
def test_comments_sentences_and_line_breaks_are_no_code(same: str) -> None:
    assert same != CODE
    assert results.code_of(same) == results.code_of(CODE)


@pytest.mark.parametrize(("text", "by"), [("= 2", "= 3"), ("g(a", "h(a"), ("(a, b)", "(b, a)")])
def test_numbers_names_and_order_are(text: str, by: str) -> None:
    assert results.code_of(CODE.replace(text, by)) != results.code_of(CODE)


def measured(own: Path, code: str) -> list[dict[str, Any]]:
    """Rows of a codec that were measured with some code."""
    rows = [{"model": "m", "bits": 3.0, "stamp": {"commit": "c", "date": "2026-01-01", "code": code}}]
    results.save("codec", rows)
    return rows


def test_new_rows_are_stamped_and_others_keep_their_stamp(own: Path) -> None:
    old = measured(own, "an older digest")
    results.save("codec", [*old, {"model": "n", "bits": 2.0}])
    rows = json.loads((own / "results" / "codec.json").read_text())
    assert [row["stamp"]["code"] for row in rows] == ["an older digest", results.digest("codec")]
    assert results.stale("codec") == rows[:1]


def test_a_digest_follows_the_code_of_its_storeys_alone(tmp_path: Path) -> None:
    for name in ("file", "training"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text(CODE)
    kept = {name: results.digest(name, tmp_path) for name in ("codec", "finetune") if all_there(tmp_path, name)}
    (tmp_path / "training" / "a.py").write_text(CODE.replace("2", "3"))
    assert results.digest("codec", tmp_path) == kept["codec"]
    assert results.digest("finetune", tmp_path) != kept["finetune"]


def all_there(folder: Path, name: str) -> bool:
    """Makes what a benchmark depends on where it is missing."""
    for storey in results.DEPENDS[name]:
        if not (folder / storey).is_dir():
            (folder / f"{storey}.py").write_text("")
    return True


def test_rows_hold_for_later_code_once_someone_has_said_why_and_only_for_that(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = measured(own, "an older digest")
    assert len(results.stale("codec")) == 1
    results.say_unchanged("codec", "names only: a variable of the writer is called otherwise")
    assert not results.stale("codec")
    monkeypatch.setattr(results, "digest", lambda name: "a later one")
    assert results.stale("codec") == rows
    results.say_unchanged("codec", "and again: an error says more, nothing is computed otherwise")
    assert not results.stale("codec")
    assert len(results.unchanged()) == 1
    assert len(results.unchanged()[0]["why"]) == 2
