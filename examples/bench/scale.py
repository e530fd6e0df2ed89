"""Cost against size: a synthetic sharded checkpoint in the layout of a 4-billion-parameter decoder, at 3 bits.

    python examples/bench/scale.py [--sizes 1 2 4 8] [--probed 1] [--folder /tmp/opq-scale] [--no-peers] [--fresh]

Makes the checkpoint (bf16, about 8 GB; deleted behind it), compresses its first 1, 2, 4 and 8 GB by their weights
alone, and the sizes of `--probed` again with the probe and error feedback block by block, each in a process of its own
so that peak memory is that run's alone; decodes the first, with one thread and with all; and times the tensors of
ResNet-50 against NNCodec. Prints tables; writes results/scale.json and results/scale.png. Interrupted, the same command
goes on behind the last finished row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import codec
import numpy as np
import peers
import results
import torch
from safetensors.torch import save_file

HIDDEN, INNER, HEADS, KEYS, WIDTH, VOCABULARY = 2560, 9728, 32, 8, 128, 151936
LAYERS_A_SHARD = 5
SHARDS = {1: 1, 2: 2, 4: 4, 8: 8}
"""Shards that make up so many GB: the first holds the embedding and one layer, the others five layers each."""
STAGES = ("read", "statistics", "curves", "solve", "sample", "quantize", "encode", "verify", "write")
PROBED = ("probe", "moments", "feedback")
COLUMNS = ("model", "method", "bits", "seconds", "cpu_s", "rounds", "peak_MB", *STAGES, "memory_s", "disk_s")
BITS = 3.0

Row = dict[str, Any]

RUN = r"""
import json, re, resource, sys, time
if sys.argv[3] == "1":
    import zoo
    zoo.hide_broken_torchvision()
from opq.streaming import compress_folder
start = time.perf_counter()
probe = sys.argv[3] == "1"
result = compress_folder(sys.argv[1], sys.argv[2], bits=float(sys.argv[4]), probe=probe, trellis=False)
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])  # ru_maxrss is inherited
print(json.dumps({"budget": float(sys.argv[4]), "file_bytes": result.bytes, "ratio": result.ratio, "bits": result.bits,
                  "top1_dense": None, "top1": None, "metric": None, "seconds": seconds,
                  "encode_rate": result.elements / seconds / 1e6,
                  "cpu_s": sum(resource.getrusage(resource.RUSAGE_SELF)[:2]),
                  "peak_MB": peak / 1024, "rounds": result.rounds, "weights": result.elements,
                  "source_bytes": result.source_bytes, "shards": len(result.shards),
                  "predicted": result.plan.predicted_bytes, "basis": result.basis, **result.cpu_seconds,
                  "wall": result.seconds}))
"""
DECODE = r"""
import json, re, sys, time
from opq.file.folder_reader import FolderReader
from opq.streaming.dense import pieces
from opq.base.pool import pool
weights, start = 0, time.perf_counter()
with FolderReader(sys.argv[1]) as reader, pool(int(sys.argv[2]) or None) as threads:
    for part in reader.parts():
        for tensor in part.plan:
            for data in pieces(part, tensor, threads):
                weights += len(data) // 2
seconds = time.perf_counter() - start
print(json.dumps({"threads": threads.size, "weights": weights, "decode_seconds": seconds, "cpu_s": time.process_time(),
                  "decode_rate": weights / seconds / 1e6, "decode_rate_a_core": weights / time.process_time() / 1e6,
                  "peak_MB": int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024}))
"""


def shapes(layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one decoder layer."""
    p = f"model.layers.{layer}"
    return {
        f"{p}.self_attn.q_proj.weight": (HEADS * WIDTH, HIDDEN), f"{p}.self_attn.k_proj.weight": (KEYS * WIDTH, HIDDEN),
        f"{p}.self_attn.v_proj.weight": (KEYS * WIDTH, HIDDEN), f"{p}.self_attn.o_proj.weight": (HIDDEN, HEADS * WIDTH),
        f"{p}.self_attn.q_norm.weight": (WIDTH,), f"{p}.self_attn.k_norm.weight": (WIDTH,),
        f"{p}.mlp.gate_proj.weight": (INNER, HIDDEN), f"{p}.mlp.up_proj.weight": (INNER, HIDDEN),
        f"{p}.mlp.down_proj.weight": (HIDDEN, INNER), f"{p}.input_layernorm.weight": (HIDDEN,),
        f"{p}.post_attention_layernorm.weight": (HIDDEN,),
    }  # fmt: skip


def config(layers: int) -> dict[str, Any]:
    """The config.json of a decoder of so many layers."""
    return {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS, "head_dim": WIDTH, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
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
        save_file(state, folder / "unfinished", metadata={"format": "pt"})
        os.replace(folder / "unfinished", folder / f"part-{shard:02}.safetensors")


def view(folder: Path, number: int) -> Path:
    """A folder of links to the first shards, named as a checkpoint of its own."""
    target = folder / f"first-{number}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for shard in range(number):
        (target / f"model-{shard + 1:05}-of-{number:05}.safetensors").symlink_to(
            folder / f"part-{shard:02}.safetensors"
        )
    (target / "config.json").write_text(json.dumps(config(1 + LAYERS_A_SHARD * (number - 1))))
    return target


def child(program: str, *arguments: object) -> Row:
    """What a program in a process of its own prints as its last line."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if ran.returncode:
        raise RuntimeError(ran.stderr[-3000:])
    return dict(json.loads(ran.stdout.strip().splitlines()[-1]))


def memory_bandwidth(size: int = 1 << 28) -> float:
    """Bytes a second that all cores together read from memory as they copy."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    both = [(np.ones(size // 8), np.zeros(size // 8)) for _ in range(cores)]
    best = float("inf")
    with ThreadPoolExecutor(cores) as threads:
        for _ in range(4):
            start = time.perf_counter()
            list(threads.map(lambda pair: np.copyto(pair[1], pair[0]), both))
            best = min(best, time.perf_counter() - start)
    return cores * size / best


def disk(folder: Path, size: int) -> float:
    """Seconds to read a checkpoint once and to write 3/16 of it, by what its first file takes."""
    start, buffer, copied = time.perf_counter(), bytearray(1 << 24), 0
    with open(folder / "floor", "wb", buffering=0) as out:
        for path in sorted(folder.glob("part-*"))[:1]:
            with open(path, "rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    out.write(memoryview(buffer)[: got * 3 // 16])
                    copied += got
    (folder / "floor").unlink()
    return (time.perf_counter() - start) * size / copied


def compressed(folder: Path, size: int, *, probe: bool) -> Row:
    """One checkpoint; its files stay in the folder until the last row is done.

    `memory_s` is what no method can go below: the source read twice from memory at the bandwidth measured now.
    """
    make(folder, SHARDS[size])
    out = folder / f"out-{size}{'-probed' * probe}"
    shutil.rmtree(out, ignore_errors=True)
    row = child(RUN, view(folder, SHARDS[size]), out, int(probe), BITS)
    bandwidth = memory_bandwidth()
    row |= {"GB": row["source_bytes"] / 1e9, "memory_GB_s": bandwidth / 1e9}
    row |= {"memory_s": 2 * row["source_bytes"] / bandwidth, "disk_s": disk(folder, row["source_bytes"])}
    return {"model": f"decoder {row['GB']:.2f} GB", "method": "rd, probe" if probe else "rd", **row}


def decoded(folder: Path, size: int, threads: int) -> Row:
    """Decoding of a compressed checkpoint; 0 threads are as many as there are cores."""
    row = child(DECODE, folder / f"out-{size}", threads)
    return {"model": f"decoder {2 * row['weights'] / 1e9:.2f} GB", "method": f"decode, {row['threads']} threads", **row}


def ours() -> Row:
    """ResNet-50's tensors at 3 bits."""
    return codec.ours("resnet-50 shapes", codec.resnet50(), BITS, codec.nothing)


def theirs() -> Row:
    """The same through NNCodec, at about as many bits."""
    return codec.nncodec("resnet-50 shapes", codec.resnet50(), -26, codec.nothing)


def jobs(folder: Path, sizes: list[int], probed: list[int], with_peers: bool) -> dict[str, Callable[[], Row]]:
    """All rows by name, in the order in which the checkpoint grows."""
    listed: dict[str, Callable[[], Row]] = {"ours": ours}
    if with_peers and peers.available("nncodec"):
        listed["theirs"] = theirs
    for size in sizes:
        listed[f"compress {size}"] = lambda size=size: compressed(folder, size, probe=False)
        if size == sizes[0]:
            listed |= {f"decode {t}": lambda t=t: decoded(folder, sizes[0], t) for t in (1, 0)}
        if size in probed:
            listed[f"probe {size}"] = lambda size=size: compressed(folder, size, probe=True)
    return listed


def plot(rows: list[Row], path: Path) -> None:
    """Seconds and peak memory against size, with the line through the last point and the origin."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    sizes = [row["GB"] for row in rows]
    left.plot(sizes, [row["cpu_s"] for row in rows], "o-", label="processor")
    left.plot(sizes, [row["seconds"] for row in rows], "s:", label="on the wall")
    left.plot([0, sizes[-1]], [0, rows[-1]["cpu_s"]], "--", color="gray", label="proportional")
    left.plot(sizes, [row["memory_s"] for row in rows], "^-", label="reading twice from memory")
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
    parser.add_argument("--probed", type=int, nargs="*", default=[1], choices=list(SHARDS))
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "cache" / "scale")
    parser.add_argument("--no-peers", action="store_true", help="leave NNCodec out")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an interrupted run")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = options.folder / "rows.json"
    done: dict[str, Row] = json.loads(kept.read_text()) if kept.exists() else {}
    every = jobs(options.folder, sorted(options.sizes), options.probed, not options.no_peers)
    for name, job in every.items():
        if name not in done:
            done[name] = job()
            kept.write_text(json.dumps(done))
            print(f"{name}: {json.dumps(done[name])[:160]} ...", flush=True)
    rows = [done[name] for name in every]
    sized = [row for row in rows if "GB" in row]
    results.show(sized, (*COLUMNS, *PROBED), "compress at 3 bits (cpu_s and stages: seconds of the processor)")
    decoding = ("model", "method", "weights", "decode_seconds", "cpu_s", "decode_rate", "decode_rate_a_core", "peak_MB")
    results.show([row for row in rows if row["method"].startswith("decode")], decoding, "decode, M weights a second")
    results.show([row for row in rows if row["model"].startswith("resnet")], codec.COLUMNS, "ResNet-50's tensors")
    results.save("scale", rows)
    plot([row for row in sized if row["method"] == "rd"], results.RESULTS / "scale.png")
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
