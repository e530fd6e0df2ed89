"""Where a run of `opq` begins and ends: errors, warnings and signals as one line and an exit code."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opq.cli.commands import app
from opq.cli.printing import err, one_line, wrapped
from opq.cli.wording import in_shell
from opq.errors import OpqError

FAILURES = (OSError, MemoryError, RecursionError)
"""Errors of the system or of a foreign file that no call foresaw: these too become one line, not a traceback."""


def main() -> None:
    """Runs the command; errors become one line on standard error and an exit code."""
    warnings.showwarning = _warn  # type: ignore[assignment]
    try:
        with _terminable():
            app()
    except OpqError as error:
        _fail(error)
    except FAILURES as error:
        _fail(error)
    except Terminated:
        err.print("terminated; nothing was written half")
        sys.exit(143)


class Terminated(BaseException):
    """The process was asked to end; as the exception passes, temporary files are removed."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Within the block SIGTERM raises an exception, as Ctrl-C does, so that no temporary file stays behind."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # only the main thread may handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(error: BaseException) -> None:
    """Prints an error and ends the process with exit code 1."""
    err.print("error", style="bold red", end=" ")
    text = f"{type(error).__name__}: {one_line(in_shell(str(error)))}"
    err.print(wrapped(text, err, begun=len("error ")), soft_wrap=True)
    sys.exit(1)


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    """Prints a warning; takes the place of `warnings.showwarning`."""
    err.print("warning", style="yellow", end=" ")
    text = wrapped(one_line(in_shell(str(message))), err, begun=len("warning "))
    err.print(text, soft_wrap=True)
