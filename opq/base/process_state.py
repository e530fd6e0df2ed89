"""State that all threads of a process share, changed by one thread at a time.

This is about random states, warning filters, flags of torch, and models whose parameters are changed for a while. Each
context manager restores what it found; two that overlapped in time would restore each other's changes. Code that only
reads such state, for example the parameters of a model, takes a `turn` too.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch


class Turn:
    """A lock: calling it gives a block that one thread at a time may enter. It is free in a forked child process."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            yield


turn = Turn()


@contextlib.contextmanager
def same_random_state(devices: Sequence[torch.device] = (), *, seed: int | None = None) -> Iterator[None]:
    """Restores the random generators of torch, numpy and Python after the block; the calling thread has its turn.

    Args:
        devices: CUDA devices whose generators are restored too.
        seed: for torch's CPU generator within the block, if given.
    """
    with turn(), torch.random.fork_rng(devices=list(devices)):
        python, numpy = random.getstate(), np.random.get_state()
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextlib.contextmanager
def silenced(*kinds: type[Warning]) -> Iterator[None]:
    """Hides warnings of these kinds within the block; the calling thread has its turn."""
    with turn(), warnings.catch_warnings():
        for kind in kinds:
            warnings.simplefilter("ignore", kind)
        yield


@contextlib.contextmanager
def ordinary_arithmetic(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Neither autocast nor inference mode, and this default dtype, whatever is set around; the thread has its turn."""
    with turn(), contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.no_grad())
        for device in filter(torch.is_autocast_enabled, _AUTOCAST):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(dtype)
        yield


_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
