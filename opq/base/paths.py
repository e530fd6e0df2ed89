"""What stands at a path: looked at before it is opened, so that no pipe blocks and no device runs for ever."""

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
"""Bytes of a configuration or an index: no model's is near it."""


def what_is(path: str | os.PathLike[str], *, follow: bool = True) -> str:
    """`a file`, `a folder`, `nothing`, or in words what else: `a pipe`, `a device`, or why it cannot be looked at.

    Args:
        follow: look at what links lead to; else a link is `a link`.
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
    """The JSON object in a regular file; `ValueError` or `OSError` where there is none, whatever is wrong with it."""
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
