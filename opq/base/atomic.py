"""Outputs are written aside and renamed: there is either the old file or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from opq.errors import WriteError


@contextmanager
def written_aside(path: str | os.PathLike[str], *, within: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name in the same folder; renamed to `path` when the block ends well.

    The block may reopen the temporary file by its `.name` to verify it (flush first). On any failure the temporary
    file is removed and what stood at `path` stays. The file replaced hands down its permissions.

    Args:
        within: another folder for the temporary name, on the same file system.

    Raises:
        WriteError: an operation on the file failed.
    """
    path = Path(path)
    aside = (within or path.parent) / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(aside, path.stat().st_mode & 0o777)
        os.replace(aside, path)
        _sync(path.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}", got=error.strerror or error) from error
    finally:
        with contextlib.suppress(OSError):  # none is there, or the file system is read-only
            aside.unlink()


def _sync(folder: Path) -> None:
    """Makes the new name durable, where the system can; the file is whole under its name either way."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
