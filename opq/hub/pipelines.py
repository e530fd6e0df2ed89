"""Pipelines of diffusers: a folder with one folder for each model, and a model_index.json that names their classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opq.base.atomic import refuse_inputs
from opq.base.extras import brief, need
from opq.base.format_v1 import FOLDER_INDEX
from opq.base.paths import json_object, what_is
from opq.base.progress import Progress
from opq.constraints import Constraint
from opq.errors import SourceError
from opq.file.loading import load
from opq.hub.repository import fetched
from opq.plan import Budget
from opq.sources import side_files
from opq.streaming import Streamed, compress_folder

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
"""The libraries whose models are built here; diffusers itself builds what a pipeline takes from others."""


def is_pipeline(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a pipeline of diffusers."""
    return what_is(Path(folder) / INDEX) == "a file"


def compress_pipeline(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    bits: float | None = None,
    ratio: float | None = None,
    constraints: Sequence[Constraint] = (),
    probe: bool | None = None,
    trellis: bool | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
    workers: int | None = None,
) -> dict[str, Streamed]:
    """Compresses every model of a diffusers pipeline (UNet, VAE, text encoders), each into a folder of the same name.

    Schedulers, tokenizers and all other small files are copied. `diffusers_components` loads the compressed models.

    Args:
        folder: the folder of the pipeline, with its model_index.json.
        output: the folder to fill.
        bits: the budget of each model, in bits per weight: 8 x bytes of its files / number of its weights.
        ratio: the budget of each model, as bytes of its source / bytes of its files. Give exactly one of the two.
        constraints: constraints for each model, as for `opq.compress_folder`.
        probe: whether to measure sensitivities, as for `opq.compress_folder`; models whose class is one of diffusers
            are compressed from their weights alone.
        trellis: as for `opq.compress_folder`.
        seed: the seed of the synthetic inputs.
        progress: a callback, or whether to draw a bar, as for `opq.compress_folder`.
        workers: the number of threads; by default one for each core.

    Returns:
        The result for each model, by its name in the pipeline.

    Raises:
        SourceError: the folder is no pipeline, or none of its models has weights.
        OpqError: any error of `opq.compress_folder`.
    """
    Budget.of(bits=bits, ratio=ratio, size=None)
    origin, target = Path(folder), Path(output)
    models = [name for name in _named(origin) if _has_weights(origin / name)]
    if not models:
        raise SourceError(f"no model of the pipeline {origin} has weights", wanted="folders with safetensors files")
    refuse_inputs(target, [origin])
    side_files.copy(origin, target)
    return {
        name: compress_folder(
            origin / name,
            target / name,
            bits=bits,
            ratio=ratio,
            constraints=constraints,
            probe=probe,
            trellis=trellis,
            seed=seed,
            progress=progress,
            workers=workers,
        )
        for name in models
    }


def diffusers_components(
    name: str | os.PathLike[str], *, revision: str | None = None, dtype: torch.dtype | None = None
) -> dict[str, nn.Module]:
    """Loads the compressed models of a pipeline as dense models, to be passed to `DiffusionPipeline.from_pretrained`.

    Args:
        name: a folder that `compress_pipeline` filled, or a repository with the content of such a folder.
        revision: a branch, tag or commit of the repository.
        dtype: the element type of all floating-point weights; by default the type that the files say.

    Returns:
        The models, in evaluation mode, by their names in the pipeline.

    Raises:
        SourceError: the folder is no pipeline, holds no opq files, or names a model that diffusers cannot build.
        FileFormatError: a file is incomplete or damaged.
        MissingExtraError: diffusers or transformers is not installed.
    """
    folder = Path(name)
    if what_is(folder) != "a folder":
        folder = fetched(os.fspath(name), revision)
    found = {
        part: load(folder / part / FOLDER_INDEX, _empty(folder / part, *kind)).eval()
        for part, kind in _named(folder).items()
        if what_is(folder / part / FOLDER_INDEX) == "a file" and kind[0] in LIBRARIES
    }
    if not found:
        raise SourceError(f"no model of the pipeline {name} is in opq files", wanted=f"folders with a {FOLDER_INDEX}")
    return {part: model if dtype is None else model.to(dtype) for part, model in found.items()}


def _named(folder: Path) -> dict[str, tuple[str, str]]:
    """The library and the class of each part that the pipeline names."""
    try:
        index = json_object(folder / INDEX)
    except (ValueError, OSError) as error:
        raise SourceError(f"{folder} is no pipeline of diffusers", got=f"{INDEX}: {error}") from error
    return dict(_parts(index))


def _parts(index: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    for part, kind in index.items():
        bare = not part.startswith(("_", ".")) and not set(part) & set("/\\:")
        if bare and isinstance(kind, list) and len(kind) == 2 and all(isinstance(word, str) for word in kind):
            yield part, (kind[0], kind[1])


def _has_weights(folder: Path) -> bool:
    there = what_is(folder) == "a folder" and what_is(folder / "config.json") == "a file"
    return there and any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir())


def _empty(folder: Path, library: str, name: str) -> nn.Module:
    """The model that a part's configuration describes, with random weights."""
    if library == "transformers":
        from opq.sources.hf_models import empty_model

        return empty_model(folder)
    kind = getattr(need(library, "diffusers"), name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "load_config")):
        raise SourceError(f"{library} has no model of that name", got=name, wanted=f"that of {folder.name}")
    try:
        model: nn.Module = kind.from_config(kind.load_config(folder))  # type: ignore[attr-defined]
    except Exception as error:
        raise SourceError(f"diffusers cannot build the model in {folder}", got=brief(error)) from error
    return model
