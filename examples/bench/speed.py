"""One call of the whole package on ResNet-50's shapes: seconds by stage and peak memory, as one line of JSON.

    python examples/bench/speed.py [--no-probe] [--trellis] [--repeat N]

A process of its own, so that the peak is that of the call; `datafree.py --only resnet50-speed` runs it. The weights are
random: nothing here depends on their values. Of several calls the last one is told, with the seconds of all.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
import zoo

import opq

BITS = 3.0


def measure(*, probe: bool, trellis: bool, repeat: int) -> dict[str, object]:
    """What `opq.compress(model, bits=3)`, saving and loading take."""
    torch.manual_seed(0)
    model = zoo.resnet50()
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
        path = Path(folder) / "resnet50.opq.safetensors"
        times = [time.perf_counter()]
        result.save(path)
        times.append(time.perf_counter())
        opq.load_state_dict(path)
        times.append(time.perf_counter())
    row: dict[str, object] = {"method": "rd", "budget": BITS, "file_bytes": result.bytes}
    row |= {"bits": 8 * result.bytes / parameters, "ratio": 4 * parameters / result.bytes}
    row |= {"probe": probe, "trellis": trellis, "threads": torch.get_num_threads(), "peak_bytes": reached}
    row |= {"stages": {name: round(spent, 3) for name, spent in result.seconds.items()}}
    row |= {"save": round(times[1] - times[0], 3), "load": round(times[2] - times[1], 3)}
    return row | {"seconds": seconds, "cpu_seconds": cpu, "every": every}


def peak() -> int:
    """Bytes of the largest resident set so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--no-probe", dest="probe", action="store_false", help="weights alone")
    asked.add_argument("--trellis", action="store_true")
    asked.add_argument("--repeat", type=int, default=1, help="calls in all")
    print(json.dumps(measure(**vars(asked.parse_args()))))
