"""What threads share (random states, warning filters, flags of torch, a model looked into), changed by one at a time.

Each context manager here puts back what it found; two that overlapped in time would put back each other's changes.
Who only reads what another may have changed for a while, such as the parameters of a model, takes a `turn` too.
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
    """One thread at a time in the blocks that calling it gives; free in the child of a fork, which has no other."""

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
    """The generators of torch, numpy and Python are as before behind the block; the calling thread has its turn.

    Args:
        devices: those of CUDA whose generators count too.
        seed: of torch's generator of the CPU in the block, where given.
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
    """Warnings of these kinds are not shown in the block; the calling thread has its turn."""
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
