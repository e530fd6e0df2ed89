"""One call of the whole package on ResNet-50's shapes: prints seconds by part and peak memory as one line of JSON.

A process of its own, so that the peak is that of the call; `datafree.py --only resnet50-speed` runs it. The weights are
random: nothing here depends on their values.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import zoo

from opq.base.arrays import Codes
from opq.compression.alpha import weighed
from opq.compression.coders import CodesByName, DataFreeCoder, probe_source
from opq.compression.fit import Fit
from opq.compression.options import Options
from opq.compression.problem import Problem, gather
from opq.compression.roles import assign
from opq.plan import Plan, TensorPlan
from opq.sources import open_source

BITS = 3.0


class Clock:
    """Seconds on the wall by part; of parts within parts, to the inner one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._parts: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._count()
        self._parts.append(name)
        try:
            yield
        finally:
            self._count()
            self._parts.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._parts:
            self.seconds[self._parts[-1]] = self.seconds.get(self._parts[-1], 0.0) + now - self._since
        self._since = now


@dataclasses.dataclass(frozen=True, eq=False)
class TimedCoder(DataFreeCoder):
    """Books its work."""

    clock: Clock = dataclasses.field(default_factory=Clock)

    def codes(self, tensors: Sequence[TensorPlan]) -> Iterator[tuple[str, Codes]]:
        with self.clock.part("feedback"):
            return iter(list(super().codes(tensors)))

    def kept(self, plan: Plan, codes: CodesByName) -> dict[str, torch.Tensor]:
        with self.clock.part("renorm"):
            return super().kept(plan, codes)


def measure() -> dict[str, object]:
    """What `opq.compress(model, bits=3)` does, part by part."""
    torch.manual_seed(0)
    model = zoo.resnet50()
    parameters = sum(p.numel() for p in model.parameters())
    before, cpu, start, clock = peak(), time.process_time(), time.perf_counter(), Clock()
    source, options = open_source(model), Options(bits=BITS)
    with clock.part("solve and code"):
        roles = assign(source.specs)
        stats = gather(source, roles)
        problem = Problem.of(options, roles, stats=stats, sensitivities=dict.fromkeys(stats, 1.0))
        with clock.part("probe"):
            probe = probe_source(source, options)
            assert probe is not None
        with clock.part("moments"):
            _ = probe.moments.dense
        coder = TimedCoder(source, probe, clock=clock)
        with clock.part("feedback"):
            problem, coder = weighed(coder, problem, {})
        result = Fit(source, problem, coder, options.progress).run()
    row: dict[str, object] = {"method": "rd", "budget": BITS, "file_bytes": result.bytes}
    row |= {"bits": 8 * result.bytes / parameters, "ratio": 4 * parameters / result.bytes}
    row |= {"samples": probe.batch.samples, "threads": torch.get_num_threads(), "peak_bytes": peak() - before}
    row |= {name: seconds for name, seconds in clock.seconds.items() if name != "solve and code"}
    return row | {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}


def peak() -> int:
    """Bytes of the largest resident set so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(measure()))
