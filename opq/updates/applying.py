"""Makes the new checkpoint from an old one and an update, byte for byte. Neither of the two is trusted."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from opq.base.atomic import refuse_inputs, written_aside
from opq.base.calls import checked_names
from opq.base.format_v1 import MAX_EXPANSION, SMALL
from opq.base.paths import what_is
from opq.base.progress import Progress, shown
from opq.errors import CorruptFileError, FileTooLargeError, MissingExtraError, WriteError, WrongBaseError
from opq.updates import envelope
from opq.updates.anatomy import Bytes
from opq.updates.checkpoint import Part, opened
from opq.updates.contents import Contents, NewFile, total
from opq.updates.renewing import Payloads, Renewer

GROWTH = 8
"""Bytes that the new checkpoint may have for each byte of the old one: a cast to a wider type has no payload."""


@checked_names
def apply(
    old: str | os.PathLike[str],
    update: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    max_expansion: float = MAX_EXPANSION,
    progress: Progress | bool | None = None,
) -> int:
    """Makes the new checkpoint from an old one and an update that `opq.delta` wrote, byte for byte.

    The update holds the SHA-256 of both checkpoints. The old one is verified before anything is written, and the new
    one before it appears under its name. Memory is bounded by the largest tensor.

    Args:
        old: the checkpoint that the update was made against, a file or a folder; a file may have another name.
        update: the update.
        output: the file to write; if the new checkpoint is a folder, the folder to fill, which is created if needed.
        max_expansion: the most bytes that each byte of the update may become; `math.inf` for a trusted update.
        progress: called with (stage, done, total); True for a bar, False for none.

    Returns:
        The size of the new checkpoint in bytes.

    Raises:
        WrongBaseError: the old checkpoint is not the one that the update was made against. Nothing was written.
        FileFormatError: the update is foreign, newer, truncated, corrupt or too large (one subclass each).
        MissingExtraError: the update can only be applied with another version of pcodec.
        OptionError: the output is the old checkpoint or the update.
        WriteError: the output cannot be written; nothing is left behind.

    Example:
        >>> import pathlib, tempfile, opq, torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     old, new, update, again = (f"{folder}/{n}.safetensors" for n in ("old", "new", "update", "again"))
        ...     save_file({"w": torch.zeros(64, 64)}, old)
        ...     save_file({"w": torch.eye(64)}, new)
        ...     size = opq.delta(old, new, update)
        ...     opq.apply(old, update, again) == pathlib.Path(new).stat().st_size
        True
    """
    refuse_inputs(output, [old, update])
    with ExitStack() as stack:
        tell = stack.enter_context(shown(progress))
        file = stack.enter_context(Bytes(Path(update)))
        said, base = envelope.opened(file)
        folder, parts = stack.enter_context(opened(old, [known.name for known in said.old]))
        olds = _checked(said, folder, parts, os.fspath(old), tell)
        size = total(new.file for new in said.new)
        allowed = max(max_expansion * file.size, SMALL) + GROWTH * total(said.old)
        if size > allowed:
            fact = f"{os.fspath(update)} makes more than it may"
            raise FileTooLargeError(fact, got=f"{size} bytes", wanted=f"at most {allowed:.0f}")
        outputs = _outputs(said, Path(output))
        with _made(outputs, folder=said.folders[1]), ExitStack() as whole:
            renewer, done = Renewer(olds), 0
            for new, path in zip(said.new, outputs, strict=True):
                out = whole.enter_context(written_aside(path))
                renewer.write(new, Payloads(file, base), out)
                _prove(new, out, said)
                base += sum(new.lengths)
                done += new.file.size
                tell("apply", done, size)
    return size


def _checked(said: Contents, folder: bool, parts: Mapping[str, Part], label: str, tell: Progress) -> Sequence[Part]:
    """The old files in the update's order; raises `WrongBaseError` unless they are those it was made against."""
    if folder != said.folders[0]:
        got, wanted = ("a folder", "a file") if folder else ("a file", "a folder")
        raise WrongBaseError(f"{label} is not what the update was made against", got=got, wanted=wanted)
    listed = list(parts.values())
    if folder:
        missing = [known.name for known in said.old if known.name not in parts]
        if missing:
            raise WrongBaseError(f"{label} is not what the update was made against", got=f"no {', '.join(missing[:3])}")
        listed = [parts[known.name] for known in said.old]
    for known, part in zip(said.old, listed, strict=not folder):
        if part.file.size != known.size:
            fact = f"{part.file.path} is not what the update was made against"
            raise WrongBaseError(fact, got=f"{part.file.size} bytes", wanted=f"{known.size} bytes")
    for k, (known, part) in enumerate(zip(said.old, listed, strict=True)):
        if (found := part.fingerprint().digest) != known.digest:
            fact = f"{part.file.path} is not what the update was made against"
            raise WrongBaseError(fact, got=f"SHA-256 {found.hex()}", wanted=known.digest.hex())
        tell("check", k + 1, len(listed))
    return [Part(known.name, part.file) for known, part in zip(said.old, listed, strict=True)]


def _outputs(said: Contents, output: Path) -> list[Path]:
    """The paths of the new files."""
    if not said.folders[1]:
        return [output]
    if (what := what_is(output)) not in ("nothing", "a folder"):
        raise WriteError(f"cannot write into {output}", got=what, wanted="a folder, or nothing")
    return [output / new.file.name for new in said.new]


@contextmanager
def _made(paths: Sequence[Path], *, folder: bool) -> Iterator[None]:
    """Creates the missing folders of some files, and removes them again if the block fails."""
    made: list[Path] = []
    try:
        for path in dict.fromkeys(path.parent for path in paths) if folder else ():
            new = [p for p in (path, *path.parents) if what_is(p) == "nothing"]
            path.mkdir(parents=True, exist_ok=True)
            made += reversed(new)
        yield
    except BaseException as error:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, OSError):
            raise WriteError(f"cannot write into {paths[0].parent}", got=error.strerror or error) from error
        raise


def _prove(new: NewFile, out: BinaryIO, said: Contents) -> None:
    """Raises unless the file that was written has the size and SHA-256 of the new file."""
    out.flush()
    with Bytes(Path(out.name)) as file:
        found = Part(new.file.name, file).fingerprint()
    if found == new.file:
        return
    if said.pcodec and said.pcodec != (here := importlib.metadata.version("pcodec")):
        raise MissingExtraError(
            f"{new.file.name!r} does not come out as it was made",
            got=f"pcodec {here}",
            wanted=f"pcodec {said.pcodec}",
            remedy=f"Install pcodec=={said.pcodec}, or ask for an update made with portable=True.",
        )
    fact = f"{new.file.name!r} does not come out as it was made"
    raise CorruptFileError(fact, got=f"SHA-256 {found.digest.hex()}", wanted=new.file.digest.hex())
