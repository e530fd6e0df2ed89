"""How long each stage of a call takes: wall-clock seconds; where stages are nested, they count for the inner one.

The clock belongs to the call's own context (`contextvars`): functions deep inside need no argument, and calls in
several threads do not mix. Threads of a pool have no clock: their work counts for the stage that waits for them.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

_clock: contextvars.ContextVar[_Clock | None] = contextvars.ContextVar("opq_stages", default=None)


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """The seconds of every stage within the block, in the order in which they began; `other`, the last, is the rest."""
    clock = _Clock()
    token = _clock.set(clock)
    try:
        with stage("other"):
            yield clock.seconds
    finally:
        _clock.reset(token)
        clock.seconds["other"] = clock.seconds.pop("other")


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Counts the time of the block for a stage; does nothing outside of `timed`."""
    clock = _clock.get()
    if clock is None:
        yield
        return
    clock.turn([*clock.within, name])
    try:
        yield
    finally:
        clock.turn(clock.within[:-1])


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.within: list[str] = []
        self._since = time.perf_counter()

    def turn(self, within: list[str]) -> None:
        """Counts the time since the last call for the stage that was innermost, and goes on within these stages."""
        now = time.perf_counter()
        if self.within:
            self.seconds[self.within[-1]] += now - self._since
        self.within, self._since = within, now
        for name in within:
            self.seconds.setdefault(name, 0.0)
