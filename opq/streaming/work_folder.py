"""The output folder while it is being written: its lock, and what is done so far.

Everything temporary is in the subfolder `.opq`, which is removed when the work is done. Nothing else is ever deleted,
so that other files in the folder stay. Every file with its final name is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opq.base.atomic import written_aside
from opq.errors import BusyFolderError, OccupiedFolderError, WriteError


def shard_name(number: int, total: int, suffix: str = ".opq.safetensors", *, stem: str = "model") -> str:
    """`model-00001-of-00007.opq.safetensors`; numbers from 0."""
    return f"{stem}-{number + 1:05}-of-{total:05}{suffix}"


class Work:
    """A folder that is being written, or whose writing was interrupted."""

    def __init__(self, folder: Path, digest: str):
        self.folder, self.digest = folder, digest
        self.inner = folder / ".opq"

    @property
    def state(self) -> dict[str, Any]:
        """What is done: the digest of source and options, and the rounds so far."""
        try:
            return dict(json.loads((self.inner / "state.json").read_text()))
        except FileNotFoundError:
            return {}

    def save(self, state: dict[str, Any]) -> None:
        self.put("state.json", json.dumps(state).encode())

    def get(self, name: str) -> bytes | None:
        """A temporary file of an earlier run; None if there is none."""
        path = self.inner / name
        return path.read_bytes() if path.is_file() else None

    def put(self, name: str, data: bytes) -> None:
        """Stores bytes for a later run."""
        with written_aside(self.inner / name) as out:
            out.write(data)

    def begin(self) -> None:
        """Resumes an interrupted run with the same digest, or starts a new one.

        Raises:
            OccupiedFolderError: the folder holds another compression.
        """
        before = self.state
        resumed = before.get("digest") == self.digest
        if not resumed and (other := next(self.folder.glob("[!.]*.opq.safetensors*"), None)) is not None:
            what = "an unfinished compression of another source or with other options" if before else "a compression"
            raise OccupiedFolderError(f"{self.folder} holds {what}", got=other.name)
        self._clear()
        if not resumed:
            self.save({"digest": self.digest, "rounds": []})

    def _clear(self) -> None:
        """Removes what a killed process was writing, which is all in the subfolder."""
        for part in self.inner.glob(".*.part"):
            part.unlink()

    def finish(self) -> None:
        """Removes everything temporary, the state last."""
        self._clear()
        for kind in ("measure-*", "probe-*"):
            for path in self.inner.glob(kind):
                path.unlink()
        (self.inner / "state.json").unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder, created if needed, for this process; the lock of a process that dies is released.

    Raises:
        BusyFolderError: another process has locked it.
        WriteError: it cannot be created or written to.
    """
    inner = folder / ".opq"
    try:
        inner.mkdir(parents=True, exist_ok=True)
        handle = os.open(inner / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise WriteError(f"cannot write into {folder}", got=error.strerror or error) from error
    try:
        if not _lock(handle):
            raise BusyFolderError(f"another process writes into {folder}")
        try:
            yield
        finally:
            if not (inner / "state.json").exists():
                (inner / "lock").unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    inner.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the file could be locked for this process; closing it, or the end of the process, unlocks it."""
    if os.name == "nt":
        import msvcrt

        lock: Any = lambda: msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # noqa: E731
    else:
        import fcntl

        lock = lambda: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # noqa: E731
    try:
        lock()
    except OSError:
        return False
    return True


def check_space(folder: Path, wanted: float) -> None:
    """Raises `WriteError` if the disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        remedy = "Free some space, or choose a folder on another disk."
        raise WriteError(f"no room in {folder}", got=f"{free:,} bytes free", wanted=f"{wanted:,.0f}", remedy=remedy)
