"""Loads a repository that holds an opq file, and fills a folder to upload, with any version of transformers."""

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
    """Loads the dense model of a repository or folder that holds an opq file (or its shards) and a config.json.

    Args:
        name: a folder, or the name of a repository, such as `ORG/NAME`.
        revision: a branch, tag or commit of the repository.
        trust_remote_code: whether to run Python code that the repository brings. Without it, a model that needs such
            code is an error.

    Returns:
        The model, in evaluation mode.

    Raises:
        SourceError: the repository or folder does not exist, holds no opq file, or holds several and config.json names
            none of them; or transformers does not know its config.
        FileFormatError: the file is incomplete or damaged.
        MissingExtraError: transformers or huggingface_hub is not installed.
    """
    need("transformers", "hf")
    folder = Path(name)
    if what_is(folder) != "a folder":
        folder = fetched(os.fspath(name), revision)
    return load(_weights(folder, os.fspath(name)), empty_model(folder, trust=trust_remote_code)).eval()


def save_pretrained(file: str | os.PathLike[str], folder: str | os.PathLike[str], like: str | os.PathLike[str]) -> Path:
    """Fills a folder to upload: the opq file, the configuration and tokenizer of `like`, and a model card.

    Args:
        file: an opq file of a Hugging Face model.
        folder: the folder to fill; it is created if needed.
        like: the folder, or `hf:ORG/NAME`, of the model that was compressed.

    Returns:
        The path of the folder.

    Raises:
        ExportError: `like` is neither a Hugging Face folder nor an `hf:` name.
        WriteError: the folder cannot be filled.
    """
    return save_compressed_folder(file, folder, like)


def _weights(folder: Path, name: str) -> Path:
    """The opq file that config.json names; otherwise the index of the shards; otherwise the only opq file."""
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
    """Downloads a repository into the local cache, and gives the folder."""
    hub: Any = need("huggingface_hub", "hf")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(_NEEDED)))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        remedy = "Check the name and the network, log in for gated models, or pass a local folder."
        raise SourceError(f"{name} cannot be had", got=brief(error), remedy=remedy) from error
