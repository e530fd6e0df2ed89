"""Threads for work on arrays: numpy, torch and the entropy coder release the interpreter's lock while they compute."""

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
"""Weights that may be worked on at once, in addition to `PER_WORKER` for each thread. A choice: at four bytes each they
take 512 MiB, enough to keep the threads busy beside one large tensor."""
PER_WORKER = 1 << 24
"""Weights for each thread, 64 MiB. A choice that trades memory for threads that need not wait."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Threads, each of which computes with one torch thread, so that no result depends on how many there are."""

    def __init__(self, executor: ThreadPoolExecutor, size: int):
        self._executor, self.size = executor, size

    def submit(self, work: Callable[[S], T], item: S) -> Future[T]:
        """Starts `work(item)` in a thread."""
        return self._executor.submit(work, item)

    def ordered(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """`map` in threads: results in the order of the items, of which only a few are taken ahead."""
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
        """`ordered`, where the items ahead may together weigh `IN_FLIGHT`, and `PER_WORKER` more for each thread."""
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
    """Threads for the block; in other threads torch goes on computing with as many threads as before."""
    size, others = workers or cores(), getattr(_own, "others", None) or _number()
    with ThreadPoolExecutor(size, initializer=_single, initargs=(others,)) as executor:
        try:
            yield Pool(executor, size)
        finally:
            executor.shutdown(cancel_futures=True)


_own = threading.local()
"""In a thread of a pool, `others`: how many torch threads the threads outside of pools have."""


_setting = Turn()
"""Held while torch's number for new threads is temporarily another."""


def _number() -> int:
    """How many torch threads the calling thread has; a thread that asks for the first time is given the latest number
    that any thread has set."""
    with _setting():
        return torch.get_num_threads()


def _single(others: int) -> None:
    """Gives the calling thread one torch thread.

    torch hands the latest number set by any thread to new threads, so a short-lived thread sets it back to `others`.
    """
    _own.others = others
    with _setting():
        torch.get_num_threads()  # else this thread would be given the latest number when it first computes
        torch.set_num_threads(1)
        last = threading.Thread(target=torch.set_num_threads, args=(others,))
        last.start()
        last.join()


def torch_threads() -> AbstractContextManager[Pool]:
    """A pool of as many threads as torch computes with."""
    return pool(_number())


def give_back() -> None:
    """Returns freed memory to the system, where the C library can do so (glibc).

    Otherwise memory that one stage freed is of no use to the threads of the next one, which have their own heaps.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
