"""Hot loops in machine code where that pays, in numpy otherwise.

Both give the same numbers, so that only the time depends on which one runs. Compiling takes some seconds, once for each
version of the package. numba then keeps the machine code on disk, beside the package or in the user's cache folder, and
loading it takes about half a second. So small amounts of work are done by numpy.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from types import ModuleType

from opq.base.extras import brief
from opq.base.process_state import Turn
from opq.base.progress import Progress
from opq.errors import OpqWarning

LITTLE = 1.0
"""Seconds of work in numpy below which the machine code is not loaded. A choice: twice what loading takes."""

_turn = Turn()
"""One thread loads at a time; numba compiles in one thread at a time anyway."""


class Loops:
    """The loops of one module. Importing the module compiles them, or loads them from numba's cache on disk."""

    def __init__(self, module: str, *, little: float = LITTLE):
        self.module = module
        self.little = little
        self._found: ModuleType | None = None
        self._missing = False

    @property
    def is_open(self) -> bool:
        """Whether the module has neither been loaded nor been found missing."""
        return not (self._missing or self._found)

    def __call__(self, seconds: float) -> ModuleType | None:
        """The module; None where numpy should do the work, because it is little or because there is no compiler.

        Args:
            seconds: about how long numpy would take. A module that is already loaded is used for any amount of work.
        """
        if self.is_open and seconds >= self.little:
            with _turn():
                self._found = _compiled(self.module)
            self._missing = self._found is None
        return self._found


def prepare(work: Iterable[tuple[Loops, float]], progress: Progress) -> None:
    """Loads modules before the work, as a stage of its own.

    Args:
        work: modules, and about how long numpy would take for all the work that each has to come.
        progress: called with ("compile", modules done, modules) if there is something to load.
    """
    needed = [(loops, seconds) for loops, seconds in work if loops.is_open and seconds >= loops.little]
    for done, (loops, seconds) in enumerate(needed):
        progress("compile", done, len(needed))
        loops(seconds)
    if needed:
        progress("compile", len(needed), len(needed))


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
