"""Threads for work on arrays: numpy, torch and the entropy coder release the interpreter's lock as they compute."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch

from opq.base.process_state import Turn

S = TypeVar("S")
T = TypeVar("T")

IN_FLIGHT = 1 << 27
"""Weights that may be in work at once, and `PER_WORKER` more a thread: at most four bytes each."""
PER_WORKER = 1 << 24


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Threads with one torch thread each: what a piece of work computes does not depend on how many there are."""

    def __init__(self, executor: ThreadPoolExecutor, size: int):
        self._executor, self.size = executor, size

    def submit(self, work: Callable[[S], T], item: S) -> Future[T]:
        """One piece of work."""
        return self._executor.submit(work, item)

    def ordered(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """`map` in threads with a few items ahead, never more: the results in the order of the items."""
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(self._executor.submit(work, item))
                if len(waiting) > self.size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def weighed(self, work: Callable[[S], T], items: Iterable[S], weight: Callable[[S], int]) -> Iterator[T]:
        """`ordered`, with as many items ahead as weigh `IN_FLIGHT` and `PER_WORKER` a thread together."""
        limit = IN_FLIGHT + PER_WORKER * self.size
        waiting: deque[tuple[Future[T], int]] = deque()
        try:
            for item in items:
                while waiting and sum(w for _, w in waiting) + weight(item) > limit:
                    yield waiting.popleft()[0].result()
                waiting.append((self._executor.submit(work, item), weight(item)))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


@contextmanager
def pool(workers: int | None = None) -> Iterator[Pool]:
    """Threads for the block; the number of threads that torch computes with in others stays."""
    size, others = workers or cores(), getattr(_own, "others", None) or _number()
    with ThreadPoolExecutor(size, initializer=_single, initargs=(others,)) as executor:
        try:
            yield Pool(executor, size)
        finally:
            executor.shutdown(cancel_futures=True)


_own = threading.local()
"""In a thread of a pool: how many torch threads those outside of pools have."""


_setting = Turn()
"""Taken while the number set last is not that of threads to come."""


def _number() -> int:
    """How many torch threads the calling thread has; one that asks for the first time takes the number set last."""
    with _setting():
        return torch.get_num_threads()


def _single(others: int) -> None:
    """One torch thread for the calling thread. torch takes the number set last for threads to come: it is set anew."""
    _own.others = others
    with _setting():
        torch.get_num_threads()  # a thread that never asked would take the number set last when it first computes
        torch.set_num_threads(1)
        last = threading.Thread(target=torch.set_num_threads, args=(others,))
        last.start()
        last.join()


def torch_threads() -> AbstractContextManager[Pool]:
    """As many threads as torch computes with."""
    return pool(_number())


def give_back() -> None:
    """Hands freed memory back to the system, where the C library can (glibc).

    What one stage freed is else of no use to the threads of the next, which have heaps of their own.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
