"""Folders in Hugging Face layout: dense, so that `from_pretrained` loads them without opq, or with the opq file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from opq.base.atomic import refuse_inputs, written_aside
from opq.base.paths import what_is
from opq.errors import ExportError, OccupiedFolderError, OpqError
from opq.export.dense import save_dense
from opq.file.reader import Reader
from opq.sources import hub_config, side_files
from opq.sources.folders import is_described, weights_name

CARD = "README.md"
_MARK = b"## Compressed with opq"


def save_folder(file: str | os.PathLike[str], folder: str | os.PathLike[str], like: str | os.PathLike[str]) -> int:
    """Writes dense `model.safetensors` beside the configuration and tokenizer of the model that was compressed.

    Args:
        file: an opq file of a Hugging Face model.
        folder: the folder to fill; it is created if needed.
        like: the folder (or `hf:ORG/NAME`) that the model came from.

    Returns:
        The size of `model.safetensors` in bytes.

    Raises:
        ExportError: `like` has no config.json.
        OptionError: the new folder is `like`.
        FileFormatError: the file is incomplete or damaged.
        WriteError: the output cannot be written.
    """
    target, origin = Path(folder), config_folder(like)
    weights = target / f"{weights_name(origin)}.safetensors"
    refuse_inputs(target, [origin])
    refuse_inputs(weights, [file])
    side_files.copy(origin, target, instead=hub_config.dense(origin))
    return save_dense(file, weights)


def config_folder(like: str | os.PathLike[str]) -> Path:
    """The local folder of a Hugging Face model; raises `ExportError` if it has no configuration."""
    from opq.sources import zoo

    text = os.fspath(like)
    try:
        folder = zoo.from_hf(text.removeprefix("hf:")).folder if text.startswith("hf:") else Path(text)
    except OpqError as error:
        raise ExportError(f"no configuration from {text}", got=error.fact, remedy=error.remedy) from error
    what = "nothing" if folder is None else what_is(folder)
    if folder is None or not is_described(folder):
        raise ExportError(
            f"{text} is no Hugging Face folder",
            got="no config.json" if what == "a folder" else what,
            wanted="the folder that the model came from",
        )
    return folder


def save_compressed_folder(
    file: str | os.PathLike[str], folder: str | os.PathLike[str], like: str | os.PathLike[str]
) -> Path:
    """Writes the opq file itself as `model.opq.safetensors` beside configuration and tokenizer, with a model card.

    The folder is ready to upload. After `import opq.hub`, `from_pretrained` of transformers loads it;
    `opq.hub.from_pretrained` loads it with any version of transformers. The card gives the figures of the file, then
    the text of the original model's card, and keeps its licence and tags.

    Args:
        file: an opq file of a Hugging Face model.
        folder: the folder to fill; it is created if needed.
        like: the folder (or `hf:ORG/NAME`) that the model came from.

    Returns:
        The path of the folder.

    Raises:
        ExportError: `like` has no config.json, or the file is a folder of shards, which needs no export.
        OptionError: the new folder is `like`.
        FileFormatError: the file is incomplete or damaged.
        WriteError: the output cannot be written.
    """
    from opq.export.model_card import model_card

    if what_is(file) == "a folder":
        remedy = "Upload the folder itself: from_pretrained opens it."
        raise ExportError("a repository is made of one file", got=f"the folder {os.fspath(file)}", remedy=remedy)
    target, origin = Path(folder), config_folder(like)
    refuse_inputs(target, [origin])
    refuse_inputs(target / "model.opq.safetensors", [file])
    with Reader(file) as reader:
        config = hub_config.compressed(origin, hub_config.FILE)
        library = "transformers" if config else None
        card = model_card(reader, source=os.fspath(like), original=_card_of(origin), library=library)
    side_files.copy(origin, target, but=(CARD,), instead=config)
    place = target / CARD
    if place.exists() and _MARK not in place.read_bytes():
        raise OccupiedFolderError(f"{target} holds another file of that name", got=CARD, wanted="none")
    with written_aside(target / "model.opq.safetensors") as out, open(file, "rb") as whole:
        shutil.copyfileobj(whole, out)
    with written_aside(place) as out:
        out.write(card.encode())
    return target


def _card_of(origin: Path) -> str:
    """The text of the model card that came with a model; empty if it has none."""
    if Path(CARD) not in side_files.listed(origin):
        return ""
    return (origin / CARD).read_text(encoding="utf-8", errors="replace")
