"""What a training step costs with the compression module attached, in time and in memory; a table of finetune.py.

In turns in one process: the dense network, the module by torch's own operations and by the compiled kernel (which is
built first, where there is a compiler), the product with the mask alone, and dense and attached under torch.compile.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zoo
from torch import Tensor, nn

import opq
from opq.training import kernel
from opq.training.fixed_grid import FixedGrid
from opq.training.objective import Objective

STEPS = (("lenet-300-100", 128), ("lenet-300-100", 256), ("lenet-300-100", 1024), ("lenet-5", 128), ("resnet-20", 128),
         ("minilm", 8), ("minilm", 32))  # fmt: skip
COLUMNS = ("model", "method", "metric", "batch", "step_ms_dense", "step_ms", "top1", "native", "least", "compiled",
           "memory_mb_dense", "memory_mb", "memory_mb_native")  # fmt: skip
TITLE = "A training step, attached over dense: by torch's operations (top1), by the compiled kernel (native)"
REPEATS = {"resnet-20": 9, "minilm": 15}
"""How often each way is timed; the small networks 200 times."""
TOKENS = 64
"""Of a sentence."""


def step_row(name: str, batch: int) -> dict[str, Any]:
    """Median time of a training step, each way in turns, and the peak memory of a process of each."""
    ways = ["dense", "attached", "least"]
    if shutil.which("g++"):
        kernel.build()
        ways += ["native", "dense compiled", "attached compiled"]
    steps = {way: step_function(name, batch, way) for way in ways}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(REPEATS.get(name, 200)):
        for way, step in steps.items():
            start = time.perf_counter()
            step()
            times[way].append(time.perf_counter() - start)
    ms = {way: 1e3 * statistics.median(seen) for way, seen in times.items()}
    memory = {way: peak_memory(name, batch, way) for way in ("dense", "attached", "native") if way in ways}

    def over_dense(way: str, dense: str = "dense") -> float | None:
        return ms[way] / ms[dense] if way in ms else None

    return {
        "model": name, "method": "rd", "metric": "step time over dense step time", "batch": batch,
        "step_ms_dense": ms["dense"], "step_ms": ms["attached"], "step_ms_native": ms.get("native"),
        "top1_dense": 1.0, "top1": over_dense("attached"), "native": over_dense("native"),
        "least": over_dense("least"), "compiled": over_dense("attached compiled", "dense compiled"),
        "memory_mb_dense": memory["dense"], "memory_mb": memory["attached"], "memory_mb_native": memory.get("native"),
        "file_bytes": None, "ratio": None, "bits": None, "seconds": sum(map(sum, times.values())), "device": "cpu",
    }  # fmt: skip


def step_function(name: str, batch: int, way: str) -> Callable[[], None]:
    """One training step of the network on random inputs: forward, backward, Adam.

    Args:
        way: "dense", "attached" (torch's operations), "native" (the compiled kernel), or "least": what torch's
            operations under a fixed mask cannot do without, weights and gradients times the mask; the first two also
            " compiled", by torch.compile.
    """
    torch.manual_seed(0)
    model, x, y, loss = _sentences(batch) if name == "minilm" else _images(name, batch)
    if not way.startswith("dense"):
        opq.attach(model, opq.solve(model, bits=1, probe=False), native=way == "native")
    for grid in (m for m in model.modules() if isinstance(m, FixedGrid)) if way == "least" else ():
        grid.forward = lambda w, m=grid.mask: w * m  # type: ignore[method-assign]
    optimizer, objective = torch.optim.Adam(model.parameters(), 1e-6, fused=True), Objective(loss)
    forward = torch.compile(model) if way.endswith("compiled") else model

    def step() -> None:
        value = objective(forward, x, y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def _images(name: str, batch: int) -> tuple[nn.Module, Any, Tensor, Any]:
    model = {"lenet-300-100": zoo.LeNet300, "lenet-5": zoo.LeNet5, "resnet-20": zoo.ResNet20}[name]().train()
    return model, torch.randn(batch, *model.input_hint.image_size), torch.randint(10, (batch,)), "cross_entropy"


def _sentences(batch: int) -> tuple[nn.Module, Any, Tensor, Any]:
    """The sentence transformer on random tokens, its hidden states drawn to zero."""
    model, _ = zoo.minilm()
    x = {"input_ids": torch.randint(1000, 30000, (batch, TOKENS))}
    return model.train(), x, torch.zeros(batch), lambda out, _: out.last_hidden_state.square().mean()


def peak_memory(name: str, batch: int, way: str) -> float:
    """Peak resident memory in MB of a process that trains a few steps."""
    run = subprocess.run([sys.executable, __file__, name, str(batch), way], check=True, capture_output=True, text=True)
    return float(run.stdout)


if __name__ == "__main__":  # what the process of `peak_memory` does
    which, size, how = sys.argv[1:]
    once = step_function(which, int(size), how)
    for _ in range(5):
        once()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's, whose pages fork shares
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
