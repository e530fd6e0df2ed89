"""Integers <-> bytes by pcodec: about 0.1 % above their entropy, and ten times as fast to decode as a stack.

A thin layer over pcodec's standalone format, without delta coding and with a bin for each value that is frequent.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from opq.errors import CorruptFileError

Small = npt.NDArray[np.integer]
"""int8 or int16."""

_LEVEL = 12
"""pcodec's compression level, the highest: up to 2^12 bins. Lower levels were no faster and lost up to 0.7 %, measured
when pages came in."""
_PAGE = 1 << 24
"""Values that share one set of frequencies: the most that pcodec's format allows."""


@functools.cache
def _settings() -> Any:
    from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec

    return ChunkConfig(
        compression_level=_LEVEL,
        mode_spec=ModeSpec.classic(),
        delta_spec=DeltaSpec.no_op(),
        paging_spec=PagingSpec.equal_pages_up_to(_PAGE),
        enable_8_bit=True,
    )


def encode(values: Small) -> bytes:
    """One-dimensional integers as bytes, which do not tell how many integers of which type they hold."""
    from pcodec import standalone

    data: bytes = standalone.simple_compress(np.ascontiguousarray(values), _settings())
    return data


def decode(data: bytes | memoryview, out: Small) -> None:
    """The inverse of `encode`, into `out`, whose length and type are those of what was encoded.

    Raises:
        CorruptFileError: the bytes are not those of so many integers of this type.
    """
    from pcodec import standalone

    try:
        done = standalone.simple_decompress_into(bytes(data), out)
    except (RuntimeError, TypeError) as error:
        raise CorruptFileError("coded integers are damaged", got=str(error)[:100]) from error
    if not done.finished or done.n_processed != len(out):
        raise CorruptFileError("coded integers are too many or too few", got=done.n_processed, wanted=len(out))
