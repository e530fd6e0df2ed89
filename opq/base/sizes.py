"""Sizes as people write them: `500kB`, `2MB`, `1.5MiB`."""

from __future__ import annotations

import re

from opq.errors import BudgetError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
"""Prefixes of the byte, SI and IEC 80000-13, in lower case."""

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kKMG]i?)?B)?\s*")


def in_bytes(text: str) -> int | float:
    """The number of bytes that a size in words means: an int where it is whole, else a float.

    Raises:
        BudgetError: the text is not a size.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        remedy = "Write a number of bytes with or without a unit: kB, MB, GB, KiB, MiB, GiB."
        raise BudgetError("size= is not a size", got=repr(text), wanted="such as 2000000, 2MB or 1.5MiB", remedy=remedy)
    count = float(found[1]) * UNITS[(found[2] or "").lower()]
    return int(count) if count == int(count) else count
