"""Models of transformers, built from a folder's configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opq.base.extras import brief, need
from opq.base.process_state import same_random_state
from opq.errors import SourceError
from opq.sources.base import InputHint
from opq.sources.hints import hint_of_config


def class_of(folder: Path) -> tuple[Any, Any]:
    """The transformers class that the config names (AutoModel where it names none), and the config."""
    transformers = need("transformers", "hf")
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        remedy = "Build the model yourself and pass the module."
        raise SourceError(
            f"transformers does not know the model in {folder}", got=brief(error), remedy=remedy
        ) from error
    named = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, named, None) or transformers.AutoModel, config


def skeleton_of(folder: Path) -> nn.Module | str:
    """The model without values, or why there is none."""
    if not (folder / "config.json").is_file():
        return "the folder has no config.json"
    try:
        kind, config = class_of(folder)
        with torch.device("meta"), same_random_state():
            model: nn.Module = kind.from_config(config) if kind.__name__ == "AutoModel" else kind(config)
    except (SourceError, NotImplementedError, ImportError, ValueError, TypeError, AttributeError, RuntimeError) as e:
        return brief(e)
    if callable(tie := getattr(model, "tie_weights", None)):
        tie()
    return model


def empty_model(folder: Path) -> nn.Module:
    """The model that the folder's config describes, with random weights; raises `SourceError` where there is none."""
    kind, config = class_of(folder)
    with same_random_state():
        model: nn.Module = kind.from_config(config) if kind.__name__ == "AutoModel" else kind(config)
    return model


def build_transformers(folder: Path) -> nn.Module:
    """The model in the folder, of the class that its config names, in float32 and inference mode."""
    return load_transformers(folder, torch.float32)[0]


def load_transformers(folder: Path, dtype: Any) -> tuple[nn.Module, list[str]]:
    """The model in the folder and the names of its tensors that the checkpoint lacks, which are random."""
    transformers = need("transformers", "hf")
    kind, _ = class_of(folder)
    spelled = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    try:
        with same_random_state(seed=0), _no_progress(transformers.utils.logging):
            model, info = kind.from_pretrained(folder, output_loading_info=True, **{spelled: dtype})
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise SourceError(
            f"transformers cannot build the model in {folder}",
            got=brief(error),
            remedy="Build the model yourself and pass the module, or compress with probe=False.",
        ) from error
    return model.eval(), sorted(info["missing_keys"])


@contextlib.contextmanager
def _no_progress(logging: Any) -> Iterator[None]:
    """transformers without its progress bars, which are the user's to switch."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def hint_of_folder(folder: Path) -> InputHint | None:
    """What the folder's config says of the input."""
    return hint_of_config(class_of(folder)[1])
