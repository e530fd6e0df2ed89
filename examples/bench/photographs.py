"""Fine-tuning on a folder of pictures without labels: accuracy against the bytes of the file.

    python examples/bench/photographs.py NETWORK BITS [--seed N] [--epochs N] [--pictures N | --synthetic] [--try]
    python examples/bench/photographs.py NETWORK --nominal 23.26 --sparsity 0.6 [--epochs N]
    python examples/bench/photographs.py NETWORK BITS --peer clipq|nncodec|hqq

One row a call: the network is compressed by the default call, its errors measured on some of the pictures in place of
noise; then what is not compressed (of ResNet-20 the codes, on plain grids) is trained on 1,000 pictures without labels,
taught by the dense network; and the file is scored on other pictures. `--nominal` takes the paper's method, so many
times smaller than the network by the paper's count, in which positions cost nothing, and trains its codes. `--peer`
takes another tool: CLIP-Q learns from the same pictures, labelled by the dense network; NNCodec and HQQ do not train.
MobileNet learns from photos_1000.npz and is scored on imagenet_like_1000.npz, on which nothing was chosen; ResNet-20
learns from the first 1,000 training images of CIFAR-10, their labels unread, and is scored on the test images; MiniLM
learns from lines of text, and is scored by the rank correlation of the similarities of 300 other sentences. A run that
is interrupted goes on where it was, and its row is written to results/photographs.json at the end. `--try` scores what
is held back from training, and writes nothing: so the recipes were chosen.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import photograph_peers
import results
import tiny
import torch
import zoo
from torch import nn

import opq
from opq.evaluation import ImageSet

CACHE = Path(__file__).parent / "cache"
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "photographs.png"
DRAWN = (
    ("rd, compressed on the photographs", "rd, 1,000 pictures", "top1_start", "o--C0"),
    ("rd, and trained on them", "rd, 1,000 pictures", "top1", "o-C1"),
    ("the paper's method, trained", "opq, ", "top1", "sC3"),
)
"""Label, how the methods of the rows begin, what is drawn of them, and in what style."""
COLUMNS = ("model", "method", "budget", "bits", "ratio", "top1_dense", "top1_start", "top1", "agreement", "pictures",
           "epochs", "kept", "seed", "seconds")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One network, what it learns from and how it is scored."""

    model: nn.Module
    given: dict[str, Any]
    """What `opq.finetune` is given to learn from."""
    score: Callable[[nn.Module], float]
    metric: str
    samples: int
    epochs: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of `opq.finetune`."""


def resnet20(pictures: int) -> Case:
    train, test = zoo.cifar10("train", pictures), zoo.cifar10("test")
    pixels = train.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    given = {"images": ImageSet(len(pixels), lambda i: pixels[i])}
    score = functools.partial(zoo.top1, images=test)
    return Case(model=zoo.resnet20(), given=given, score=score, metric="top1", samples=len(test), epochs=30,
                options={"batch": 64, "codes": "train"})  # fmt: skip


def mobilenet(pictures: int) -> Case:
    images = opq.evaluation.open_pictures(zoo.SHARED / "data" / "photos_1000.npz").first(pictures)
    test = zoo.imagenet_like()
    model = zoo.mobilenet()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Case(model=model, given={"images": images}, score=functools.partial(zoo.top1, images=test), metric="top1",
                samples=len(test), epochs=3, options={"batch": 32})  # fmt: skip


def minilm(count: int) -> Case:
    model, tokens = zoo.minilm()
    texts = zoo.sentences("evaluation")
    dense = zoo.embeddings(model, tokens, texts)

    def score(network: nn.Module) -> float:
        return 100 * zoo.rank_correlation(dense, zoo.embeddings(network, tokens, texts))

    return Case(model=model, given={"texts": lines(count)}, score=score, metric="rank correlation x 100",
                samples=len(texts), epochs=3)  # fmt: skip


def lines(count: int) -> list[str]:
    """Sentences of English prose that every Python has: of the pages that `help("topics")` lists."""
    from pydoc_data.topics import topics

    prose = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    found = [text for text in re.split(r"(?<=[.!?]) +(?=[A-Z])", prose) if 30 <= len(text) <= 300]
    return found[:: max(1, len(found) // count)][:count]


CASES: dict[str, Callable[[int], Case]] = {"resnet-20": resnet20, "mobilenet-v1-0.75": mobilenet, "minilm": minilm}


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compress, score, train, write the file, read it back, score that."""
    case = CASES[name](arguments.pictures)
    if arguments.peer:
        return by_others(name, case, arguments)
    epochs = arguments.epochs or case.epochs
    given = {"images": "synthetic"} if arguments.synthetic else case.given
    things = "lines of text" if name == "minilm" else "pictures"
    what = "synthetic images" if arguments.synthetic else f"{arguments.pictures:,} {things}"
    options = {**case.options, **dict(json.loads(arguments.options))}
    codes, ratio = options.get("codes"), arguments.nominal
    start, cpu = time.perf_counter(), time.process_time()
    model = copy.deepcopy(case.model)
    seen = None if arguments.synthetic else given.get("images")
    if ratio is None:
        method = f"rd, {what}" + (", codes trained" if codes == "train" else "")
        asked = f"{arguments.bits:g}"
        result = opq.compress(model, bits=arguments.bits, trellis=False if codes == "train" else None, calibration=seen)
    else:
        method = f"opq, {ratio:g}x nominal, {100 * arguments.sparsity:g} % pruned, {what}"
        method += ", codes kept" if codes == "keep" else ""
        asked = f"{ratio:g}x-{arguments.sparsity:g}"
        result = counted(model, ratio, arguments.sparsity, calibration=seen)
    stem = f"photographs-{name}-{asked}-{what.replace(' ', '-')}-{epochs}-{arguments.seed}{arguments.mark}"
    checkpoint = CACHE / f"{stem}.ckpt"
    trained = opq.finetune(model, result, **given, epochs=epochs, seed=arguments.seed, checkpoint=checkpoint,
                           progress=logged(), **options)  # fmt: skip
    print(trained, flush=True)
    seconds, spent = time.perf_counter() - start, time.process_time() - cpu
    path = CACHE / f"{stem}.opq.safetensors"
    trained.save(path)
    pictures = 0 if arguments.synthetic else arguments.pictures
    best = trained.history[trained.kept] if trained.kept is not None and trained.kept >= 0 else None
    row = {
        "model": name, "method": method, "budget": arguments.bits or result.bits, "file_bytes": path.stat().st_size,
        "bits": trained.result.bits, "ratio": trained.result.ratio, "nominal_ratio": trained.result.nominal.ratio,
        "agreement": None if best is None else 100 * best.score, "pictures": pictures, "epochs": epochs,
        "kept": trained.kept, "seed": arguments.seed, "seconds": seconds, "cpu_seconds": spent,
        "metric": case.metric, "samples": case.samples,
    }  # fmt: skip
    if not arguments.dry:
        row["top1_dense"] = case.score(copy.deepcopy(case.model))
        row["top1_start"] = case.score(filled(case.model, result.state_dict()))
        row["top1"] = case.score(opq.load(path, copy.deepcopy(case.model)))
        checkpoint.unlink(missing_ok=True)
    return row


def counted(model: nn.Module, ratio: float, sparsity: float, **options: Any) -> opq.Result:
    """The paper's method at a ratio by its own count, which feedback moves: bits of kept weights make up."""
    bits = 32 / (ratio * (1 - sparsity))
    for _ in range(3):
        result = opq.compress(model, method="opq", sparsity=sparsity, bits=bits, **options)
        bits *= result.nominal.ratio / ratio
    return result


def by_others(name: str, case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of another tool."""
    start, cpu, epochs = time.perf_counter(), time.process_time(), 0
    if arguments.peer == "clipq":
        epochs = arguments.epochs or case.epochs
        theta = None if arguments.theta is None else (arguments.theta[0], int(arguments.theta[1]))
        made = photograph_peers.clipq(case.model, case.given["images"], epochs=epochs, weight=arguments.weight,
                                      theta=theta, seed=arguments.seed, progress=logged())  # fmt: skip
        how = f"lambda {arguments.weight:g}" if theta is None else f"p {theta[0]:g}, b {theta[1]}"
        method = f"clipq, {how}, {arguments.pictures:,} pictures"
    else:
        made = getattr(photograph_peers, arguments.peer)(case.model, arguments.bits)
        method = f"{arguments.peer}, no training"
    own = sum(p.numel() for p in case.model.parameters())
    row = {
        "model": name, "method": method,
        "budget": arguments.bits or 8 * made.bytes / own, "file_bytes": made.bytes, "bits": 8 * made.bytes / own,
        "ratio": 4 * own / made.bytes, "pictures": arguments.pictures if epochs else 0, "epochs": epochs,
        "seed": arguments.seed, "metric": case.metric, "samples": case.samples,
        "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu,
    }  # fmt: skip
    if not arguments.dry:
        row["top1_dense"] = case.score(copy.deepcopy(case.model))
        row["top1"] = case.score(filled(case.model, {**case.model.state_dict(), **made.state}))
    return row


def filled(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of a network with other weights."""
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    return model


def logged() -> Callable[[str, int, int], None]:
    """Prints how far training is, once a minute."""
    last = [0.0]

    def told(stage: str, done: int, total: int) -> None:
        if time.monotonic() - last[0] > 60:
            last[0] = time.monotonic()
            print(f"{time.strftime('%H:%M')} {stage} {done} of {total}", flush=True)

    return told


def place(row: results.Row) -> tuple[Any, ...]:
    """What a row is about, in the order of the table."""
    return row["model"], -row["budget"], row["method"], row["seed"]


def draw(rows: Sequence[results.Row], path: Path = PICTURE) -> None:
    """MobileNet's rows: accuracy against how much smaller the file is; the paper's method also by its own count."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [r for r in rows if r["model"] == "mobilenet-v1-0.75" and not r["method"].endswith("codes kept")]
    figure, axis = pyplot.subplots(figsize=(7.5, 4.6))
    axis.axhline(rows[0]["top1_dense"], color="grey", linestyle=":", label="dense")
    for label, begins, key, style in DRAWN:
        found: dict[float, list[float]] = {}
        for r in rows:
            if r["method"].startswith(begins):
                found.setdefault(round(r["ratio"], 1), []).append(r[key])
        points = [(ratio, statistics.mean(scores)) for ratio, scores in sorted(found.items())]
        axis.plot(*zip(*points, strict=True), style, label=label)
    paper = [r for r in rows if r["method"].startswith("opq")]
    nominal, real, top1 = (statistics.mean(r[key] for r in paper) for key in ("nominal_ratio", "ratio", "top1"))
    axis.plot([nominal], [top1], "sC3", fillstyle="none", label="the same by its own count")
    arrow = {"arrowstyle": "->", "color": "C3", "linestyle": "--"}
    axis.annotate("", (real + 0.25, top1), (nominal - 0.25, top1), arrowprops=arrow)
    axis.text((nominal + real) / 2, top1 + 0.3, "positions cost bytes", color="C3", fontsize=8, ha="center")
    axis.set(xlabel="times smaller than float32", ylabel="top-1 of 1,000 photographs (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=(*CASES, "draw"), help="or `draw`, the rows that there are")
    parser.add_argument("bits", type=float, nargs="?")
    parser.add_argument("--nominal", type=float, help="the paper's method, at this ratio by its own count")
    parser.add_argument("--sparsity", type=float, default=0.6, help="of the paper's method: the part that is pruned")
    parser.add_argument("--peer", choices=("clipq", "nncodec", "hqq"), help="another tool")
    parser.add_argument("--theta", type=float, nargs=2, metavar=("P", "B"), help="of CLIP-Q, in place of its search")
    parser.add_argument("--weight", type=float, default=1.0, help="lambda of CLIP-Q")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="another number than the network's own")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--synthetic", action="store_true", help="no data: images made by the package")
    parser.add_argument("--options", default="{}", help="others of opq.finetune, as JSON")
    parser.add_argument("--mark", default="", help="of the checkpoint's name")
    parser.add_argument("--try", dest="dry", action="store_true", help="nothing is scored or written")
    arguments = parser.parse_args()
    if arguments.network == "draw":
        draw(results.held("photographs"))
        return
    if arguments.bits is None and arguments.nominal is None and arguments.peer != "clipq":
        parser.error("BITS is missing")
    tiny.import_torchvision()
    CACHE.mkdir(exist_ok=True)
    row = run(arguments.network, arguments)
    print(json.dumps(row))
    if not arguments.dry:
        rows = results.keep("photographs", [row], place)
        draw(rows)
        results.show(rows, COLUMNS, "Fine-tuned on pictures without labels")


if __name__ == "__main__":
    main()
