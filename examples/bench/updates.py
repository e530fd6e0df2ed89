"""Updates: from one checkpoint to another one a few hundred steps of fine-tuning on, next to general tools.

    python examples/bench/updates.py [--only NAME] [--no-peers]

MiniLM (300 steps of AdamW on pairs of sentences) and ResNet-20 (300 steps of SGD on CIFAR-10), as they are in float32
and as most models are published, in 16 bits. `zstd` at its best level on the new file, on the exclusive or and on the
difference of both files' bytes; ZipNN on the same three; and pairs of place and new value for the elements that
differ. Then the same networks as opq files at 3 bits: the update between two of them, what a store that deduplicates
would have to send, and the new network against the old one as a base. Checkpoints are trained once, about three minutes
on one core, and kept under cache/; what other tools make of the same bytes is measured once and kept there too. Prints
tables and writes results/updates.json. Seconds are the processor's; ZipNN's, in a process of its own, the clock's.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
import results
import torch
import zoo
from safetensors.torch import load_file, save_file
from torch.nn import functional

import opq

CACHE = Path(__file__).parent / "cache" / "updates"
STEPS = 300
LEVELS = {"minilm": 19, "resnet-20": 22}
"""Of zstd: its best level, of the large network the best that does not ask for more memory (--ultra); 22 takes minutes
there."""
COLUMNS = (
    "model",
    "method",
    "what",
    "new_bytes",
    "bytes",
    "share",
    "of_zstd",
    "seconds",
    "apply_seconds",
    "mse",
    "mse_alone",
    "mse_old",
)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NETWORKS = {"minilm": ("bfloat16", "float32"), "resnet-20": ("float32", "float16")}
BITS = 3.0


# --- the checkpoints -------------------------------------------------------------------------


def minilm() -> tuple[torch.nn.Module, Callable[[int], torch.Tensor], torch.optim.Optimizer]:
    """The sentence transformer, taught how many words two sentences share."""
    model, tokens = zoo.minilm()
    texts = zoo.sentences("evaluation") + zoo.sentences("calibration")
    words = [set(text.lower().split()) for text in texts]
    g = torch.Generator().manual_seed(0)

    def loss(step: int) -> torch.Tensor:
        one, other = (torch.randint(len(texts), (4,), generator=g).tolist() for _ in range(2))
        wanted = [len(words[i] & words[j]) / len(words[i] | words[j]) for i, j in zip(one, other, strict=True)]
        batch = tokens([texts[i] for i in one + other])
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
        a, b = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).chunk(2)
        return functional.mse_loss((a * b).sum(1), torch.tensor(wanted))

    return model, loss, torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)


def resnet20() -> tuple[torch.nn.Module, Callable[[int], torch.Tensor], torch.optim.Optimizer]:
    """The classifier, trained on at a small rate."""
    model, images = zoo.resnet20(), zoo.cifar10("train", 32 * STEPS)

    def loss(step: int) -> torch.Tensor:
        batch = images[slice(32 * step, 32 * step + 32)]
        return functional.cross_entropy(model(zoo.normalised(batch.pixels, model.input_hint)), batch.labels)

    return model, loss, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)


def checkpoints(name: str, dtype: str) -> tuple[Path, Path]:
    """The old and the new checkpoint; trained where they are not there yet."""
    paths = tuple(CACHE / f"{name}.{which}.safetensors" for which in ("old", "new"))
    if not all(path.exists() for path in paths):
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model, loss, optimiser = (minilm if name == "minilm" else resnet20)()
        _save(model.state_dict(), paths[0])
        model.train()
        for step in range(STEPS):
            optimiser.zero_grad()
            loss(step).backward()
            optimiser.step()
        _save(model.state_dict(), paths[1])
    if dtype == "float32":
        return paths[0], paths[1]
    cast = tuple(path.with_suffix(f".{dtype}.safetensors") for path in paths)
    for path, other in zip(paths, cast, strict=True):
        _save({n: t.to(TYPES[dtype]) if t.is_floating_point() else t for n, t in load_file(path).items()}, other)
    return cast[0], cast[1]


def _save(state: dict[str, Any], path: Path) -> None:
    save_file({n: t.detach().clone().contiguous() for n, t in state.items()}, path, {"format": "pt"})


# --- the rows --------------------------------------------------------------------------------


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = call()
    return found, time.process_time() - start


def ours(old: Path, new: Path, **options: Any) -> dict[str, Any]:
    """The update, applied, and compared with the new file."""
    update, again = CACHE / "update", CACHE / "again"
    size, seconds = timed(lambda: opq.delta(old, new, update, **options))
    _, apply = timed(lambda: opq.apply(old, update, again))
    assert again.read_bytes() == new.read_bytes()
    return {"bytes": size, "seconds": seconds, "apply_seconds": apply}


def inputs(old: Path, new: Path) -> Iterator[tuple[str, bytes]]:
    """What general tools are given."""
    a, b = (np.fromfile(path, np.uint8) for path in (old, new))
    yield "new file", b.tobytes()
    yield "exclusive or", (a ^ b).tobytes()
    yield "difference of bytes", (b - a).tobytes()


def zstd(data: bytes, level: int) -> dict[str, Any]:
    import zstandard

    coded, seconds = timed(lambda: zstandard.ZstdCompressor(level=level).compress(data))
    _, back = timed(lambda: zstandard.ZstdDecompressor().decompress(coded))
    return {"bytes": len(coded), "seconds": seconds, "apply_seconds": back}


def once(tool: str, data: bytes, run: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """What a peer makes of some bytes, measured once: zstd at its best level takes minutes, and none of it is ours."""
    path = CACHE / "peers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    key = f"{tool} {hashlib.sha256(data).hexdigest()}"
    if key not in known:
        path.write_text(json.dumps({**known, key: run(data)}, indent=1))
        return once(tool, data, run)
    return dict(known[key])


def zipnn(data: bytes, dtype: str) -> dict[str, Any]:
    coded = peers.zipnn(data, dtype=dtype)
    return {"bytes": coded.bytes, "seconds": coded.encode, "apply_seconds": coded.decode}


def pairs(old: Path, new: Path) -> dict[str, Any]:
    """Place (four bytes) and new value of every element that differs."""
    before, after = load_file(old), load_file(new)
    size, seconds = timed(lambda: sum(_pairs(before[n], t) for n, t in after.items()))
    return {"bytes": size, "seconds": seconds}


def _pairs(before: torch.Tensor, after: torch.Tensor) -> int:
    return int((before.view(-1) != after.view(-1)).sum()) * (4 + after.element_size())


def lossless(name: str, dtype: str, with_peers: bool) -> list[dict[str, Any]]:
    """The rows of one pair of checkpoints."""
    old, new = checkpoints(name, dtype)
    model, whole = f"{name} {dtype}", new.stat().st_size
    rows: list[dict[str, Any]] = [{"method": "opq delta", "what": "both files", **ours(old, new)}]
    for what, data in inputs(old, new):
        tool = f"zstd -{LEVELS[name]}"
        rows.append({"method": tool, "what": what, **once(tool, data, functools.partial(zstd, level=LEVELS[name]))})
        if with_peers:
            rows.append(
                {"method": "zipnn", "what": what, **once(f"zipnn {dtype}", data, functools.partial(zipnn, dtype=dtype))}
            )
    rows.append({"method": "pairs", "what": "place and value", **pairs(old, new)})
    best = min(row["bytes"] for row in rows if row["method"].startswith("zstd") and row["what"] != "new file")
    shares = ({"share": row["bytes"] / whole, "of_zstd": row["bytes"] / best} for row in rows)
    return [{"model": model, "new_bytes": whole, **row, **share} for row, share in zip(rows, shares, strict=True)]


def coded(name: str) -> list[dict[str, Any]]:
    """The rows of opq files of the two checkpoints: made alone, and the new one with `like=` the old one."""
    old, new = checkpoints(name, "float32")
    one, alone, like = (CACHE / f"{name}.{which}.opq.safetensors" for which in ("old", "alone", "like"))
    opq.compress(old, bits=BITS).save(one)
    opq.compress(new, bits=BITS).save(alone)
    opq.compress(new, bits=BITS, like=one).save(like)
    rows = []
    for what, path in (("new alone", alone), ("new with like=", like)):
        size = {"what": what, "new_bytes": path.stat().st_size}
        rows.append({"method": "opq delta", **size, **ours(one, path)})
        rows.append({"method": "deduplicated", **size, "bytes": fresh(one, path)})
    rows.append(on_grids(old, new))
    for what, base, bits in (("to the old checkpoint", old, 0.5), ("to the old opq file", one, 1.0)):
        rows.append({"method": f"base=, {bits:g} bits", "what": what, **based(base, new, bits)})
    return [{"model": f"{name} at {BITS:g} bits", **row, "share": row["bytes"] / row["new_bytes"]} for row in rows]


def on_grids(old: Path, new: Path) -> dict[str, Any]:
    """The update where neither file is on a trellis, on which a weight that moves takes codes after it along."""
    one, other = (CACHE / f"grid.{which}.opq.safetensors" for which in ("old", "new"))
    for source, path in ((old, one), (new, other)):
        opq.compress(source, bits=BITS, trellis=False).save(path)
    size = {"what": "new alone on plain grids", "new_bytes": other.stat().st_size}
    return {"method": "opq delta", **size, **ours(one, other)}


def based(old: Path, new: Path, bits: float) -> dict[str, Any]:
    """The new network against the old one as its base, and its error beside that of 3 bits alone."""
    dense, path = load_file(new), CACHE / "based.opq.safetensors"
    result, seconds = timed(lambda: opq.compress(new, base=old, bits=bits))
    result.save(path)
    state, apply = timed(lambda: opq.load_state_dict(path, base=old))
    alone = opq.compress(new, bits=BITS)
    return {
        "new_bytes": alone.bytes,
        "bytes": result.bytes,
        "seconds": seconds,
        "apply_seconds": apply,
        "mse": mean_square(dense, state),
        "mse_alone": mean_square(dense, alone.state_dict()),
        "mse_old": mean_square(dense, _any(old)),
    }


def _any(path: Path) -> dict[str, torch.Tensor]:
    return opq.load_state_dict(path) if path.name.endswith(".opq.safetensors") else load_file(path)


def mean_square(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Mean squared error over all floating-point weights of two or more dimensions."""
    names = [n for n, t in a.items() if t.is_floating_point() and t.dim() > 1]
    total = sum(float((a[n].double() - b[n].double()).square().sum()) for n in names)
    return total / sum(a[n].numel() for n in names)


def fresh(old: Path, new: Path) -> int:
    """Bytes of the new file but for entries that the old one has too."""
    with opq.Reader(old) as before, opq.Reader(new) as after:
        had = {bytes(before._payload(n)) for n in before._spans}
        return after.bytes - sum(len(p) for n in after._spans if (p := bytes(after._payload(n))) in had)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="one network (may be repeated); rows of others stay")
    parser.add_argument("--no-peers", action="store_true", help="leave ZipNN out")
    options = parser.parse_args()
    with_peers = not options.no_peers and peers.available("zipnn")
    for name in options.only or NETWORKS:
        if name not in NETWORKS:
            parser.error(f"--only takes {', '.join(NETWORKS)}")
        if name == "resnet-20" and not zoo.SHARED.is_dir():
            print(f"{name}: skipped, needs {zoo.SHARED}")
            continue
        for dtype in (*NETWORKS[name], None):
            rows = coded(name) if dtype is None else lossless(name, dtype, with_peers)
            results.show(rows, COLUMNS, f"{name} ({torch.get_num_threads()} threads)")
            results.merge("updates", rows)


if __name__ == "__main__":
    main()
