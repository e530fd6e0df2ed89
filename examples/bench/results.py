"""Rows of benchmarks: written as JSON under results/, printed as a table; and whether today's code still makes them.

    python examples/bench/results.py                          which rows are of other code than today's
    python examples/bench/results.py unchanged NAME "WHY"     says that NAME's rows hold for today's code all the same

Every row carries a stamp: the commit and the day of its measurement, and a digest of the parts of the package that its
benchmark depends on. A test fails where a row's code is not today's; CONTRIBUTING.md says what to do then.
"""

from __future__ import annotations

import ast
import datetime
import functools
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
UNCHANGED = Path(__file__).parent / "unchanged.json"
"""Digests of rows that hold for later code too, each with the reasons."""
PACKAGE = Path(__file__).resolve().parents[2] / "opq"

_CODEC = ("base", "plan", "coding", "allocation", "quantizing", "file", "compression")
DEPENDS = {
    "architectures": (*_CODEC, "models", "probing"),
    "codec": _CODEC,
    "datafree": (*_CODEC, "models", "probing"),
    "finetune": (*_CODEC, "models", "training"),
    "language": (*_CODEC, "models", "probing"),
    "limit": ("base", "plan", "coding", "allocation", "quantizing", "compression"),
    "methods": (*_CODEC, "models", "training", "methods"),
    "notes": (),
    "photographs": (*_CODEC, "models", "probing", "training"),
    "reliability": ("base", "plan", "coding", "file", "streaming", "training"),
    "scale": (*_CODEC, "models", "probing", "streaming"),
    "speed": (*_CODEC, "models", "probing"),
    "steering": (*_CODEC, "models", "probing", "training"),
    "updates": (*_CODEC, "updates"),
    "web": ("base", "plan", "coding", "quantizing", "file", "web"),
}
"""The storeys of the package whose code a benchmark's figures come from, by the name of its results."""
BEFORE = {"note": "before stamps existed"}
"""The stamp of rows from before there were any."""

Row = Mapping[str, Any]


def save(name: str, rows: Sequence[Row]) -> Path:
    """Writes the rows as `results/NAME.json`, one object a line; those without a stamp were measured just now."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    now = START if name == SCRIPT else stamp(name)
    path.write_text("[\n" + ",\n".join(json.dumps({**row, "stamp": row.get("stamp", now)}) for row in rows) + "\n]\n")
    return path


def merge(name: str, rows: Sequence[Row]) -> Path:
    """Writes the rows in place of those of the same models; rows of other models stay."""
    models = {row["model"] for row in rows}
    return save(name, [*(row for row in held(name) if row["model"] not in models), *rows])


def held(name: str) -> list[dict[str, Any]]:
    """The rows of earlier runs."""
    path = RESULTS / f"{name}.json"
    return list(json.loads(path.read_text())) if path.exists() else []


def keep(
    name: str, rows: Sequence[Row], place: Callable[[Row], Any], order: Callable[[Row], Any] | None = None
) -> list[Row]:
    """Writes rows among those of earlier runs that they do not replace; returns them all.

    Args:
        place: what a row is about: it replaces the one of the same place.
        order: by what all are sorted; by default their places.
    """
    fresh = {place(row) for row in rows}
    every = sorted([row for row in held(name) if place(row) not in fresh] + [*rows], key=order or place)
    save(name, every)
    return every


# --- is it still so? -------------------------------------------------------------------------


def stamp(name: str) -> dict[str, str]:
    """What is noted of rows measured now: commit (with a `+` where files differ from it), day, digest of the code."""
    commit = _git("rev-parse", "--short=10", "HEAD") + ("+" if _git("status", "--porcelain", "opq") else "")
    return {"commit": commit, "date": datetime.date.today().isoformat(), "code": digest(name)}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def digest(name: str, package: Path = PACKAGE) -> str:
    """A digest of the code that a benchmark depends on; comments, docstrings, blanks and line breaks do not count."""
    hashed = hashlib.sha256()
    for storey in DEPENDS[name]:
        files = sorted((package / storey).glob("*.*")) if (package / storey).is_dir() else [package / f"{storey}.py"]
        for path in files:
            if path.suffix in (".py", ".cpp", ".js"):
                text = code_of(path.read_text()) if path.suffix == ".py" else path.read_text()
                hashed.update(f"{path.relative_to(package)}\n{text}\n".encode())
    return hashed.hexdigest()[:16]


@functools.cache
def code_of(source: str) -> str:
    """A module's text without what changes no behaviour."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    kept = (line.split() for line in lines if not line.lstrip().startswith("#"))
    return re.sub(r",([)\]}])", r"\1", "".join(word for words in kept for word in words))


def stale(name: str) -> list[Row]:
    """The rows of a benchmark whose code is not today's, and of which no one has said that they hold all the same."""
    today = digest(name)
    held = {one["code"] for one in unchanged() if one["benchmark"] == name and one["holds"] == today}
    rows = json.loads((RESULTS / f"{name}.json").read_text())
    stamps = [row.get("stamp", {}) for row in rows]
    return [row for row, s in zip(rows, stamps, strict=True) if s != BEFORE and s.get("code") not in {today, *held}]


def unchanged() -> list[dict[str, Any]]:
    """What has been said: `code`, the digest that rows carry, `holds`, the later one they hold for, `why`."""
    return list(json.loads(UNCHANGED.read_text())) if UNCHANGED.exists() else []


def say_unchanged(name: str, why: str) -> None:
    """Notes that the stale rows of a benchmark hold for today's code, and why."""
    said, today = unchanged(), digest(name)
    known = {one["code"]: one for one in said if one["benchmark"] == name}
    for code in sorted({row["stamp"]["code"] for row in stale(name)}):
        if code not in known:
            known[code] = {"benchmark": name, "code": code, "holds": "", "why": []}
            said.append(known[code])
        known[code]["holds"] = today
        known[code]["why"].append(f"{datetime.date.today().isoformat()}: {why}")
    UNCHANGED.write_text(json.dumps(said, indent=1) + "\n")


SCRIPT = Path(sys.argv[0]).stem
START = stamp(SCRIPT) if SCRIPT in DEPENDS else {}
"""The stamp of what the running benchmark measures: files may change while it runs, its code does not."""


# --- tables ----------------------------------------------------------------------------------


def show(rows: Iterable[Row], columns: Sequence[str], title: str) -> None:
    """Prints some columns of the rows."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "method") else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=200).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["unchanged"]:
        _, name, why = arguments
        say_unchanged(name, why)
    for name in DEPENDS:
        rows, old = json.loads((RESULTS / f"{name}.json").read_text()), stale(name)
        before = sum(row.get("stamp") == BEFORE for row in rows)
        print(f"{name}: {len(rows)} rows, {len(old)} of other code than today's, {before} from before stamps existed")


if __name__ == "__main__":
    main(sys.argv[1:])
