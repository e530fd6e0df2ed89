"""Peak memory of decoding one tensor of each of some files, in a process of its own.

python tests/helpers/peak.py NAME FILE...   prints bytes that a process grew by, beyond the tensor's own, at the peak
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path


def grown(paths: list[Path], name: str) -> list[int]:
    """Bytes beside the tensor at the peak of decoding it, of each file in a new process with one thread."""
    call = [sys.executable, __file__, name, *map(str, paths)]
    return [int(line) for line in subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()]


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10


def main() -> None:
    import torch

    import opq.file.reader  # noqa: F401  (once for all the processes that are forked from here)

    torch.set_num_threads(1)
    name, *paths = sys.argv[1:]
    for path in paths:
        if not (child := os.fork()):
            _measure(path, name)
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{path} could not be measured")


def _measure(path: str, name: str) -> None:
    from opq.file.reader import Reader

    with Reader(path, max_expansion=float("inf")) as reader:
        reader.tensor("warm")  # imports, tables, the mapped file
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        tensor = reader.tensor(name)
        print(_status("VmHWM") - before - tensor.nbytes)


if __name__ == "__main__":
    main()
