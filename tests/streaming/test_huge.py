"""Tensors of a thousand million weights and more, in bounded memory. Not part of the ordinary run: several minutes.

OPQ_HUGE=1 pytest tests/streaming/test_huge.py -n 0 -s
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from opq.base.dtypes import dtype_name

pytestmark = pytest.mark.skipif("OPQ_HUGE" not in os.environ, reason="takes minutes; set OPQ_HUGE=1")

RUN = r"""
import json, re, resource, sys, time
import numpy as np, torch
from opq.file.folder_reader import FolderReader
from opq.streaming import compress_folder
from opq.streaming.dense import pieces
from opq.base.pool import pool
source, out, size, name, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), "w", int(sys.argv[4])
start = time.perf_counter()
result = compress_folder(source, out, size=size, workers=workers)
packed = time.perf_counter() - start
total, held = 0, 0
with FolderReader(out) as reader, pool(workers) as threads:
    for data in (data for part in reader.parts() for data in pieces(part, part.plan[name], threads)):
        codes = np.frombuffer(data, np.uint8 if result.plan[name].dtype.startswith("F8") else np.uint16)
        held += int(np.count_nonzero(codes & (0x7F if codes.itemsize == 1 else 0x7FFF)))
        total += len(codes)
        last = data[-4096:]
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"bytes": result.bytes, "weights": total, "nonzero": held, "peak_MB": peak, "seconds": packed,
                  "cpu_s": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), "last": last.hex(),
                  "step": result.plan[name].step}))
"""
ISLAND = 1 << 21
"""Weights that are not zero, at the very start and at the very end."""


def sparse(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """One tensor of zeros between two islands, in a file with a hole; what the islands hold."""
    folder.mkdir()
    size, width = math.prod(shape), dtype.itemsize
    described = {"dtype": dtype_name(dtype), "shape": list(shape), "data_offsets": [0, size * width]}
    header = json.dumps({"w": described}).encode()
    header += b" " * (-len(header) % 8)
    island = (0.5 * torch.randn(ISLAND, generator=torch.Generator().manual_seed(0))).to(dtype)
    data = island.view(torch.uint8).numpy().tobytes()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + data)
        file.truncate(8 + len(header) + size * width)
        file.seek(-len(data), os.SEEK_END)
        file.write(data)
    return island


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((65_600, 32_768), torch.float8_e4m3fn), ((40_000, 25_000), torch.bfloat16)],
    ids=["more than 2^31 of float8", "10^9 of bfloat16"],
)
def test_a_huge_tensor(shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    island = sparse(tmp_path / "model", shape, dtype)
    program = [sys.executable, "-c", RUN, str(tmp_path / "model"), str(tmp_path / "out"), "4000000", "2"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    ran = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    print({key: value for key, value in found.items() if key != "last"})
    assert found["weights"] == math.prod(shape)
    assert found["bytes"] <= 4_000_000
    assert 0.5 * 2 * ISLAND < found["nonzero"] <= 2 * ISLAND
    assert found["peak_MB"] < 1500
    tail = np.frombuffer(bytes.fromhex(found["last"]), np.uint8).copy()
    back = torch.from_numpy(tail).view(dtype).float()
    assert float((back - island[-len(back) :].float()).abs().max()) <= 1.1 * found["step"]
