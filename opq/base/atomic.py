"""Outputs are written under a temporary name and renamed: at any time there is either the whole old file or the whole
new one."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from opq.base.paths import what_is
from opq.errors import OptionError, WriteError

AnyPath = str | os.PathLike[str]


@contextmanager
def written_aside(path: AnyPath, *, within: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name in the same folder; renamed to `path` when the block succeeds.

    The block may reopen the temporary file by its `.name` to verify it (flush first). On any failure the temporary
    file is removed and whatever was at `path` remains. The temporary file has the permissions of the file that it will
    replace. Only a regular file is replaced: never a link, a pipe or a device.

    Args:
        within: another folder for the temporary file, on the same file system.

    Raises:
        WriteError: an operation on the file failed, or what is at `path` is not a regular file.
    """
    path = Path(path)
    mode = replaceable(path)
    aside, file = _opened(path, 0o666 if mode is None else mode, within)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(aside, mode)
        replaceable(path)  # checked again: it may have changed meanwhile
        os.replace(aside, path)
        _sync(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}", got=error.strerror or error) from error
    finally:
        with contextlib.suppress(OSError):  # none is there, or the file system is read-only
            aside.unlink()


def replaceable(path: AnyPath) -> int | None:
    """The permissions of the regular file at a path; None where there is nothing.

    Raises:
        WriteError: something else is there (a link, a folder, a pipe, a device), or it may not be looked at.
    """
    what = what_is(path, follow=False)
    if what == "nothing":
        return None
    if what != "a file":
        remedy = "Write to the file that it leads to, or choose another path." if what == "a link" else None
        raise WriteError(f"cannot write {path}", got=what, wanted="a regular file, or none", remedy=remedy)
    try:
        return stat.S_IMODE(os.lstat(path).st_mode) & 0o777
    except OSError as error:
        raise WriteError(f"cannot write {path}", got=error.strerror or error) from error


def refuse_inputs(output: AnyPath, inputs: Iterable[AnyPath]) -> None:
    """Raises `OptionError` where an output, file or folder, is one of the inputs.

    Files are compared by device and inode, links followed. Every call that writes checks this before it reads, so that
    no output replaces what it was made from.
    """
    own = _identity(output)
    for path in inputs:
        if own is not None and _identity(path) == own:
            remedy = "Write to another path; then replace the input yourself, if that is what you want."
            raise OptionError("the output is the input", got=os.fspath(output), wanted="another path", remedy=remedy)


def _identity(path: AnyPath) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):  # there is no such file, or no such path: opening it will say so
        return None
    return found.st_dev, found.st_ino


def _opened(path: Path, mode: int, within: Path | None) -> tuple[Path, BinaryIO]:
    """The temporary file, opened with at most the permissions of the file that it will replace."""
    try:
        aside = (within or path.parent) / f".{path.name}.{secrets.token_hex(4)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        return aside, _named(os.open(aside, flags, mode), aside)
    except OSError as error:
        raise WriteError(f"cannot write {path}", got=error.strerror or error) from error
    except ValueError as error:  # an empty name, a zero byte, half a surrogate
        raise WriteError(f"cannot write {str(path)!r}", got=error, wanted="a path") from error


def _named(handle: int, path: Path) -> BinaryIO:
    """A file object for an open handle, whose `name` is the path."""
    return open(path, "wb", opener=lambda *_: handle)


def _sync(folder: Path) -> None:
    """Makes the renaming durable, where the system can; the file is complete under its name either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
