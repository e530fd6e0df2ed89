"""How long each stage takes, summed over threads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall-clock and processor seconds by stage.

    Stages of different threads overlap, so that their sum may exceed the elapsed time. On a busy machine the processor
    seconds are more meaningful.
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
