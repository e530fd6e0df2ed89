"""Writes `errors.md`, the list of every error with its remedy, from `opq/errors.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

from opq import errors
from opq.errors import OpqError

HEAD = """# Errors

Every error that this package raises on purpose is an `opq.OpqError` and says four things: a fact, what was found, what
is wanted, and what to do. The command line prints them in one line and exits with code 1. Warnings are
`opq.OpqWarning`.

| class | is a | when | what to do |
|---|---|---|---|
"""


def write(page: Path) -> None:
    """The page, written only where it changes."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    classes.sort(key=lambda c: inspect.getsourcelines(c)[1])
    rows = [f"| `{c.__name__}` | `{c.__bases__[0].__name__}` | {when(c)} | {remedy(c)} |" for c in classes]
    text = HEAD + "\n".join(rows) + "\n"
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def when(kind: type) -> str:
    """The first sentence of the docstring."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()).replace("|", "/")


def remedy(kind: type) -> str:
    """What the class says to do, where it is an error."""
    return kind.remedy.replace("|", "/") if issubclass(kind, OpqError) else ""
