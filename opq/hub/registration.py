"""Registers opq with transformers where its version allows it."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

from opq.base.extras import need
from opq.errors import OpqWarning, SourceError

OLDEST = 5
"""The first major version of transformers that reads files tensor by tensor."""


def register() -> None:
    """Teaches transformers to open repositories that hold an opq file; importing `opq.hub` calls this where possible.

    Afterwards `from_pretrained` of every model class of transformers, and everything that calls it, opens a folder or
    repository whose config.json says `"quant_method": "opq"`. Tensors are decoded one by one while the model is loaded,
    into the element type and onto the device that were requested. The result is an ordinary dense model.

    Raises:
        MissingExtraError: transformers is not installed.
        SourceError: transformers is too old, or cannot be imported.

    Example:
        >>> import opq.hub
        >>> opq.hub.register()
    """
    transformers = need("transformers", "hf")
    auto = need("transformers.quantizers.auto", "hf")
    version = str(transformers.__version__)
    if not _is_able(version, auto):
        raise SourceError(
            "transformers is too old to open opq files by its own from_pretrained",
            got=f"transformers {version}",
            wanted=f"{OLDEST}.0 or newer",
            remedy=f'Run pip install "transformers>={OLDEST}", or load with opq.hub.from_pretrained.',
        )
    if "opq" not in auto.AUTO_QUANTIZER_MAPPING:
        importlib.import_module("opq.hub.quantizer").define()


def register_if_able() -> None:
    """Calls `register` if transformers can be imported; warns if it is too old."""
    if importlib.util.find_spec("transformers") is None:
        return
    try:
        auto = importlib.import_module("transformers.quantizers.auto")
    except (ImportError, RuntimeError):
        return
    version = str(importlib.import_module("transformers").__version__)
    if _is_able(version, auto):
        register()
    else:
        text = f"transformers {version} cannot open opq files by its own from_pretrained, which takes {OLDEST}.0"
        warnings.warn(f"{text} or newer; opq.hub.from_pretrained does", OpqWarning, stacklevel=3)


def _is_able(version: str, auto: Any) -> bool:
    major = version.split(".", maxsplit=1)[0]
    wanted = ("register_quantization_config", "register_quantizer")
    return major.isdecimal() and int(major) >= OLDEST and all(hasattr(auto, name) for name in wanted)
