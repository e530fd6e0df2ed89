"""What public calls share: unknown keywords are refused by name, and warnings point at the caller's line."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, ParamSpec, TypeVar

from opq.errors import OptionError

P = ParamSpec("P")
R = TypeVar("R")

PACKAGE = __name__.partition(".")[0]


def checked_names(call: Callable[P, R]) -> Callable[P, R]:
    """Decorates a call whose signature lists every option: any other keyword is an `OptionError`, not a `TypeError`."""
    return refusing((), why="", remedy="")(call)


def refusing(names: Collection[str], *, why: str, remedy: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """As `checked_names`, with a message of its own for options of a sister call that this call does not have.

    Such an option is allowed to be None or False, which ask for nothing.

    Args:
        names: the options of the sister call; those that this call has, too, are passed to it.
        why: the message after "NAME= ".
        remedy: what to do instead.
    """

    def decorate(call: Callable[P, R]) -> Callable[P, R]:
        known = [name for name, p in inspect.signature(call).parameters.items() if p.kind is p.KEYWORD_ONLY]
        listed = set(inspect.signature(call).parameters)

        @functools.wraps(call)
        def checked(*args: P.args, **options: P.kwargs) -> R:
            for name in [name for name in options if name not in listed]:
                value = options.pop(name)
                if name not in names:
                    raise unknown(name, known)
                if value is not None and value is not False:
                    raise OptionError(f"{name}= {why}", remedy=remedy)
            return call(*args, **options)

        return checked

    return decorate


def unknown(name: str, known: Sequence[str]) -> OptionError:
    """The error for an option that does not exist; names the nearest, or all."""
    near = difflib.get_close_matches(name, known, 1)
    remedy = f"Did you mean {near[0]}=?" if near else f"The options are {', '.join(known)}."
    return OptionError(f"unknown option {name!r}", remedy=remedy)


def warn(message: str, kind: type[Warning]) -> None:
    """Warns at the line outside this package that made the call, however deep inside the package this is called."""
    frame: Any = sys._getframe(1)
    level = 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, kind, stacklevel=level)
