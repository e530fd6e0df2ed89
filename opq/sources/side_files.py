"""What lies beside the weights of a model and belongs to it: configuration, tokenizer, licence, small sub-folders.

One rule for every folder that is written. All files of the source's folder but weights, their indexes and what is
hidden; of its sub-folders the same, `1_Pooling/` say, unless a sub-folder holds weights, which makes it another model
(a Trainer's checkpoint, an ONNX export). Sub-folders that `modules.json` of sentence-transformers lists are parts of
this model that nobody compressed: they come along whole.

A link is followed within the source's folder only, and into the blobs of the Hugging Face cache that it lies in. A file
that is there already and differs is somebody else's: it is never replaced.
"""

from __future__ import annotations

import contextlib
import filecmp
import io
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from opq.base.atomic import written_aside
from opq.errors import OccupiedFolderError, OpqWarning, WriteError
from opq.sources.files import TORCH_SUFFIXES

WEIGHTS = (
    *(".safetensors", *TORCH_SUFFIXES, ".index.json", ".onnx", ".onnx_data"),
    *(".h5", ".msgpack", ".ot", ".gguf", ".tflite"),
)
"""How the names of weights, and of their indexes, end."""
LARGEST = 1 << 28
"""Bytes of a side file at most."""


def listed(folder: Path, *, apart: Path | None = None) -> list[Path]:
    """The side files of a folder, relative to it, sorted.

    Args:
        apart: a folder in it that is none of its own: where they are copied to.

    Raises:
        WriteError: the folder cannot be read.
    """
    try:
        return sorted(path.relative_to(folder) for path in _below(folder, _modules(folder), apart))
    except OSError as error:
        raise WriteError(f"cannot read {folder}", got=error.strerror or error) from error


def links(folder: Path) -> list[Path]:
    """Links out of a folder where a side file could be, relative to it; none of them is followed."""
    return sorted(p.relative_to(folder) for p in folder.iterdir() if _is_side_name(p.name) and not _inside(p, folder))


def check(
    origin: Path, target: Path, *, but: Collection[str] = (), instead: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Raises `OccupiedFolderError` where a side file would replace another file; nothing is written.

    Args:
        but: names of files that the caller writes itself.
        instead: what files of these names hold in the target, where that is not what they hold in the origin.
    """
    for path in listed(origin, apart=target):
        if str(path) not in but and _is_taken(origin / path, target, path, instead.get(str(path))):
            raise OccupiedFolderError(
                f"{target} holds another file of that name",
                got=str(path),
                wanted=f"that of {origin}, or none",
            )


def copy(
    origin: Path,
    target: Path,
    *,
    but: Collection[str] = (),
    instead: Mapping[str, bytes] = MappingProxyType({}),
    within: Path | None = None,
) -> None:
    """Copies the side files, each aside and renamed; what is there already and the same stays as it is.

    Args:
        but: names of files that the caller writes itself.
        instead: as of `check`.
        within: a folder for what is being written, on the same file system.

    Raises:
        OccupiedFolderError: a file of that name is there and differs; nothing was written then.
        WriteError: the folder cannot be filled.
    """
    check(origin, target, but=but, instead=instead)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for path in listed(origin, apart=target):
            if str(path) not in but and not (target / path).exists():
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                given = _opened(origin / path, instead.get(str(path)))
                with given, written_aside(target / path, within=within) as out:
                    shutil.copyfileobj(given, out)
    except OSError as error:
        raise WriteError(f"cannot fill {target}", got=error.strerror or error) from error
    if left := links(origin):
        names = ", ".join(map(str, left[:5]))
        warnings.warn(f"not copied, because they are links out of {origin}: {names}", OpqWarning, stacklevel=2)


def _below(folder: Path, modules: Collection[Path], apart: Path | None, root: Path | None = None) -> Iterator[Path]:
    """The side files of a folder and of its sub-folders, with their paths."""
    root = root or folder
    whole = any(folder == module or module in folder.parents for module in modules)
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not _inside(path, root):
            continue
        if path.is_dir() and not path.is_symlink():
            own = path in modules or whole
            if not (apart is not None and _same(path, apart)) and (own or not _has_weights(path)):
                yield from _below(path, modules, apart, root)
        elif path.is_file() and (whole or _is_side_name(path.name)) and path.stat().st_size <= LARGEST:
            yield path


def _has_weights(folder: Path) -> bool:
    return any(path.name.endswith(WEIGHTS) for path in folder.iterdir())


def _is_side_name(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(WEIGHTS)


def _modules(folder: Path) -> list[Path]:
    """The sub-folders that sentence-transformers loads beside the model in the folder itself."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        named = [one["path"] for one in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
        return [folder / name for name in named if name and "/" not in name and name not in (".", "..")]
    return []


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path is no link, or one that stays in the folder or in the blobs of the cache that it lies in."""
    if not path.is_symlink():
        return True
    home, end = folder.resolve(), Path(os.path.realpath(path))
    roots = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    return any(root in end.parents for root in roots)


def _opened(path: Path, instead: bytes | None) -> BinaryIO:
    if instead is not None:
        return io.BytesIO(instead)
    return open(path, "rb")


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _is_taken(origin: Path, target: Path, path: Path, instead: bytes | None) -> bool:
    """Whether another file, a link or a folder stands where a side file is to be."""
    parents = [target / parent for parent in path.parents if parent.name]
    if any(parent.is_symlink() or (parent.exists() and not parent.is_dir()) for parent in parents):
        return True
    place = target / path
    if place.is_symlink() or not place.exists():
        return place.is_symlink()
    if not place.is_file() or instead is not None:
        return not place.is_file() or place.read_bytes() != instead
    return not filecmp.cmp(origin, place, shallow=False)
