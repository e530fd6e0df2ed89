"""Cost against size: a synthetic sharded checkpoint in the layout of a 4-billion-parameter decoder, at 3 bits.

    python examples/bench/scale.py [--sizes 1 2 4 8] [--folder /tmp/opq-scale] [--no-peers]

Makes the checkpoint (bf16, about 8 GB; deleted behind it), compresses its first 1, 2, 4 and 8 GB, each in a process of
its own so that peak memory is that run's alone, decodes the first, and times the tensors of ResNet-50 against NNCodec.
Prints tables; writes results/scale.json and results/scale.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import codec
import numpy as np
import peers
import results
import torch
from safetensors.torch import save_file

HIDDEN, INNER, QUERIES, KEYS, VOCABULARY = 2560, 9728, 4096, 1024, 151936
LAYERS_A_SHARD = 5
SHARDS = {1: 1, 2: 2, 4: 4, 8: 8}
"""Shards that make up so many GB: the first holds the embedding and one layer, the others five layers each."""
STAGES = ("read", "statistics", "curves", "solve", "sample", "quantize", "encode", "verify", "write")
COLUMNS = ("GB", "weights", "shards", "seconds", "cpu_s", "bits", "rounds", "peak_MB", *STAGES, "GB_s", "floor_s")

RUN = r"""
import json, re, resource, sys, time
from opq.scale import compress_folder
start = time.perf_counter()
result = compress_folder(sys.argv[1], sys.argv[2], bits=3)
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])  # ru_maxrss is inherited
print(json.dumps({"seconds": seconds, "peak_MB": peak / 1024, "bits": result.bits, "rounds": result.rounds,
                  "weights": result.elements, "bytes": result.bytes, "source_bytes": result.source_bytes,
                  "shards": len(result.shards), "predicted": result.plan.predicted_bytes,
                  "cpu_s": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), **result.cpu_seconds,
                  "wall": result.seconds}))
"""
DECODE = r"""
import json, re, sys, time
from opq.folder import FolderReader
from opq.scale.dense import pieces
from opq.scale.pool import pool
weights, start = 0, time.perf_counter()
with FolderReader(sys.argv[1]) as reader, pool(int(sys.argv[2]) or None) as threads:
    for part in reader.parts():
        for tensor in part.plan:
            for data in pieces(part, tensor, threads):
                weights += len(data) // 2
seconds = time.perf_counter() - start
print(json.dumps({"threads": threads.size, "weights": weights, "seconds": seconds, "cpu_s": time.process_time(),
                  "M_weights_s": weights / seconds / 1e6,
                  "peak_MB": int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024}))
"""


def shapes(layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one decoder layer."""
    p = f"model.layers.{layer}"
    return {
        f"{p}.self_attn.q_proj.weight": (QUERIES, HIDDEN), f"{p}.self_attn.k_proj.weight": (KEYS, HIDDEN),
        f"{p}.self_attn.v_proj.weight": (KEYS, HIDDEN), f"{p}.self_attn.o_proj.weight": (HIDDEN, QUERIES),
        f"{p}.mlp.gate_proj.weight": (INNER, HIDDEN), f"{p}.mlp.up_proj.weight": (INNER, HIDDEN),
        f"{p}.mlp.down_proj.weight": (HIDDEN, INNER), f"{p}.input_layernorm.weight": (HIDDEN,),
        f"{p}.post_attention_layernorm.weight": (HIDDEN,),
    }  # fmt: skip


def make(folder: Path, number: int) -> None:
    """Writes the first shards, those that lack: Laplacian weights, each row with a scale of its own."""
    g = np.random.default_rng(number)
    block = torch.from_numpy(g.laplace(0, 0.7, (1 << 22) + 12_345).astype(np.float32))

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            return (1 + 0.1 * block[: shape[0]]).to(torch.bfloat16)
        out = torch.empty(shape, dtype=torch.bfloat16)
        rows = max(1, len(block) // shape[1] // 2)
        for start in range(0, shape[0], rows):
            part, offset = out[start : start + rows], int(g.integers(0, len(block) // 2))
            scale = torch.from_numpy(0.02 * np.exp(0.2 * g.standard_normal((len(part), 1))).astype(np.float32))
            part.copy_(block[offset : offset + part.numel()].view(part.shape) * scale)
        return out

    for shard in range(len(list(folder.glob("part-*"))), number):
        every: dict[str, tuple[int, ...]] = {}
        if shard == 0:
            every |= {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,), **shapes(0)}
        else:
            for layer in range(1 + LAYERS_A_SHARD * (shard - 1), 1 + LAYERS_A_SHARD * shard):
                every |= shapes(layer)
        state = {name: tensor(shape) for name, shape in every.items()}
        save_file(state, folder / f"part-{shard:02}.safetensors", metadata={"format": "pt"})


def view(folder: Path, number: int) -> Path:
    """A folder of links to the first shards, named as a checkpoint of its own."""
    target = folder / f"first-{number}"
    target.mkdir()
    for shard in range(number):
        (target / f"model-{shard + 1:05}-of-{number:05}.safetensors").symlink_to(
            folder / f"part-{shard:02}.safetensors"
        )
    (target / "config.json").write_text(json.dumps({"architectures": ["Synthetic"]}))
    return target


def child(program: str, *arguments: object) -> dict[str, Any]:
    """What a program in a process of its own prints as its last line."""
    ran = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(ran.stderr[-3000:])
    return dict(json.loads(ran.stdout.strip().splitlines()[-1]))


def floor(folder: Path, size: int) -> float:
    """Seconds to read a checkpoint once and to write 3/16 of it: what no method can go below."""
    start, buffer, copied = time.perf_counter(), bytearray(1 << 24), 0
    with open(folder / "floor", "wb", buffering=0) as out:
        for path in sorted(folder.glob("part-*"))[:1]:
            with open(path, "rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    out.write(memoryview(buffer)[: got * 3 // 16])
                    copied += got
    (folder / "floor").unlink()
    return (time.perf_counter() - start) * size / copied


def compressed(folder: Path, sizes: list[int]) -> Iterator[dict[str, Any]]:
    """One row a size; the checkpoint grows between them."""
    for size in sizes:
        out = folder / f"out-{size}"
        make(folder, SHARDS[size])
        row = child(RUN, view(folder, SHARDS[size]), out)
        row |= {"GB": row["source_bytes"] / 1e9, "GB_s": row["source_bytes"] / 1e9 / row["seconds"]}
        row["floor_s"] = floor(folder, row["source_bytes"])
        yield row
        shutil.rmtree(out)


def resnet(with_peers: bool) -> list[dict[str, Any]]:
    """ResNet-50's tensors: ours at 3 bits, and NNCodec at about the same."""
    state = codec.resnet50()
    rows = [codec.ours("resnet-50 shapes", state, 3.0, codec.nothing)]
    if with_peers and peers.available("nncodec"):
        rows.append(codec.nncodec("resnet-50 shapes", state, -26, codec.nothing))
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds and peak memory against size, with the line through the last point and the origin."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    sizes = [row["GB"] for row in rows]
    left.plot(sizes, [row["cpu_s"] for row in rows], "o-", label="processor")
    left.plot(sizes, [row["seconds"] for row in rows], "s:", label="on the wall")
    left.plot([0, sizes[-1]], [0, rows[-1]["cpu_s"]], "--", color="gray", label="proportional")
    left.set(xlabel="checkpoint, GB", ylabel="seconds", ylim=(0, None))
    left.legend()
    right.plot(sizes, [row["peak_MB"] for row in rows], "o-")
    right.axhline(1500, ls="--", color="gray")
    right.set(xlabel="checkpoint, GB", ylabel="peak memory, MB", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], choices=list(SHARDS))
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "cache" / "scale")
    parser.add_argument("--no-peers", action="store_true", help="leave NNCodec out")
    options = parser.parse_args()
    sizes = sorted(options.sizes)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    decoded: list[dict[str, Any]] = []
    try:
        for row in compressed(options.folder, sizes):
            rows.append({"model": "decoder, bf16", **row})
            results.show(rows, COLUMNS, "compress at 3 bits (seconds on the wall; cpu_s and stages: of the processor)")
            if not decoded:
                out = options.folder / f"out-{sizes[0]}"
                decoded = [{"model": "decode", **child(DECODE, out, threads)} for threads in (1, 0)]
                results.show(decoded, ("threads", "weights", "seconds", "cpu_s", "M_weights_s", "peak_MB"), "decode")
            results.save("scale", [*rows, *decoded])
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    plot(rows, results.RESULTS / "scale.png")
    compared = resnet(not options.no_peers)
    results.show(compared, codec.COLUMNS, "ResNet-50's tensors")
    results.save("scale", [*rows, *decoded, *compared])


if __name__ == "__main__":
    main()
