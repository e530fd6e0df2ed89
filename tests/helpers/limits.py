"""Constants of the file format made small, so that small tensors take the paths that large ones take.

These constants belong to version 1 of the format: no file says them, so no function has them as parameters. Every test
that needs smaller ones replaces them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opq.coding import entropy
from opq.file import reader


def replace(*, large: int, chunk: int, memory: int) -> None:
    """Replaces the constants for the rest of the process.

    Args:
        large: codes of the smallest tensor that is coded chunk by chunk (`LARGE`).
        chunk: codes of one chunk (`CHUNK`).
        memory: bytes that decoding any file may take, however small the file is (`SMALL`).
    """
    entropy.LARGE, entropy.CHUNK, reader.SMALL = large, chunk, memory


@contextmanager
def narrowed(
    *, large: int | None = None, chunk: int | None = None, memory: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """Replaces some of the constants while the block, or the decorated test, runs; gives (memory, large, chunk)."""
    before = entropy.LARGE, entropy.CHUNK, reader.SMALL
    wanted = [old if new is None else new for old, new in zip(before, (large, chunk, memory), strict=True)]
    try:
        replace(large=wanted[0], chunk=wanted[1], memory=wanted[2])
        yield wanted[2], wanted[0], wanted[1]
    finally:
        replace(large=before[0], chunk=before[1], memory=before[2])
