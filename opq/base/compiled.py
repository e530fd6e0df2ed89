"""Where hot loops come from: a module in machine code where that pays, else the numpy beside each caller.

Both give the same numbers, so that nothing but time depends on which one runs. Compiling takes some seconds once for
each version of the package and lies on disk from then on, beside the package or in the user's folder of caches (numba's
own rules); loading what lies there takes about half a second. So little work is done by numpy.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from opq.base.extras import brief
from opq.base.process_state import Turn
from opq.base.progress import Progress
from opq.errors import OpqWarning

LITTLE = 1.0
"""Seconds of numpy for which the compiler is not loaded."""

_turn = Turn()
"""numba compiles in one thread at a time anyway."""


class Loops:
    """The loops of one module, whose import compiles them or takes them from the disk."""

    def __init__(self, module: str):
        self.module = module
        self._found: ModuleType | None = None
        self._missing = False

    def __call__(self, seconds: float) -> ModuleType | None:
        """The module; None where numpy is to do the work, since it is little or there is no compiler.

        Args:
            seconds: about what numpy would take. What it loaded already is used for any work.
        """
        if not (self._missing or self._found) and seconds >= LITTLE:
            with _turn():
                self._found = _compiled(self.module)
            self._missing = self._found is None
        return self._found

    def prepare(self, seconds: float, progress: Progress) -> None:
        """Loads the module before the work, as a stage of its own.

        Args:
            seconds: about what numpy would take for all that is to come.
            progress: called with ("compile", steps done, steps), where there is something to load.
        """
        if seconds < LITTLE or self._missing or self._found:
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
