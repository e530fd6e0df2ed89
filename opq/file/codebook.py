"""The codebook that precedes a payload's codes: K entries of d numbers, as float16 if that holds all exactly."""

from __future__ import annotations

import struct

import numpy as np

from opq.base.arrays import Floats32, Reals
from opq.base.format_v1 import LARGEST_CODE
from opq.errors import CorruptFileError, MismatchError

_HEAD = struct.Struct("<BHH")
"""Bytes of a number (2 or 4), entries K, numbers of an entry d."""


def put(entries: Floats32) -> bytes:
    """The bytes of entries (K, d); raises `MismatchError` if there are none, too many, or one that is not finite."""
    entries = np.ascontiguousarray(entries, np.float32)
    if not 0 < len(entries) <= LARGEST_CODE or not np.isfinite(entries).all():
        got = len(entries) if np.isfinite(entries).all() else "a number that is not finite"
        raise MismatchError("codebook", got=got, wanted="1 to 32767 finite entries")
    half = np.clip(entries, -65504, 65504).astype("<f2")
    short = bool((half.astype(np.float32) == entries).all())
    body = half.tobytes() if short else entries.astype("<f4").tobytes()
    return _HEAD.pack(2 if short else 4, *entries.shape) + body


def take(data: memoryview) -> tuple[Reals, int]:
    """The entries (K, d), and where the codes begin; raises `CorruptFileError` on bytes that `put` does not write."""
    if len(data) < _HEAD.size:
        raise CorruptFileError("a codebook is cut off", got=f"{len(data)} bytes", wanted=f"at least {_HEAD.size}")
    each, number, width = _HEAD.unpack_from(data)
    end = _HEAD.size + each * number * width
    if each not in (2, 4) or not number or not width or end > len(data):
        raise CorruptFileError("a codebook of impossible size", got=f"{number} x {width} of {each} bytes")
    entries = np.frombuffer(data[_HEAD.size : end], "<f2" if each == 2 else "<f4").reshape(number, width)
    if not np.isfinite(entries).all():
        raise CorruptFileError("a codebook holds a number that is not finite")
    return entries, end
