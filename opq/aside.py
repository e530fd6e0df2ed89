"""Outputs are written aside and renamed: there is either the old file or the new one, whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from opq.errors import WriteError


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name in the same folder; renamed to `path` when the block ends well.

    The block may reopen the temporary file by its `.name` to verify it (flush first). On any failure the temporary
    file is removed and what stood at `path` stays. The new file's permissions are those of the old one, else the
    user's default.

    Raises:
        WriteError: an operation on the file failed.
    """
    path = Path(path)
    aside: str | None = None
    try:
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield _Named(file, aside)  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, _mode(path))
        os.replace(aside, path)
        aside = None
    except OSError as error:
        raise WriteError(f"cannot write {path}", got=error) from error
    finally:
        if aside is not None:
            Path(aside).unlink(missing_ok=True)


class _Named:
    """A binary file whose `.name` is its path (that of a descriptor is a number)."""

    def __init__(self, file: BinaryIO, name: str):
        self._file, self.name = file, name

    def __getattr__(self, attribute: str) -> object:
        return getattr(self._file, attribute)


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced, or those that a new file of this user gets."""
    if path.exists():
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
