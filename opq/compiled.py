"""Where the hot loops come from: `opq.loops` in machine code where that pays, else the numpy beside each caller.

Both give the same numbers, so that nothing but time depends on which one runs. Compiling takes some seconds once for
each version of the package and lies on disk from then on, beside the package or in the user's folder of caches (numba's
own rules); loading what lies there takes about half a second. So little work is done by numpy.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType

LITTLE = 1.0
"""Seconds of numpy for which the compiler is not loaded."""

_NAME = f"{__package__}.loops"
_one = threading.Lock()


def prepare(seconds: float, progress: Callable[[str, int, int], None]) -> None:
    """Loads the loops before the work, and compiles them where they never were: a stage of its own.

    Args:
        seconds: about what numpy would take for all that is to come.
        progress: called with ("compile", steps done, steps).
    """
    if seconds < LITTLE or _NAME in sys.modules:
        return
    progress("compile", 0, 1)
    loops(seconds)
    progress("compile", 1, 1)


def loops(seconds: float) -> ModuleType | None:
    """The compiled loops; None where numpy is to do the work, since it is little or there is no compiler.

    Args:
        seconds: about what numpy would take. Loops that are loaded already are used for any work.
    """
    if seconds < LITTLE and _NAME not in sys.modules:
        return None
    with _one:  # numba compiles in one thread at a time anyway
        return _loaded()


@functools.cache
def _loaded() -> ModuleType | None:
    try:
        import numba

        return None if getattr(numba.config, "DISABLE_JIT", 0) else importlib.import_module(_NAME)
    except (ImportError, OSError):  # not installed, or not for this numpy or this processor
        return None
