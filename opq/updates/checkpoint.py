"""A checkpoint on disk: one file, or all files of a folder; each has a fingerprint and can be taken apart."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from opq.base.paths import what_is
from opq.errors import CorruptFileError, MissingFileError, OptionError
from opq.updates.anatomy import Anatomy, Bytes, Segment, head_of, taken_apart
from opq.updates.contents import Fingerprint, is_inside

SUFFIX = ".safetensors"
LARGEST_WHOLE = 1 << 20
"""The size in bytes up to which a file that is no safetensors file is treated as a head; a larger one is a segment."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One file of a checkpoint, open."""

    name: str
    """The path relative to the folder; if the checkpoint is one file, the file's name."""
    file: Bytes

    @property
    def whole(self) -> bool:
        """Whether it is no safetensors file, and so treated as plain bytes."""
        return not self.name.endswith(SUFFIX)

    @functools.cached_property
    def head(self) -> bytes:
        """The bytes of its head. A small file that is no safetensors file is all head; a larger one has none."""
        if self.whole:
            return self.file.read(0, self.file.size) if self.file.size <= LARGEST_WHOLE else b""
        return head_of(self.file)

    @functools.cached_property
    def anatomy(self) -> Anatomy:
        """Its head and segments; a `CorruptFileError` names the file."""
        try:
            return anatomy_of(self.head, self.file.size, whole=self.whole)
        except CorruptFileError as error:
            fact = f"{self.file.path}: {error.fact}"
            raise CorruptFileError(fact, got=error.got, wanted=error.wanted, remedy=error.remedy) from error

    def fingerprint(self, tell: Callable[[int], None] = lambda done: None) -> Fingerprint:
        """Name, size and SHA-256; reads the whole file.

        Args:
            tell: called with the number of bytes that are read, after each piece.
        """
        digest, done = hashlib.sha256(), 0
        for piece in self.file.pieces():
            digest.update(piece)
            done += len(piece)
            tell(done)
        return Fingerprint(self.name, self.file.size, digest.digest())


def anatomy_of(head: bytes, size: int, *, whole: bool) -> Anatomy:
    """The anatomy of a file of `size` bytes; `whole`: whether it is no safetensors file."""
    if not whole:
        return taken_apart(head, size)
    if size <= LARGEST_WHOLE:
        if len(head) != size:
            raise CorruptFileError("a file of another length", got=len(head), wanted=size)
        return Anatomy(((0, size),), ())
    if head:
        raise CorruptFileError("a head of a file that has none")
    return Anatomy(((0, 0),), (Segment("", 0, size, "U8", (size,)),))


@contextmanager
def opened(
    path: str | os.PathLike[str], names: Iterable[str] | None = None
) -> Iterator[tuple[bool, Mapping[str, Part]]]:
    """Whether a checkpoint is a folder, and its files by name, in the order of their names.

    Args:
        names: the files of a folder to open, without those that do not exist; by default all.

    Raises:
        MissingFileError: there is no such checkpoint, or it cannot be read.
    """
    path = Path(path)
    what = what_is(path)
    if what not in ("a file", "a folder"):
        raise MissingFileError(f"cannot open {str(path)!r}", got=what, wanted="a file or a folder")
    with ExitStack() as stack:
        if what == "a file":
            yield False, {path.name: Part(path.name, stack.enter_context(Bytes(path)))}
            return
        listed = _listed(path) if names is None else [n for n in names if what_is(path / n) == "a file"]
        yield True, {name: Part(name, stack.enter_context(Bytes(path / name))) for name in listed}


def _listed(folder: Path) -> list[str]:
    """The paths of all files below a folder, with slashes and relative to it; without hidden files and folders."""
    found = []

    def refuse(error: OSError) -> None:
        raise MissingFileError(f"cannot read {error.filename}", got=error.strerror or error)

    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = (Path(root) / name).relative_to(folder).as_posix()
            if name.startswith("."):
                continue
            if not is_inside(path) or (what := what_is(folder / path)) != "a file":
                got = what if is_inside(path) else repr(path)
                raise OptionError(f"{folder} holds what no update can", got=got, wanted="files with printable names")
            found.append(path)
    if not found:
        raise MissingFileError(f"{folder} is empty", wanted="a checkpoint")
    return sorted(found)


def segments(parts: Iterable[Part]) -> list[tuple[Part, Segment]]:
    """The segments of all files, in the order in which an update numbers them: by file, then by place in the file."""
    return [(part, segment) for part in parts for segment in part.anatomy.segments]
