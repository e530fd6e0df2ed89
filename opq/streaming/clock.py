"""Where the time goes: seconds by stage, summed over threads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by stage, on the wall and of the processor.

    Stages of different threads overlap, so that their sum may exceed the time on the wall. On a machine with other
    work the processor's seconds are those that tell.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start, worked = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            spent, worked = time.perf_counter() - start, time.thread_time() - worked
            with self._lock:
                self.seconds[stage] += spent
                self.cpu[stage] += worked
