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
from types import ModuleType

LITTLE = 1 << 20
"""Weights to search or feed back for which the compiler is not loaded."""

_one = threading.Lock()


def loops(work: int) -> ModuleType | None:
    """The compiled loops; None where numpy is to do the work, since it is little or there is no compiler.

    Args:
        work: weights that the caller is about to go through. Loops that are loaded already are used for any number.
    """
    if work < LITTLE and "opq.loops" not in sys.modules:
        return None
    with _one:  # numba compiles in one thread at a time anyway
        return _loaded()


@functools.cache
def _loaded() -> ModuleType | None:
    try:
        import numba

        return None if numba.config.DISABLE_JIT else importlib.import_module("opq.loops")
    except (ImportError, OSError):  # not installed, or not for this numpy or this processor
        return None
