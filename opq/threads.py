"""Work on arrays shared out to as many threads as torch has, each with one torch thread of its own.

What one piece of work computes then does not depend on how many threads there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


class Threads:
    """A bounded number of threads."""

    def __init__(self, executor: ThreadPoolExecutor, size: int):
        self._executor, self._size = executor, size

    def ordered(self, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """`map` with a few items ahead, never more: the results in the order of the items."""
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(self._executor.submit(work, item))
                if len(waiting) > self._size:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def torch_threads() -> Iterator[Threads]:
    """As many threads as `torch.get_num_threads()`, for the block; that number is as before behind it."""
    size = torch.get_num_threads()
    with ThreadPoolExecutor(size, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        try:
            yield Threads(executor, size)
        finally:
            executor.shutdown(cancel_futures=True)
            torch.set_num_threads(size)
