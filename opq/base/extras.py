"""Optional packages, imported where they are needed, and errors of other libraries in one line."""

from __future__ import annotations

import importlib
import re
from typing import Any

import torch

from opq.errors import MissingExtraError, SourceError

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def brief(error: Exception) -> str:
    """Another library's error in one line, without the colours of a terminal."""
    lines = _COLOURS.sub("", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def need(package: str, extra: str) -> Any:
    """Imports an optional package.

    Args:
        extra: the extra of opq that installs it.

    Raises:
        MissingExtraError: it is not installed.
        SourceError: it is installed but cannot be imported.
    """
    whole = package.partition(".")[0]
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != whole:
            raise SourceError(f"{package} does not import", got=error, remedy=f"Reinstall {whole}.") from error
        remedy = f'Install the extra: pip install "opq[{extra}]".'
        raise MissingExtraError(f"{whole} is not installed", wanted=f"the extra {extra!r}", remedy=remedy) from error
    except (ImportError, RuntimeError) as error:
        remedy = f"Install a build of {whole} for torch {torch.__version__}."
        raise SourceError(f"{package} does not import", got=error, remedy=remedy) from error
