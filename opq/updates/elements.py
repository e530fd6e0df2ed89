"""Reads the elements of an old segment as integers, as the reference for a new segment."""

from __future__ import annotations

import dataclasses

import numpy as np

from opq.updates import patterns
from opq.updates.anatomy import Segment
from opq.updates.checkpoint import Part
from opq.updates.patterns import Element, Patterns

Old = tuple[Part, Segment]
"""An old segment, with the file that holds it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What the elements of a new segment are compared with."""

    kind: Element
    dtype: str
    """The type of the new segment."""
    old: Old | None = None
    """The old segment; with None, elements are compared with zeros."""

    def __call__(self, start: int, stop: int) -> Patterns:
        """The reference of the elements from `start` to `stop`; 0 after the end of the old segment."""
        found = np.zeros(stop - start, self.kind.dtype)
        if self.old is None:
            return found
        part, segment = self.old
        width = patterns.element(segment.dtype).width
        size = segment.length // width
        a, b = min(start, size), min(stop, size)
        data = part.file.read(segment.start + a * width, segment.start + b * width)
        if segment.dtype != self.dtype:
            data = patterns.cast(data, segment.dtype, self.dtype)
        found[: b - a] = patterns.in_order(data, self.kind)
        return found


def comparable(new: Segment, old: Segment) -> bool:
    """Whether two segments hold elements of the same type, and not payloads of codes."""
    return new.dtype == old.dtype and new.codes is None and old.codes is None


def castable(new: Segment, old: Segment) -> bool:
    """Whether the elements of an old segment can be cast to the type of a new one."""
    return patterns.castable(old.dtype, new.dtype)
