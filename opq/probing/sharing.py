"""Which weights are multiplied by the very tensor that another one is, as those of queries, keys and values are."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn


class ApartError(Exception):
    """Weights that were multiplied by the same inputs no longer are."""


class Shared:
    """Which weights share their inputs in one pass, call by call."""

    def __init__(self, *, sharing: bool) -> None:
        """Nothing is seen yet; where not `sharing`, no weights ever share."""
        self._sharing = sharing
        self.like: dict[str, str] = {}
        """Of each weight whose inputs are those of others before it, the first of these."""
        self._calls: Counter[str] = Counter()
        self._last: tuple[str, torch.Tensor, int] | None = None
        """The weight that was used last, what it was multiplied by, and how often that had been written to."""

    def takes(self, name: str, module: nn.Module, x: torch.Tensor) -> bool:
        """Whether this call's inputs `x` are those of another weight's last call, as in all calls of both before.

        Raises:
            ApartError: they were the same before, and are not now.
        """
        if not (self._sharing and isinstance(module, nn.Linear)) or x.is_inference():  # which counts no writes
            self._last = None
        else:
            self._calls[name] += 1
            first, same, version = self._last or (name, None, 0)
            if first != name and same is x and version == x._version and self._calls[first] == self._calls[name]:
                if self._calls[name] == 1:
                    self.like[name] = first
                if self.like.get(name) == first:
                    return True
            self._last = name, x, x._version
        if name in self.like:
            raise ApartError
        return False

    def forget(self) -> None:
        """Releases the last inputs, where a micro-batch ends."""
        self._last = None

    def check(self) -> None:
        """Raises `ApartError` where a weight was used more often than one that shares its inputs."""
        self.forget()
        if any(self._calls[name] != self._calls[first] for name, first in self.like.items()):
            raise ApartError
