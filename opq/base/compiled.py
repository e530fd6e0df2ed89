"""Where hot loops come from: a module in machine code where that pays, else the numpy beside each caller.

Both give the same numbers, so that nothing but time depends on which one runs. Compiling takes some seconds once for
each version of the package and lies on disk from then on, beside the package or in the user's folder of caches (numba's
own rules); loading what lies there takes about half a second. So little work is done by numpy.
"""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from types import ModuleType

from opq.base.extras import brief
from opq.base.progress import Progress
from opq.errors import OpqWarning

LITTLE = 1.0
"""Seconds of numpy for which the compiler is not loaded."""

_one = threading.Lock()
"""numba compiles in one thread at a time anyway."""


class Loops:
    """The loops of one module, whose import compiles them or takes them from the disk."""

    def __init__(self, module: str):
        self.module = module
        self._missing = False

    def __call__(self, seconds: float) -> ModuleType | None:
        """The module; None where numpy is to do the work, since it is little or there is no compiler.

        Args:
            seconds: about what numpy would take. A module that is loaded already is used for any work.
        """
        if self._missing or (seconds < LITTLE and self.module not in sys.modules):
            return None
        with _one:
            found = _compiled(self.module)
        self._missing = found is None
        return found

    def prepare(self, seconds: float, progress: Progress) -> None:
        """Loads the module before the work, as a stage of its own.

        Args:
            seconds: about what numpy would take for all that is to come.
            progress: called with ("compile", steps done, steps), where there is something to load.
        """
        if seconds < LITTLE or self._missing or self.module in sys.modules:
            return
        progress("compile", 0, 1)
        self(seconds)
        progress("compile", 1, 1)


def _compiled(module: str) -> ModuleType | None:
    try:
        import numba
        from numba.core.errors import NumbaError
    except (ImportError, OSError):  # not installed, or not for this numpy or this processor
        return None
    if getattr(numba.config, "DISABLE_JIT", 0):
        return None
    try:
        return importlib.import_module(module)
    except NumbaError as error:
        fact = f"numba {numba.__version__} does not compile {module}, and numpy takes its place"
        warnings.warn(f"{fact}: {brief(error)}", OpqWarning, stacklevel=4)
        return None
