"""The command that prepares fine-tuning: `native`."""

from __future__ import annotations

import time

from opq.base.paths import what_is
from opq.cli.options import AsJson
from opq.cli.printing import err, say, say_json


def native(as_json: AsJson = False) -> None:
    """Compile the kernel that makes fine-tuning on a CPU faster. Once; needs a C++ compiler and opq[native]."""
    from opq.training import kernel

    start = time.perf_counter()
    if not as_json and what_is(kernel.path()) == "nothing":
        err.print("compiling, some fifteen seconds ...")
    path = kernel.build()
    if as_json:
        say_json({"path": str(path), "seconds": time.perf_counter() - start})
    else:
        say(f"{path}: opq.attach and opq.finetune use it from now on")
