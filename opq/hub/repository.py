"""The two calls for repositories that need no transformers of a certain version: fetch and load, and fill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from opq.base.extras import brief, need
from opq.base.format_v1 import FOLDER_INDEX
from opq.base.paths import what_is
from opq.errors import SourceError
from opq.export.hf_folder import save_compressed_folder
from opq.file.loading import load
from opq.sources.hf_models import empty_model
from opq.sources.hub_config import named_file

_NEEDED = ("*.opq.safetensors", "*.json", "*.txt", "*.model")


def from_pretrained(
    name: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """The dense model of a repository (or folder) that holds an opq file, or its shards, and a config.json.

    Args:
        revision: a branch, tag or commit of the repository.
        trust_remote_code: run Python code that the repository brings; without it, a model that needs it is an error.

    Raises:
        SourceError: no such repository or folder, no opq file in it or several of which config.json names none,
            or a config that transformers does not know.
        FileFormatError: the file is not whole.
        MissingExtraError: transformers or huggingface_hub is not installed.
    """
    need("transformers", "hf")
    folder = Path(name)
    if what_is(folder) != "a folder":
        folder = fetched(os.fspath(name), revision)
    return load(_weights(folder, os.fspath(name)), empty_model(folder, trust=trust_remote_code)).eval()


def save_pretrained(file: str | os.PathLike[str], folder: str | os.PathLike[str], like: str | os.PathLike[str]) -> Path:
    """Fills a folder to upload: the opq file, configuration and tokenizer of `like`, a model card. Returns its path.

    Raises:
        ExportError: `like` is no Hugging Face folder or `hf:` name.
        WriteError: the folder cannot be filled.
    """
    return save_compressed_folder(file, folder, like)


def _weights(folder: Path, name: str) -> Path:
    """The opq file of a folder, or the index of its shards: the one that config.json names, or the only one."""
    if (named := named_file(folder)) is not None and what_is(folder / named) == "a file":
        return folder / named
    if what_is(folder / FOLDER_INDEX) == "a file":
        return folder / FOLDER_INDEX
    found = sorted(folder.glob("*.opq.safetensors"))
    if len(found) != 1:
        got = ", ".join(p.name for p in found) or "none"
        raise SourceError(f"{name} does not hold one opq file", got=got, wanted="one NAME.opq.safetensors")
    return found[0]


def fetched(name: str, revision: str | None) -> Path:
    """The repository's files, in the local cache."""
    hub: Any = need("huggingface_hub", "hf")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(_NEEDED)))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        remedy = "Check the name and the network, log in for gated models, or pass a local folder."
        raise SourceError(f"{name} cannot be had", got=brief(error), remedy=remedy) from error
