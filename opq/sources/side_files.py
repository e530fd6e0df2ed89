"""Side files: the files in a model's folder besides its weights, such as configuration, tokenizer and licence.

The same rule holds for every folder that is written. Side files are all files of the source's folder except weights,
their indexes and hidden files. The same holds for its sub-folders (for example `1_Pooling/`), except that a sub-folder
with weights is another model (a Trainer's checkpoint, an ONNX export). Sub-folders that `modules.json` of
sentence-transformers lists are parts of this model that are not compressed: they are copied completely.

A link is followed only if it stays in the source's folder, or in the blobs of the Hugging Face cache that contains it.
An existing file that differs belongs to somebody else and is never replaced.
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
"""Endings of the names of weights and of their indexes."""
LARGEST = 1 << 28
"""Bytes of the largest side file. A choice: tokenizers are far smaller, and weights with another ending are often
larger."""


def listed(folder: Path, *, apart: Path | None = None) -> list[Path]:
    """The side files of a folder, relative to it, sorted.

    Args:
        apart: a folder inside it that does not count, because it is the target of the copy.

    Raises:
        WriteError: the folder cannot be read.
    """
    try:
        return sorted(path.relative_to(folder) for path in _below(folder, _modules(folder), apart))
    except OSError as error:
        raise WriteError(f"cannot read {folder}", got=error.strerror or error) from error


def links(folder: Path) -> list[Path]:
    """Links that lead out of a folder and so are not followed, relative to the folder."""
    return sorted(p.relative_to(folder) for p in folder.iterdir() if _is_side_name(p.name) and not _inside(p, folder))


def check(
    origin: Path, target: Path, *, but: Collection[str] = (), instead: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Raises `OccupiedFolderError` if a side file would replace a different file; nothing is written.

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
    """Copies the side files, each under a temporary name that is then renamed; equal existing files stay.

    Args:
        but: names of files that the caller writes itself.
        instead: as in `check`.
        within: a folder for the temporary files, on the same file system.

    Raises:
        OccupiedFolderError: a different file of that name exists; nothing is written.
        WriteError: a file cannot be written.
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
    """The sub-folders that sentence-transformers loads in addition to the model in the folder itself."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        named = [one["path"] for one in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
        return [folder / name for name in named if name and "/" not in name and name not in (".", "..")]
    return []


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path is not a link, or a link that stays in the folder or in the blobs of the cache around it."""
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
    """Whether there is a different file, a link or a folder in the place of a side file."""
    parents = [target / parent for parent in path.parents if parent.name]
    if any(parent.is_symlink() or (parent.exists() and not parent.is_dir()) for parent in parents):
        return True
    place = target / path
    if place.is_symlink() or not place.exists():
        return place.is_symlink()
    if not place.is_file() or instead is not None:
        return not place.is_file() or place.read_bytes() != instead
    return not filecmp.cmp(origin, place, shallow=False)
