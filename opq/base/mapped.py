"""Memory of its own, apart from the allocator's heap, for large arrays that stay while smaller ones come and go.

In one heap the two leave holes among each other that later arrays do not fit in: a process then holds half as much
again as its arrays take.
"""

from __future__ import annotations

import contextlib
import mmap

import torch


def mapped(size: int) -> torch.Tensor:
    """Zeros, (size,) uint8, that the system gets back as soon as no tensor looks at them."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # where the system has large pages, the first use is many times as fast
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
