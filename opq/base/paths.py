"""What is at a path, checked before it is opened: opening a pipe could block, reading a device could never end."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
LARGEST_JSON = 100_000_000
"""Bytes of the largest configuration or index that is read. A choice: those of today's models are far smaller, and a
larger file could use up the memory."""


def what_is(path: str | os.PathLike[str], *, follow: bool = True) -> str:
    """`a file`, `a folder`, `nothing`, `a pipe`, `a device`, ..., or the reason why it cannot be looked at.

    Args:
        follow: whether links are followed; otherwise a link is `a link`.
    """
    try:
        mode = (os.stat if follow else os.lstat)(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError as error:  # a zero byte, half a surrogate
        return f"no path ({error})"
    return next((name for test, name in _KINDS if test(mode)), "something of an unknown kind")


def json_object(path: str | os.PathLike[str], *, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """The JSON object in a regular file; raises `ValueError` or `OSError` whatever is wrong with it."""
    if (what := what_is(path)) != "a file":
        raise ValueError(f"it is {what}")
    if Path(path).stat().st_size > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__}, not an object")
    return content
