"""How the config.json of a transformers model says that its weights are in an opq file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opq.base.paths import json_object, what_is

METHOD = "opq"
"""The `quant_method` of transformers."""
FILE = "model.opq.safetensors"
"""The file where the configuration names none."""
LEFT = "gguf"
"""The method that transformers leaves in the configuration of a model that it has read from a GGUF file: what it then
saves are plain weights."""
CONFIG = "config.json"


def compressed(folder: Path, file: str) -> dict[str, bytes]:
    """The config.json of a model's folder as it stands beside an opq file of that name.

    Empty where it is no configuration of a transformers model, or of one that another method has quantized: what its
    codes are for transformers is not known here.
    """
    config = _read(folder)
    if not config.get("model_type") or _method(config) not in (None, METHOD):
        return {}
    return _written({**config, "quantization_config": {"quant_method": METHOD, "file": file}})


def dense(folder: Path) -> dict[str, bytes]:
    """The config.json of a folder as it stands beside dense weights; empty where it says so already."""
    config = _read(folder)
    if _method(config) != METHOD:
        return {}
    return _written({name: value for name, value in config.items() if name != "quantization_config"})


def named_file(folder: Path) -> str | None:
    """The opq file that the folder's config.json names."""
    settings = _read(folder).get("quantization_config")
    file = settings.get("file") if isinstance(settings, dict) and settings.get("quant_method") == METHOD else None
    return file if isinstance(file, str) and is_file_name(file) else None


def is_file_name(file: object) -> bool:
    """Whether it may be the name of an opq file, or of an index of shards, in the folder itself."""
    ends = (".opq.safetensors", ".opq.safetensors.index.json")
    return isinstance(file, str) and file.endswith(ends) and not set(file) & set("/\\:") and file[0] != "."


def forget(config: Any) -> None:
    """Takes the method from a loaded configuration, by which a model of random weights is to be built."""
    settings = getattr(config, "quantization_config", None)
    if isinstance(settings, dict) and settings.get("quant_method") == METHOD:
        del config.quantization_config


def _read(folder: Path) -> dict[str, Any]:
    """The configuration; empty where there is none that can be read, which who builds the model will say."""
    path = folder / CONFIG
    try:
        return json_object(path) if what_is(path) == "a file" else {}
    except (ValueError, OSError):
        return {}


def _method(config: dict[str, Any]) -> str | None:
    settings = config.get("quantization_config") or config.get("compression_config")
    named = None if not settings else str(settings.get("quant_method")) if isinstance(settings, dict) else "unknown"
    return None if named == LEFT else named


def _written(config: dict[str, Any]) -> dict[str, bytes]:
    return {CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
