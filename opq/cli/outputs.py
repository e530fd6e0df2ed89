"""Checks of an output before the work begins: can it be written, and may it be replaced?"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import typer

from opq.base.atomic import refuse_inputs, replaceable
from opq.base.paths import what_is
from opq.cli.printing import err
from opq.errors import WriteError


def may_replace(path: Path, force: bool) -> None:
    """Asks before a file is replaced; where no user can answer, replacing without `--force` is an error.

    Links, devices and everything else that is never replaced pass here: the writer refuses them.
    """
    if force or what_is(path, follow=False) != "a file":
        return
    if sys.stdin is not None and sys.stdin.isatty() and err.is_terminal:
        typer.confirm(f"{path} is there already. Replace it?", abort=True, err=True)
        return
    remedy = "Pass --force to replace it, or another --output."
    raise WriteError(f"{path} is there already", got="a file", wanted="nothing", remedy=remedy)


def check_writable(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises `WriteError` before the work begins where the output cannot be written."""
    if what_is(path.parent) != "a folder":
        got = (
            f"no folder {path.parent}"
            if what_is(path.parent) == "nothing"
            else f"{path.parent}: {what_is(path.parent)}"
        )
        raise WriteError(f"cannot write {path}", got=got, remedy="Make the folder first.")
    refuse_inputs(path, inputs)
    replaceable(path)


def unused(path: Path) -> Path:
    """The path; another one beside it, with a number, where something has come to lie there."""
    name, dot, suffixes = path.name.partition(".")
    candidates = (path.with_name(f"{name}-{k}{dot}{suffixes}") for k in itertools.count(2))
    return next(p for p in itertools.chain([path], candidates) if what_is(p, follow=False) == "nothing")
