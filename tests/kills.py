"""kill -9 at random moments of saving; what is found on the disk then.

    python tests/kills.py --kills 200 --seed 0

prints one JSON object. The victim is a fork of this process, so that it is at work within a millisecond.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import opq

PATIENCE = 3.0
"""Seconds after which a fork is killed that had no processor time, or waits for a lock held when it was made."""


def killed(work: Callable[[], object], after: float) -> bool:
    """Runs the work in a fork and kills it after so many seconds of its processor time; whether it was still at work.

    Raises:
        RuntimeError: the work failed by itself.
    """
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    clock = (~child << 3) | 2  # Linux's name for the processor time of another process
    ended, status, deadline = 0, 0, time.monotonic() + max(PATIENCE, after)
    while not ended and time.clock_gettime(clock) < after and time.monotonic() < deadline:
        time.sleep(0.0003)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the work failed by itself")
    return os.WIFSIGNALED(status)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the work, done in a fork."""
    before = sum(os.times()[2:4])
    assert not killed(work, 600)
    return sum(os.times()[2:4]) - before


def saving(kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Two files of one name in turn: afterwards it is one of them, whole."""
    rows = np.random.default_rng(0).laplace(size=(160, 200))
    state = {"w": torch.from_numpy(rows).float(), "b": torch.ones(160)}
    results = [opq.compress(state, bits=bits) for bits in (3, 5)]
    wholes = [b"".join(result.packed.parts) for result in results]
    path = folder / "m.opq.safetensors"
    path.write_bytes(wholes[0])

    def work() -> None:
        while True:
            for result in reversed(results):
                result.save(path)

    takes, found = seconds(lambda: results[0].save(path)), [0, 0]
    for _ in range(kills):
        assert killed(work, rng.uniform(0, 3 * takes))
        found[wholes.index(path.read_bytes())] += 1
    left = len(list(folder.glob(".*.part")))
    return {"kills": kills, "old file": found[0], "new file": found[1], "other": 0, "temporary files left": left}


def run(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """The figures of so many kills."""
    return {"save": saving(kills, random.Random(seed), folder)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(chosen.kills, chosen.seed, Path(folder))))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
