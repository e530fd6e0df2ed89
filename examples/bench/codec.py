"""The codec: coded size against entropy, budget error, and speed, next to zstandard and NNCodec 2.

    python examples/bench/codec.py [--quick] [--no-peers] [--only NAME] [--again]

Weights alone (no probe), so that bytes and errors are those of the codec: on a trellis, as by default, and on plain
grids. Real networks where ../shared has them, and random Laplacian weights in the shapes of ResNet-50. NNCodec is
installed in a virtual environment of its own, at the first run (peers.py). Rates are of seconds on the wall;
`cpu_seconds` are of the processor. Prints a table and writes results/codec.json, after each row; rows that today's
code has measured are not measured again, unless `--again` asks for it.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import halves
import numpy as np
import peers
import results
import torch
import zoo

import opq
from opq.report.inspection import examine

State = Mapping[str, torch.Tensor]
COLUMNS = (
    "model",
    "method",
    "budget",
    "file_bytes",
    "ratio",
    "bits",
    "top1_dense",
    "top1",
    "metric",
    "budget_error",
    "over_entropy",
    "mse",
    "seconds",
    "cpu_seconds",
    "encode_rate",
    "decode_seconds",
    "decode_rate",
)
METHODS = {"rd, trellis": True, "rd": False}
"""How this package is called, and whether it then has a trellis."""
QP = -26
"""NNCodec's quantization parameter: about four bits a weight on the real networks."""
WITHIN = 1e-3
"""How far, in bits, the budget of a given error may be from the least one."""


def resnet50() -> dict[str, torch.Tensor]:
    """Random Laplacian weights in the shapes of ResNet-50: 25.6 M, most of them in 54 tensors."""
    g = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    inputs = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(blocks):
            p = f"layer{stage}.{block}"
            shapes[f"{p}.conv1.weight"] = (width, inputs, 1, 1)
            shapes[f"{p}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{p}.conv3.weight"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{p}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
            inputs = 4 * width
    shapes["fc.weight"], shapes["fc.bias"] = (1000, 2048), (1000,)
    return {
        name: torch.from_numpy(g.laplace(0, 1 / np.sqrt(2 * max(np.prod(s[1:]), 1)), s).astype(np.float32))
        for name, s in shapes.items()
    }


def mean_square(a: State, b: State) -> float:
    """Mean squared error over all floating-point weights of two or more dimensions."""
    names = [n for n, t in a.items() if t.is_floating_point() and t.dim() > 1]
    total = sum(float((a[n].double() - b[n].double()).square().sum()) for n in names)
    return total / sum(a[n].numel() for n in names)


def as_a_codec(state: State) -> dict[str, Any]:
    """Options by which every squared error counts alike."""
    weights = [n for n, w in state.items() if w.is_floating_point() and w.dim() > 1]
    return {"sensitivities": dict.fromkeys(weights[:1], 1.0)}


def ours(name: str, state: State, bits: float, score: Any, *, method: str = "rd") -> dict[str, Any]:
    """One row of this package."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.opq.safetensors"
        start, busy = time.perf_counter(), time.process_time()
        result = opq.compress(state, bits=bits, trellis=METHODS[method], **as_a_codec(state))
        result.save(path)
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
        start, busy = time.perf_counter(), time.process_time()
        back = opq.load_state_dict(path)
        decode, decode_cpu = time.perf_counter() - start, time.process_time() - busy
        found = examine(path)
    n = result.elements
    other = found.overhead_bytes - sum(t.coded_bytes for t in found.tensors if t.action == "keep")
    return {
        "model": name,
        "method": method,
        "budget": bits,
        "file_bytes": result.bytes,
        "ratio": 4 * n / result.bytes,
        "bits": result.bits,
        **score(back),
        "budget_error": result.bits / bits - 1,
        "over_entropy": (found.coded_bytes + other) / found.entropy_bytes - 1,
        "mse": mean_square(state, back),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "encode_rate": n / seconds / 1e6,
        "decode_seconds": decode,
        "decode_cpu_seconds": decode_cpu,
        "decode_rate": n / decode / 1e6,
    }


def zstandard(name: str, state: State, score: Any) -> dict[str, Any]:
    """int8 codes with one step a tensor, compressed by zstandard at its level 19."""
    import zstandard as zstd

    start = time.perf_counter()
    codes, steps = {}, {}
    for key, w in state.items():
        steps[key] = float(w.abs().max()) / 127 if w.is_floating_point() and w.dim() > 1 else 0.0
        codes[key] = torch.round(w / steps[key]).to(torch.int8) if steps[key] else w
    blob = b"".join(c.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for c in codes.values() if c.dim())
    data = zstd.ZstdCompressor(level=19).compress(blob)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    zstd.ZstdDecompressor().decompress(data)
    back = {key: c.float() * steps[key] if steps[key] else c for key, c in codes.items()}
    decode = time.perf_counter() - start
    n = sum(w.numel() for w in state.values() if w.is_floating_point())
    return {
        "model": name,
        "method": "int8+zstd",
        "file_bytes": len(data),
        "ratio": 4 * n / len(data),
        "bits": 8 * len(data) / n,
        **score(back),
        "mse": mean_square(state, back),
        "seconds": seconds,
        "encode_rate": n / seconds / 1e6,
        "decode_seconds": decode,
        "decode_rate": n / decode / 1e6,
    }


def nncodec(name: str, state: State, qp: int, score: Any) -> dict[str, Any]:
    """NNCodec 2 with dependent quantization."""
    arrays = {k: w.float().numpy() for k, w in state.items() if w.is_floating_point()}
    coded = peers.nncodec(arrays, qp=qp)
    back = {
        k: torch.from_numpy(np.asarray(coded.arrays[k])).reshape(w.shape) if k in arrays else w
        for k, w in state.items()
    }
    n = sum(a.size for a in arrays.values())
    return {
        "model": name,
        "method": f"nncodec qp={qp}",
        "file_bytes": coded.bytes,
        "ratio": 4 * n / coded.bytes,
        "bits": 8 * coded.bytes / n,
        **score(back),
        "mse": mean_square(state, back),
        "seconds": coded.encode,
        "cpu_seconds": coded.encode_cpu,
        "encode_rate": n / coded.encode / 1e6,
        "decode_seconds": coded.decode,
        "decode_cpu_seconds": coded.decode_cpu,
        "decode_rate": n / coded.decode / 1e6,
    }


def equal_error(name: str, state: State, other: Mapping[str, Any], score: Any, *, method: str) -> dict[str, Any]:
    """Our bytes at the error of another tool's row: of the least budget whose mean squared error is no larger."""
    low, high, bits = 0.2, 12.0, float(other["bits"])
    while high - low > WITHIN:
        made = opq.compress(state, bits=bits, trellis=METHODS[method], **as_a_codec(state)).state_dict()
        # bits that are missing: each one more halves the error of a weight
        over = 0.5 * math.log2(mean_square(state, made) / other["mse"])
        low, high = (bits, high) if over > 0 else (low, bits)
        bits += 1.1 * over + math.copysign(WITHIN / 3, over)  # the next one likely lies beyond
        bits = bits if low < bits < high else (low + high) / 2
    return ours(name, state, high, score, method=method) | {"method": f"{method}, at that error"}


def nothing(_: State) -> dict[str, Any]:
    """No score: random weights."""
    return {"top1_dense": None, "top1": None, "metric": None}


def top1(model: Any, images: Any) -> Any:
    """Scores a state dict by the model's accuracy in percent."""
    dense = halves.top1(model, images).fields("top1_dense")

    def score(state: State) -> dict[str, Any]:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(dict(state))
        found = halves.top1(model, images)
        model.load_state_dict(before)
        return {**dense, **found.fields(), "metric": "top1"}

    return score


def similarity() -> tuple[State, Any]:
    """MiniLM and its score: rank correlation of pairwise similarities with the dense model, times 100."""
    model, tokens = zoo.minilm()
    texts = zoo.sentences("evaluation")
    dense = zoo.embeddings(model, tokens, texts)
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def score(other: State) -> dict[str, Any]:
        model.load_state_dict(dict(other))
        found = halves.similarity(dense, zoo.embeddings(model, tokens, texts))
        model.load_state_dict(state)
        return {"top1_dense": 100.0, **found.fields(), "metric": "rank correlation x 100"}

    return state, score


NETWORKS = ("mobilenet-v1-0.75", "resnet-20", "minilm", "resnet-50 shapes")


def network(name: str, quick: bool) -> tuple[State, Any]:
    """The tensors of a network and its score."""
    if name == "minilm":
        return similarity()
    if name == "resnet-50 shapes":
        return resnet50(), nothing
    if name == "resnet-20":
        model, images = zoo.resnet20(), zoo.cifar10("test", 1000 if quick else None)
    else:
        model, images = zoo.mobilenet(), zoo.imagenet_like(100 if quick else None)
    return {k: v.detach().clone() for k, v in model.state_dict().items()}, top1(model, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller test sets")
    parser.add_argument("--no-peers", action="store_true", help="leave NNCodec out")
    parser.add_argument("--only", action="append", help="one network (may be repeated); rows of others stay")
    parser.add_argument("--again", action="store_true", help="measure rows of today's code anew, too")
    options = parser.parse_args()
    opq.compress({"warm": torch.randn(64, 64)}, bits=8)
    with_peers = not options.no_peers and peers.available("nncodec")
    for name in options.only or NETWORKS:
        if name not in NETWORKS:
            parser.error(f"--only takes {', '.join(NETWORKS)}")
        if name in ("mobilenet-v1-0.75", "resnet-20") and not zoo.SHARED.is_dir():
            print(f"{name}: skipped, needs {zoo.SHARED}")
            continue
        state, score = network(name, options.quick)
        rows = [] if options.again else held(name)
        for (method, bits), measure in tasks(name, state, score, rows, with_peers).items():
            if not any(row["method"] == method and bits in (None, row.get("budget")) for row in rows):
                rows.append(measure())
                results.merge("codec", rows)
        results.show(rows, COLUMNS, f"{name} ({torch.get_num_threads()} threads)")


def held(name: str) -> list[dict[str, Any]]:
    """The rows of a network that today's code has measured already."""
    today = results.digest("codec")
    return [row for row in results.held("codec") if row["model"] == name and row["stamp"].get("code") == today]


def tasks(
    name: str, state: State, score: Any, rows: Sequence[Mapping[str, Any]], with_peers: bool
) -> dict[tuple[str, float | None], Callable[[], dict[str, Any]]]:
    """What measures the rows of one network, by method and budget; those at another's error look for its row."""
    found: dict[tuple[str, float | None], Callable[[], dict[str, Any]]] = {}
    for method in METHODS:
        for bits in (4.0, 3.0):
            found[method, bits] = functools.partial(ours, name, state, bits, score, method=method)
    found["int8+zstd", None] = functools.partial(zstandard, name, state, score)
    if with_peers:
        found[f"nncodec qp={QP}", None] = functools.partial(nncodec, name, state, QP, score)
        for method in METHODS:
            found[f"{method}, at that error", None] = lambda method=method: equal_error(
                name, state, next(row for row in rows if row["method"] == f"nncodec qp={QP}"), score, method=method
            )
    return found


if __name__ == "__main__":
    main()
