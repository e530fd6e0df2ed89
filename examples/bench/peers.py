"""Other tools, each in a virtual environment of its own, measured in the same run. They are never dependencies.

`nncodec(arrays, qp=...)`, `hqq(arrays, bits=...)` and `zipnn(data, dtype=...)` give a `Coded`; `available` says
whether the environment could be made.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CACHE = Path(__file__).parent / "cache"
ENVIRONMENTS = {
    "nncodec": [
        "numpy<2 torch==2.13.0 pybind11 setuptools wheel scikit-learn tqdm h5py pandas click opencv-python-headless "
        "ptflops torchmetrics pillow",
        "--no-deps torchvision==0.28.0",
        "--no-deps --no-build-isolation nncodec==2.1.3",
    ],
    "hqq": [
        "numpy torch==2.13.0 transformers accelerate einops termcolor tqdm",
        "--no-deps hqq==0.2.8.post1",
    ],
    "zipnn": ["numpy torch==2.13.0 zstandard safetensors", "--no-deps zipnn==0.5.4"],
}

NNCODEC = """
import json, sys, time, tempfile
import numpy as np, torch
real = torch.library.register_fake
def register_fake(op, *a, **k):
    return (lambda f: f) if isinstance(op, str) and op.startswith("torchvision::") else real(op, *a, **k)
torch.library.register_fake = register_fake
import torchvision
torch.library.register_fake = real
from nncodec import nn
given, taken, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
arrays = {k: np.asarray(v, dtype=np.float32) for k, v in np.load(given).items()}
with tempfile.TemporaryDirectory() as folder:
    start, busy = time.perf_counter(), time.process_time()
    data = nn.encode(arrays, args={"qp": options["qp"], "use_dq": True, "results": folder, "verbose": False})
    encode, encode_cpu = time.perf_counter() - start, time.process_time() - busy
    start, busy = time.perf_counter(), time.process_time()
    back = nn.decode(data)
    decode, decode_cpu = time.perf_counter() - start, time.process_time() - busy
np.savez(taken, **{k: np.asarray(v) for k, v in back.items()})
print("\\n" + json.dumps({"bytes": len(data), "encode": encode, "decode": decode,
                         "encode_cpu": encode_cpu, "decode_cpu": decode_cpu}))
"""

HQQ = """
import json, sys, time
import numpy as np, torch
from hqq.core.quantize import Quantizer
given, taken, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
bits, group = options["bits"], options["group"]
out, size, start = {}, 0.0, time.perf_counter()
for name, w in np.load(given).items():
    w = torch.from_numpy(w).float()
    codes, meta = Quantizer.quantize(w, nbits=bits, group_size=group, channel_wise=True, optimize=True,
                                     round_zero=False, axis=1, device="cpu", compute_dtype=torch.float32)
    out[name] = Quantizer.dequantize(codes, meta).numpy()
    size += w.numel() * (bits + 32 / group) / 8
encode = time.perf_counter() - start
np.savez(taken, **out)
print("\\n" + json.dumps({"bytes": round(size), "encode": encode, "decode": 0.0}))
"""

ZIPNN = """
import json, sys, time
from pathlib import Path
from zipnn import ZipNN
data, kind = Path(sys.argv[1]).read_bytes(), sys.argv[2]
given, taken = (ZipNN(input_format="byte", bytearray_dtype=kind, threads=1) for _ in range(2))
own = bytes(bytearray(data))  # it writes into what it is given
start = time.perf_counter()
coded = given.compress(own)
encode = time.perf_counter() - start
start = time.perf_counter()
same = bytes(taken.decompress(coded)) == data
decode = time.perf_counter() - start
assert same
print("\\n" + json.dumps({"bytes": len(coded), "encode": encode, "decode": decode}))
"""


@dataclasses.dataclass(frozen=True)
class Coded:
    """What another tool made of some arrays."""

    bytes: int
    arrays: Mapping[str, np.ndarray]
    encode: float
    """Seconds."""
    decode: float
    """Seconds."""
    encode_cpu: float = 0.0
    """Seconds of the processor, where they are measured."""
    decode_cpu: float = 0.0
    """The same of decoding."""


def environment(name: str) -> Path | None:
    """The interpreter of a peer's virtual environment, made at the first call; None where it cannot be installed."""
    folder = CACHE / f"venv-{name}"
    python, done, failed = folder / "bin" / "python", folder / "done", folder / "failed"
    if done.exists():
        return python
    if failed.exists():
        return None
    CACHE.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for step in ENVIRONMENTS[name]:
        command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *step.split()]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            failed.write_text(found.stderr)
            print(f"{name} cannot be installed here (see {failed})", file=sys.stderr)
            return None
    done.touch()
    return python


def available(name: str) -> bool:
    """Whether a peer can be run here."""
    return environment(name) is not None


def nncodec(arrays: Mapping[str, np.ndarray], *, qp: int) -> Coded:
    """NNCodec 2 (ISO/IEC 15938-17) with dependent quantization. Needs `available("nncodec")`."""
    return _run("nncodec", NNCODEC, arrays, {"qp": qp})


def nncodec_near(
    arrays: Mapping[str, np.ndarray], bits: float, parameters: int, tried: dict[int, Coded] | None = None
) -> tuple[int, Coded]:
    """NNCodec 2 at the quantization parameter, of three tried, whose size is the nearest to so many bits a parameter.

    Four steps of the parameter are about a bit.

    Args:
        tried: what was made of these arrays before, by the parameter; it is added to.
    """
    tried, qp = {} if tried is None else tried, -26
    for _ in range(3):
        if qp not in tried:
            tried[qp] = nncodec(arrays, qp=qp)
        qp = min(-8, max(-40, qp + round(4 * (8 * tried[qp].bytes / parameters - bits))))
    best = min(tried, key=lambda q: abs(8 * tried[q].bytes / parameters - bits))
    return best, tried[best]


def hqq(arrays: Mapping[str, np.ndarray], *, bits: int, group: int = 64) -> Coded:
    """HQQ on two-dimensional arrays; its cost is `bits + 32 / group` bits a weight. Needs `available("hqq")`."""
    return _run("hqq", HQQ, arrays, {"bits": bits, "group": group})


def zipnn(data: bytes, *, dtype: str) -> Coded:
    """ZipNN on the bytes of floats, `float32`, `bfloat16` or `float16`. Needs `available("zipnn")`."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given"
        given.write_bytes(data)
        command = [str(environment("zipnn")), "-c", ZIPNN, str(given), dtype]
        ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"zipnn failed:\n{ran.stderr[-2000:]}")
    figures = json.loads(ran.stdout.strip().splitlines()[-1])
    return Coded(figures["bytes"], {}, figures["encode"], figures["decode"])


def _run(name: str, program: str, arrays: Mapping[str, np.ndarray], options: Mapping[str, int]) -> Coded:
    python = environment(name)
    if python is None:
        raise RuntimeError(f"{name} is not available")
    with tempfile.TemporaryDirectory() as folder:
        given, taken = Path(folder) / "given.npz", Path(folder) / "taken.npz"
        np.savez(given, **arrays)
        command = [str(python), "-c", program, str(given), str(taken), json.dumps(dict(options))]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"{name} failed:\n{ran.stderr[-2000:]}")
        figures = json.loads(ran.stdout.strip().splitlines()[-1])
        with np.load(taken) as back:
            return Coded(arrays=dict(back), **figures)
