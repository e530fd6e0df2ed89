"""Memory that is free again, handed back."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Hands freed memory back to the system, where the C library can (glibc).

    What one stage freed is else of no use to the threads of the next, which have heaps of their own.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
