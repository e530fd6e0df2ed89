"""Functions in machine code, by numba. Imported only by the modules that `compiled.Loops` loads.

Each kernel is the twin of a numpy function, which its docstring names and which is the definition: for the same
arguments both give the same numbers, bit by bit. So sums of floats are taken in the same order, nothing is fused or
re-associated (no `fastmath`), and ties are broken in the same way. Numbers that other files define are passed as
arguments, except those that the format fixes for ever: numba's cache on disk notices changes of a kernel's own file,
but not of others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(*signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function now, or loads it from numba's cache; where there can be no cache, it is always compiled."""

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(list(signature), nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # no folder can be written to, or the disk is full
            return njit(list(signature), nogil=True)(function)

    return compiled


inner: Callable[[Callable[..., Any]], Any] = njit(nogil=True)
"""Marks a part of kernels, which is compiled with them."""
