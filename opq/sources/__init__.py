"""Where weights come from: one call, `open_source`, for every kind of source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from opq.errors import SourceError
from opq.sources.base import BatchNormNames, InputHint, Source, TensorSpec
from opq.sources.files import from_safetensors
from opq.sources.memory import from_mapping, from_module

__all__ = ["BatchNormNames", "InputHint", "Source", "TensorSpec", "open_source"]


def open_source(source: nn.Module | Mapping[str, Any] | str | os.PathLike[str] | Source) -> Source:
    """The source of the weights.

    Args:
        source: a `torch.nn.Module`, a state dict, or the path of a `.safetensors` file.

    Raises:
        SourceError: the source is unknown or cannot be read.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, nn.Module):
        return from_module(source)
    if isinstance(source, Mapping):
        return from_mapping(source)
    if isinstance(source, (str, os.PathLike)):
        return from_safetensors(Path(source))
    raise SourceError("the source is not understood", got=type(source).__name__)
