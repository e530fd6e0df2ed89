"""A folder of weights: one file or many, with or without an index, perhaps in Hugging Face layout."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from opq.base.paths import json_object, what_is
from opq.errors import CorruptSourceError, MissingShardError, SourceError
from opq.sources.base import Source
from opq.sources.files import TORCH_SUFFIXES, Header, from_files, header_of

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
MOST_SHARDS = 100_000
"""The most shards that file names may ask for. A choice: more than any model has, and quick to check."""
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<total>\d+)(?P<suffix>\.\w+)")


def from_folder(folder: Path, *, trust: bool = False) -> Source:
    """All tensors of the folder's checkpoint; only headers are read. The model, if any, is built on demand.

    If there are several checkpoints, the first of these is read: `model.safetensors` or its shards; all `.safetensors`
    files; `pytorch_model.bin` or its shards; the only PyTorch checkpoint.

    Args:
        trust: whether Python code in the folder may be run to build the model.

    Raises:
        MissingShardError: a file is missing that the index or the numbers of the shards require.
        CorruptSourceError: a file is damaged, or does not contain a tensor that the index places in it.
        SourceError: there are no weights in the folder.
    """
    from opq.sources.hf_models import build_transformers, hint_of_folder

    try:
        paths, index = _weight_files(folder)
    except OSError as error:
        raise SourceError(f"{folder} cannot be read", got=error.strerror or error) from error
    headers = {path: header_of(path) for path in paths}
    _check_index(index, headers)
    config = configuration(folder)
    own = folder if is_described(folder) else None
    source = from_files(headers, label=folder.resolve().name, folder=own, config=config)
    if not config.get("model_type"):
        return source
    return dataclasses.replace(
        source,
        make=lambda: build_transformers(folder, trust=trust),
        hint=lambda: hint_of_folder(folder, trust=trust),
        trusted=trust,
    )


DESCRIPTIONS = ("adapter_config.json", "model_index.json")
"""Files that describe the weights if there is no config.json: those of PEFT's adapters and of diffusers' pipelines."""


def is_described(folder: Path) -> bool:
    """Whether a file in the folder says of what model its weights are, so that all in it belongs to this model."""
    return any(what_is(folder / name) == "a file" for name in ("config.json", *DESCRIPTIONS))


def weights_name(folder: Path) -> str:
    """The name under which the folder's own library looks for weights: `diffusion_pytorch_model` for diffusers,
    `adapter_model` for PEFT, otherwise `model`."""
    if what_is(folder / "config.json") == "nothing" and what_is(folder / "adapter_config.json") == "a file":
        return "adapter_model"
    return "diffusion_pytorch_model" if "_diffusers_version" in configuration(folder) else "model"


def configuration(folder: Path) -> dict[str, Any]:
    """The folder's config.json; empty if there is none.

    Raises:
        CorruptSourceError: the file is not a JSON object, or cannot be read.
    """
    path = folder / "config.json"
    return {} if what_is(path) == "nothing" else _json(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json_object(path)
    except (ValueError, OSError) as error:
        raise CorruptSourceError(f"{path} cannot be read", got=error, wanted="a JSON object") from error


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files of the folder's checkpoint in order, and its index (tensor name -> file name), empty without one."""
    inside = sorted(p for p in folder.iterdir() if what_is(p) == "a file" and not p.name.startswith("."))
    named = {path.name: path for path in inside}
    safe = [path for path in inside if path.suffix == ".safetensors" and not path.name.endswith(".opq.safetensors")]
    others = [path for path in inside if path.suffix in TORCH_SUFFIXES]
    for index, whole, found in zip(_INDEXES, _WHOLE, (safe, others), strict=True):
        if index in named:
            return _indexed(named[index])
        if whole in named:
            return [named[whole]], {}
        if found == safe and safe and (indexes := [p for p in inside if p.name.endswith(".safetensors.index.json")]):
            return _indexed(indexes[0])
        if found and (found == safe or len(found) == 1 or all(_SHARD.fullmatch(path.name) for path in found)):
            _check_numbers(found)
            return found, {}
    got = f"{len(others)} PyTorch checkpoints" if others else f"{len(inside)} files, none with weights"
    raise SourceError(
        f"no checkpoint in folder {folder}", got=got, wanted="safetensors files or one .pt, .pth or .bin file"
    )


def _indexed(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that an index names, in order of their names."""
    index = _json(path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CorruptSourceError(f"{path} is no index", wanted='a "weight_map" of tensor names to file names')
    names = sorted(set(index.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CorruptSourceError(f"{path} names files outside its folder", got=outside[0], wanted="bare file names")
    _check_there(path.parent, names, f"{path} names")
    return [path.parent / name for name in names], index


def _check_numbers(paths: Iterable[Path]) -> None:
    """Raises `MissingShardError` if one of the files `x-00001-of-00003`, ... is missing."""
    for path in paths:
        if shard := _SHARD.fullmatch(path.name):
            width = len(shard["number"])
            if len(shard["total"]) > 9 or int(shard["total"]) > MOST_SHARDS:
                wanted = f"at most {MOST_SHARDS} shards"
                raise CorruptSourceError(f"{path.name} asks for more shards than there can be", wanted=wanted)
            numbers = (f"{i:0{width}}" for i in range(1, int(shard["total"]) + 1))
            names = [f"{shard['stem']}-{number}-of-{shard['total']}{shard['suffix']}" for number in numbers]
            _check_there(path.parent, names, f"{path.name} asks for")


def _check_there(folder: Path, names: Iterable[str], says: str) -> None:
    missing = [name for name in names if what_is(folder / name) != "a file"]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MissingShardError(f"{says} files that are not there", got=f"no {', '.join(missing[:3])}{more}")


def _check_index(index: dict[str, str], headers: dict[Path, Header]) -> None:
    """Raises `CorruptSourceError` if a file does not contain a tensor that the index places in it."""
    held = {path.name: {spec.name for spec in header.specs} for path, header in headers.items()}
    lacking = [(name, file) for name, file in index.items() if name not in held[file]]
    if lacking:
        (name, file), more = lacking[0], f", {len(lacking)} such names" if len(lacking) > 1 else ""
        raise CorruptSourceError(f"the index names tensor {name!r} in {file}, which does not hold it{more}")
