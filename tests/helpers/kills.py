"""kill -9 at random moments of saving, of compressing a folder and of fine-tuning; what is found on the disk then.

    OMP_NUM_THREADS=1 python tests/helpers/kills.py --kills 200 --seed 0

prints one JSON object. The victims are forks of this process, so that they are at work at once. A fork of a process
with threads may wait for ever for what those held: so this process has none, and looks before every fork.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stream_helpers import checkpoint
from training_helpers import learnable_batches, mlp, plan_of

import opq
from opq.errors import CorruptFileError
from opq.training import checkpoint as checkpoints

PATIENCE = 300.0
"""Seconds after which work that should end by itself counts as stalled. It takes less than one."""
Work = Callable[[], object]
Files = dict[str, bytes]


def killed(work: Work, after: float | None = None) -> bool:
    """Runs the work in a fork and kills it after so many seconds; whether it was still at work.

    Raises:
        RuntimeError: the work failed by itself or stalled, or this process has threads.
    """
    _alone()
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    deadline, ended = time.monotonic() + (PATIENCE if after is None else after), 0
    while not ended and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.002))
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the work failed by itself")
    if after is None and os.WIFSIGNALED(status):
        raise RuntimeError("the work stalled")
    return os.WIFSIGNALED(status)


def _alone() -> None:
    """Waits until the system has done with threads that have ended; raises `RuntimeError` where others are left."""
    deadline = time.monotonic() + 10
    while (threads := len(os.listdir("/proc/self/task"))) > 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{threads} threads in a process that forks; set OMP_NUM_THREADS=1")
        time.sleep(0.001)


def seconds(work: Work) -> float:
    """Of the work, done to its end in a fork."""
    started = time.monotonic()
    killed(work)
    return time.monotonic() - started


def saving(kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Two files of one name in turn: afterwards it is one of them, whole."""
    rows = np.random.default_rng(0).laplace(size=(160, 200))
    state = {"w": torch.from_numpy(rows).float(), "b": torch.ones(160)}
    results = [opq.compress(state, bits=bits) for bits in (3, 5)]
    files = {b"".join(result.packed.parts): name for result, name in zip(results, ("old", "new"), strict=True)}
    path = folder / "m.opq.safetensors"

    def work() -> None:
        while True:
            for result in reversed(results):
                result.save(path)

    takes, found = seconds(lambda: results[0].save(path)), Counter[str]()
    for _ in range(kills):
        assert killed(work, rng.uniform(0, 3 * takes))
        found[files.get(path.read_bytes(), "other")] += 1
    left = len(list(folder.glob(".*.part")))
    return {
        "kills": kills,
        "old file": found["old"],
        "new file": found["new"],
        "wrong": found["other"],
        "temporary files left": left,
    }


def again(
    kills: int, rng: random.Random, out: Path, work: Work, sound: Callable[[Files, Files], bool]
) -> dict[str, Any]:
    """Work that fills a folder, killed and taken up until it is through, over and over: the end is always the same.

    Args:
        sound: whether what a kill left is right, given that and what is there in the end.
    """
    work()
    whole = visible(out)
    shutil.rmtree(out)
    takes = seconds(work)
    shutil.rmtree(out)
    ends, wrong, states = 0, 0, Counter[tuple[str, ...]]()
    while sum(states.values()) < kills:
        ended = not killed(work, rng.uniform(0, takes))
        found = visible(out)
        wrong += not (found == whole if ended else sound(found, whole))
        if ended:
            shutil.rmtree(out)
            ends += 1
        else:
            states[tuple(found)] += 1
    return {"kills": kills, "runs that ended": ends, "states": len(states), "wrong": wrong}


def visible(folder: Path) -> Files:
    """What a folder holds under final names."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("[!.]*"))}


def streaming(kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Compression of a folder: what has its final name is whole, and a resumed run ends as an uninterrupted one."""
    source, out = checkpoint(folder / "model"), folder / "out"

    def work() -> None:
        if visible(out) and not (out / ".opq" / "state.json").exists():
            return  # killed when nothing was left to do
        assert opq.compress_folder(source, out, bits=4, shard_size=26_000).rounds == 1

    return again(kills, rng, out, work, lambda found, whole: found.items() <= whole.items())


def finetuning(kills: int, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Training with checkpoints: there is none or one that loads, and a resumed run ends as an uninterrupted one."""
    plan, batches, out = plan_of(mlp(norm=True)), learnable_batches(), folder / "out"
    point, file = out / "checkpoint.pt", out / "m.opq.safetensors"

    def work() -> None:
        out.mkdir(exist_ok=True)
        opq.finetune(mlp(norm=True), plan, batches, epochs=6, checkpoint=point, checkpoint_every=3).save(file)
        point.unlink()

    def sound(found: Files, whole: Files) -> bool:
        try:
            return (point.name not in found or bool(checkpoints.load(point, plan))) and (
                file.name not in found or found[file.name] == whole[file.name]
            )
        except CorruptFileError:
            return False

    return again(kills, rng, out, work, sound)


def run(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """The figures of so many kills: half of them of saving, a quarter of each other work."""
    rng, quarter = random.Random(seed), -(-kills // 4)
    found = {}
    for name, work, share in (
        ("save", saving, kills - 2 * quarter),
        ("folder", streaming, quarter),
        ("finetune", finetuning, quarter),
    ):
        (folder / name).mkdir()
        found[name] = work(share, rng, folder / name)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(chosen.kills, chosen.seed, Path(folder))))


if __name__ == "__main__":
    main()
