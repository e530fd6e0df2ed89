"""How long `opq.compress(model, bits=3)` takes, with seconds by stage and peak memory.

    python examples/bench/speed.py [NAME ...]                        writes results/speed.json
    python examples/bench/speed.py --one NAME [--no-probe] [--no-trellis] [--repeat N]

The first form measures networks, by default `LISTED`, each in a process of its own, so that the peak is that of the
call, and the time that of the first call after a start. The second prints one network as a line of JSON; of several
calls the last one is told, with the seconds of all. `datafree.py --only resnet50-speed` runs it on ResNet-50's shapes
with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import results
import torch
import zoo

import opq

BITS = 3.0
NETWORKS: dict[str, Callable[[], Any]] = {
    "digits": opq.demo.load,
    "minilm": lambda: zoo.minilm()[0],
    "mobilenet-v1-0.75": zoo.mobilenet,
    "resnet50-speed": zoo.resnet50,
}
LISTED = ("digits", "minilm", "mobilenet-v1-0.75")


def measure(name: str, *, probe: bool, trellis: bool, repeat: int) -> dict[str, object]:
    """What `opq.compress(model, bits=3)`, saving and loading take."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    source = model if probe else dict(model.state_dict())
    parameters = sum(p.numel() for p in model.parameters())
    before, every = peak(), []
    for _ in range(repeat):
        cpu, start = time.process_time(), time.perf_counter()
        result = opq.compress(source, bits=BITS, trellis=trellis)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        every.append(round(seconds, 3))
    reached = peak() - before
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.opq.safetensors"
        times = [time.perf_counter()]
        result.save(path)
        times.append(time.perf_counter())
        opq.load_state_dict(path)
        times.append(time.perf_counter())
    method = "rd, trellis" if trellis else "rd"
    row: dict[str, object] = {"model": name, "method": method, "budget": BITS, "file_bytes": result.bytes}
    row |= {"bits": 8 * result.bytes / parameters, "ratio": 4 * parameters / result.bytes}
    row |= {"probe": probe, "trellis": trellis, "threads": torch.get_num_threads(), "peak_bytes": reached}
    row |= {"stages": {name: round(spent, 3) for name, spent in result.seconds.items()}}
    row |= {"save": round(times[1] - times[0], 3), "load": round(times[2] - times[1], 3)}
    return row | {"seconds": seconds, "cpu_seconds": cpu, "every": every}


def peak() -> int:
    """Bytes of the largest resident set so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def each(names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of some networks."""
    rows = []
    for name in names:
        program = [sys.executable, __file__, "--one", name]
        ran = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
        rows.append({**json.loads(ran.stdout.strip().splitlines()[-1]), "machine": machine()})
    return rows


def machine() -> str:
    """The processor, by its name where the system tells it, and its cores."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next((line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")), "")
    return f"{name or platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("names", nargs="*", help=f"networks of {', '.join(NETWORKS)}")
    asked.add_argument("--one", choices=list(NETWORKS), help="print this network alone")
    asked.add_argument("--no-probe", dest="probe", action="store_false", help="weights alone")
    asked.add_argument("--no-trellis", dest="trellis", action="store_false", help="plain grids")
    asked.add_argument("--repeat", type=int, default=1, help="calls in all")
    options = vars(asked.parse_args())
    names = options.pop("names") or LISTED
    if (name := options.pop("one")) is not None:
        print(json.dumps(measure(name, **options)))
        return
    rows = each(names)
    results.merge("speed", rows)
    results.show(rows, ("model", "bits", "threads", "seconds", "cpu_seconds", "peak_bytes"), machine())


if __name__ == "__main__":
    main()
