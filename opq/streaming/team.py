"""The processes that work on one folder. With a single process all of this is trivial."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import distributed

from opq.errors import RankError

_FOREVER = datetime.timedelta(days=30)
"""Ranks wait for each other as long as the slowest one works; one that dies is noticed by its closed connection. The 30
days are a choice, since the group needs some limit."""


class Team:
    """The ranks of a `torchrun`, or one process.

    They exchange bytes through their own gloo group, and do not use the caller's groups.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None):
        self.rank, self.size, self._group = rank, size, group

    @classmethod
    def join(cls) -> Team:
        """The team of an initialised process group, or of the environment that `torchrun` has set."""
        if not distributed.is_available():
            return cls()
        if not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            distributed.init_process_group("gloo", timeout=_FOREVER)
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return cls()
        group = distributed.new_group(backend="gloo", timeout=_FOREVER)
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    def each(self, work: Callable[[], bytes]) -> list[bytes]:
        """The results of `work` on all ranks, for every rank.

        Raises:
            RankError: another rank failed or disappeared. An error of this rank's own work is raised as it is.
        """
        if self.size == 1:
            return [work()]
        try:
            said, failed = b"+" + work(), None
        except Exception as error:
            said, failed = b"-" + str(error).encode(), error
        try:
            heard = self._gather(said)
        except RuntimeError as error:
            if failed is not None:
                raise failed from None
            raise RankError("another process is gone", got="its connection is closed") from error
        if failed is not None:
            raise failed
        for rank, words in enumerate(heard):
            if words[:1] != b"+":
                raise RankError(f"process {rank} failed", got=words[1:].decode(errors="replace").rstrip("."))
        return [words[1:] for words in heard]

    def first(self, work: Callable[[], bytes]) -> bytes:
        """The result of `work` on rank 0, for every rank; other ranks do not run it."""
        return self.each(work if self.rank == 0 else bytes)[0]

    def once(self, work: Callable[[], None]) -> None:
        """Rank 0 runs the work; the others wait until it is done."""

        def done() -> bytes:
            work()
            return b""

        self.first(done)

    def mine(self, weights: list[int]) -> list[int]:
        """The indices of this rank's items. The heaviest items are assigned first, each to the rank with the least so
        far."""
        loads = [0] * self.size
        mine = []
        for k in sorted(range(len(weights)), key=lambda k: (-weights[k], k)):
            rank = loads.index(min(loads))
            loads[rank] += weights[k] + 1
            mine += [k] if rank == self.rank else []
        return sorted(mine)

    def _gather(self, words: bytes) -> list[bytes]:
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(lengths, torch.tensor([len(words)]), group=self._group)
        longest = max(int(n) for n in lengths)
        padded = torch.from_numpy(np.frombuffer(words.ljust(longest, b"\0"), np.uint8).copy())
        heard = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        distributed.all_gather(heard, padded, group=self._group)
        return [bytes(h.numpy().tobytes()[: int(n)]) for h, n in zip(heard, lengths, strict=True)]
