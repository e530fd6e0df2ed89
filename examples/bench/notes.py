"""Figures that were read off on the way, and that no benchmark makes again, as rows.

    python examples/bench/notes.py        writes results/notes.json; to be run after one of `TABLES` has changed

A row holds the cells of one line of a table of the docs. Its stamp is the commit with which that line came into the
page as it stands, and the day, by `git blame`. The code that such figures were measured with is gone, or was a script
that never belonged here: they say why things are as they are, are no results, and do not grow old.
"""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import results

ROOT = Path(__file__).resolve().parents[2]
TABLES = (
    ("docs/research.md", "tried"),
    ("docs/research.md", "dense training"),
    ("docs/research.md", "recipe"),
    ("docs/methods/olmp.md", "epochs, of these pruning"),
    ("docs/howto/export.md", "ONNX"),
    ("docs/datafree.md", "one step a tensor"),
)
"""The pages, and a word of the header of each table."""


def noted() -> list[dict[str, Any]]:
    """The rows of all tables, as the pages hold them now."""
    found = []
    for page in dict.fromkeys(page for page, _ in TABLES):
        words, header = [word for of, word in TABLES if of == page], None
        lines = list(_blamed(page))
        for (text, _), (line, stamp) in zip([("", {}), *lines], lines, strict=False):
            if is_rule(line):
                header = cells(text)
            elif not line.startswith("|"):
                header = None
            elif header is not None and any(word in header for word in words):
                found.append({"page": page, "header": header, "cells": cells(line), "stamp": stamp})
    return found


def is_rule(line: str) -> bool:
    """Whether a line is that between the header of a table and its rows."""
    return re.fullmatch(r"\|(?:\s*:?-+:?\s*\|)+", line.strip()) is not None


def cells(line: str) -> tuple[str, ...]:
    """What stands in the cells of one line of a table."""
    return tuple(cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|"))


def _blamed(page: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The lines of a page, each with the commit and the day that it is from; those of today as they will be."""
    told = subprocess.run(
        ["git", "blame", "--line-porcelain", "--", page], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    now, commit, day = results.stamp("notes"), "", ""
    for line in told.stdout.splitlines():
        if re.match(r"[0-9a-f]{40} ", line):
            commit = line[:10]
        elif line.startswith("author-time "):
            day = datetime.datetime.fromtimestamp(int(line.split()[1]), datetime.timezone.utc).date().isoformat()
        elif line.startswith("\t"):
            yield line[1:], {**now, "commit": commit, "date": day} if commit.strip("0") else now


if __name__ == "__main__":
    print(results.save("notes", noted()))
