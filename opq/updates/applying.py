"""An old checkpoint and an update -> the new checkpoint, byte for byte. Nothing that either says is believed."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from opq.base.atomic import refuse_inputs, written_aside
from opq.base.calls import checked_names
from opq.base.format_v1 import MAX_EXPANSION, SMALL, most_symbols
from opq.base.paths import what_is
from opq.base.progress import Progress, shown
from opq.coding import text
from opq.coding.stack import StackReader
from opq.errors import CorruptFileError, FileTooLargeError, MissingExtraError, WriteError, WrongBaseError
from opq.updates import contents, differences, patterns
from opq.updates.anatomy import Bytes, Segment
from opq.updates.checkpoint import Part, anatomy_of, opened, segments
from opq.updates.contents import LONGEST_HEAD, Contents, Head, NewFile, Row
from opq.updates.elements import Old, Reference, castable, comparable
from opq.updates.recoded import Recoded, taken

GROWTH = 8
"""Bytes that the new checkpoint may have for each of the old one: casting to a wider type costs nothing."""
PIECE = 1 << 22
"""Bytes that are copied at once."""


@checked_names
def apply(
    old: str | os.PathLike[str],
    update: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    max_expansion: float = MAX_EXPANSION,
    progress: Progress | bool | None = None,
) -> int:
    """Makes the new checkpoint of an old one and an update that `opq.delta` wrote: the same bytes as it had there.

    The old checkpoint is looked at before anything is written, and the new one before it takes its place: the update
    holds the SHA-256 of both. Memory is bounded by the largest tensor.

    Args:
        old: the checkpoint that the update was made against, a file or a folder; the name of a file may differ.
        update: the update.
        output: the file to write, or of a folder the folder to fill; made where it is not there.
        max_expansion: the most bytes that each byte of the update may stand for; `math.inf` to trust it.
        progress: called with (stage, done, total); True for a bar, False for none.

    Returns:
        the size of the new checkpoint in bytes.

    Raises:
        WrongBaseError: the old checkpoint is another one. Nothing was written.
        FileFormatError: the update is foreign, newer, truncated, corrupt or too large (one subclass each).
        MissingExtraError: the update has to be applied with another version of pcodec.
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
        said, base = contents.opened(file)
        folder, parts = stack.enter_context(opened(old, [known.name for known in said.old]))
        olds = _checked(said, folder, parts, os.fspath(old), tell)
        size = contents.total(new.file for new in said.new)
        allowed = max(max_expansion * file.size, SMALL) + GROWTH * contents.total(said.old)
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
    """The old files in their order; raises `WrongBaseError` unless they are those of the update."""
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
    """Where the new files go."""
    if not said.folders[1]:
        return [output]
    if (what := what_is(output)) not in ("nothing", "a folder"):
        raise WriteError(f"cannot write into {output}", got=what, wanted="a folder, or nothing")
    return [output / new.file.name for new in said.new]


@contextmanager
def _made(paths: Sequence[Path], *, folder: bool) -> Iterator[None]:
    """The folders of some files, made where they are not there, and removed again where the block fails."""
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
    """Raises unless what was written is the new file."""
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


class Payloads:
    """The payloads of one new file, taken one after the other."""

    def __init__(self, file: Bytes, start: int):
        self._file, self._at = file, start

    def take(self, length: int) -> bytes:
        """The next bytes."""
        self._at += length
        return self._file.read(self._at - length, self._at)

    def pieces(self, length: int) -> Iterator[bytes]:
        """The next bytes, some at a time."""
        for start in range(0, length, PIECE):
            yield self.take(min(PIECE, length - start))

    def framed(self, length: int, number: int) -> Iterator[memoryview]:
        """The next bytes as so many chunks, the lengths of all but the last before them."""
        lengths = _lengths(self.take(min(4 * (number - 1), length)), number, length)
        for of_chunk in lengths:
            yield memoryview(self.take(of_chunk))


def _lengths(front: bytes, number: int, length: int) -> list[int]:
    """The lengths of `number` chunks of so many bytes together, the front included."""
    found = [int.from_bytes(front[k : k + 4], "little") for k in range(0, len(front), 4)]
    last = length - 4 * (number - 1) - sum(found)
    if len(front) != 4 * (number - 1) or last < 0:
        raise CorruptFileError("a payload is shorter than its chunks", got=f"{length} bytes")
    return [*found, last]


class Renewer:
    """Writes new files from old ones and payloads."""

    def __init__(self, olds: Sequence[Part]):
        self._olds = olds

    @functools.cached_property
    def _segments(self) -> list[Old]:
        return segments(self._olds)

    def write(self, new: NewFile, payloads: Payloads, out: BinaryIO) -> None:
        """One new file.

        Raises:
            CorruptFileError: the update contradicts itself.
        """
        if new.copy is not None:
            for piece in self._olds[new.copy].file.pieces():
                out.write(piece)
            return
        head = self._head(new.head, payloads)
        anatomy = anatomy_of(head, new.file.size, whole=new.whole)
        if len(anatomy.segments) != len(new.rows):
            got = f"{len(new.rows)} of {new.file.name!r}"
            raise CorruptFileError("rows for other tensors than there are", got=got, wanted=len(anatomy.segments))
        at = 0
        for start, stop in anatomy.head:
            out.seek(start)
            out.write(head[at : at + stop - start])
            at += stop - start
        for segment, row in zip(anatomy.segments, new.rows, strict=True):
            out.seek(segment.start)
            try:
                for piece in self._pieces(segment, row, payloads):
                    out.write(piece)
            except CorruptFileError as error:
                fact = f"tensor {segment.name!r}: {error.fact}"
                raise CorruptFileError(fact, got=error.got, wanted=error.wanted, remedy=error.remedy) from error
            if out.tell() != segment.stop:
                raise CorruptFileError(f"tensor {segment.name!r} has another length", wanted=segment.length)

    def _head(self, head: Head, payloads: Payloads) -> bytes:
        if head.method == "raw":
            return payloads.take(head.length)
        before = b"" if head.old is None else self._olds[head.old].head
        if head.method == "same":
            return before
        data = payloads.take(head.length)
        reader = StackReader(data, most=most_symbols(len(data)))
        found = text.take_bytes(reader, LONGEST_HEAD, before=before)
        reader.finish()
        return found

    def _pieces(self, segment: Segment, row: Row, payloads: Payloads) -> Iterator[bytes]:
        """The bytes of a segment, in order."""
        if row.method == "raw":
            yield from payloads.pieces(row.length)
        elif row.method == "same":
            part, old = self._old(row)
            if old.length != segment.length:
                raise CorruptFileError("an old tensor of another length", got=old.length, wanted=segment.length)
            for start in range(old.start, old.stop, PIECE):
                yield part.file.read(start, min(start + PIECE, old.stop))
        elif row.method == "codes":
            yield self._coded_codes(segment, row, payloads)
        else:
            yield from self._numbers(segment, row, payloads)

    def _old(self, row: Row) -> Old:
        if row.old >= len(self._segments):
            raise CorruptFileError("the number of an old tensor is too large", got=row.old)
        return self._segments[row.old]

    def _numbers(self, segment: Segment, row: Row, payloads: Payloads) -> Iterator[bytes]:
        """Elements against those of an old tensor, or against zeros."""
        old = None if row.method == "alone" else self._old(row)
        fits = comparable if row.method == "old" else castable
        if segment.codes is not None or (old is not None and not fits(segment, old[1])):
            raise CorruptFileError("an old tensor of another kind", got=None if old is None else old[1].dtype)
        kind = patterns.element(segment.dtype)
        reference, length = Reference(kind, segment.dtype, old), differences.block(segment.shape)
        places = differences.chunks(segment.length // kind.width, length)
        for (start, stop), data in zip(places, payloads.framed(row.length, len(places)), strict=True):
            yield patterns.out_of_order(differences.decode(data, reference(start, stop), kind, length), kind)

    def _coded_codes(self, segment: Segment, row: Row, payloads: Payloads) -> bytes:
        """A payload of codes against that of an old tensor."""
        part, old = self._old(row)
        if segment.codes is None or old.codes is None:
            raise CorruptFileError("codes of a tensor that has none")
        before = Recoded.of(part.file.read(old.start, old.stop), *old.codes).codes
        book, coding, shape, data = taken(memoryview(payloads.take(row.length)), *segment.codes)
        if shape != before.shape:
            raise CorruptFileError("old codes of another shape", got=before.shape, wanted=shape)
        kind, length = patterns.element("I16"), differences.block(shape)
        places = differences.chunks(before.size, length)
        reference, codes, at = before.reshape(-1), np.empty(before.size, np.int16), 4 * (len(places) - 1)
        for (start, stop), size in zip(places, _lengths(bytes(data[:at]), len(places), len(data)), strict=True):
            codes[start:stop] = differences.decode(data[at : at + size], reference[start:stop], kind, length)
            at += size
        return Recoded(book, coding, codes.reshape(shape)).payload()
