"""By how much a process grows in a block of code: the peak beside what it held before, in bytes.

python -c "from growth import growth, settled; ..."   in a process of its own, where nothing else has grown it
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from opq.base.pool import give_back

REFS = Path("/proc/self/clear_refs")
"""Where the system lets a process begin its peak anew."""


def alone(code: str) -> list[int]:
    """The numbers that code prints in a process of its own, with one torch thread."""
    program = f"import torch\nfrom growth import growth\ntorch.set_num_threads(1)\n{textwrap.dedent(code)}"
    path = f"import sys\nsys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
    ran = subprocess.run([sys.executable, "-c", path + program], capture_output=True, text=True, check=True)
    return [int(line) for line in ran.stdout.split()]


def least(code: str, runs: int = 3) -> list[int]:
    """Each number at its least over several runs of `alone`.

    What the code holds is there in every run; now and then a freed array goes back to the system a moment later.
    """
    return [min(found) for found in zip(*(alone(code) for _ in range(runs)), strict=True)]


@contextlib.contextmanager
def growth() -> Iterator[None]:
    """Prints by how many bytes the process has grown at the peak of the block, and at its end."""
    gc.collect()
    give_back()
    REFS.write_text("5")
    before = _status("VmRSS")
    yield
    peak = _status("VmHWM")
    gc.collect()
    give_back()
    print(peak - before, _status("VmRSS") - before)


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10
