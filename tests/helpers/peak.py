"""Peak memory of decoding one tensor, in a process of its own.

python tests/helpers/peak.py FILE NAME      prints bytes that the process grew by, beyond the tensor's own, at the peak
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path


def grown(path: Path, name: str) -> int:
    """Bytes beside the tensor at the peak of decoding it, in a new process with one thread."""
    done = subprocess.run([sys.executable, __file__, str(path), name], capture_output=True, text=True, check=True)
    return int(done.stdout)


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) << 10


def main() -> None:
    import torch

    from opq.file.reader import Reader

    torch.set_num_threads(1)
    path, name = sys.argv[1:]
    with Reader(path, max_expansion=float("inf")) as reader:
        reader.tensor("warm")  # imports, tables, the mapped file
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        tensor = reader.tensor(name)
        print(_status("VmHWM") - before - tensor.nbytes)


if __name__ == "__main__":
    main()
