"""Accuracy without data: what sensitivities, error feedback and re-normalisation each add, next to other tools.

    python examples/bench/datafree.py [--only mobilenet-v1-0.75] [--again] [--images N] [--budget BITS] [--no-peers]

On the same weights: this package with `a = 1` and no correction, with each part alone, with all, and with all on a
trellis; uniform quantization per tensor; HQQ; NNCodec 2 at the nearest size. `bits` is 8 x file bytes / parameters.
Scores are of the whole set and of its halves for choices and for figures (halves.py).
Every row is written to results/datafree.json as soon as it is measured; rows that stand there for as many samples are
not measured again, unless `--again` asks for it: then those of today's code stay, and others stay until their turn
comes. Prints a table and draws docs/pictures/datafree.png.
`--only resnet50-speed` is one call on ResNet-50's shapes: seconds by part, and peak memory.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import halves
import numpy as np
import peers
import results
import torch
import zoo
from torch import nn

import opq
from opq.compression.alpha import weighed
from opq.compression.coders import DataFreeCoder, probe_source
from opq.compression.fit import Fit
from opq.compression.options import Options
from opq.compression.problem import Problem, gather
from opq.compression.roles import assign
from opq.probing.sensitivity import Probe
from opq.quantizing.trellis import LEAST
from opq.sources import open_source
from opq.sources.base import Source

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))
import benchmark_page  # what methods are called in pictures

COLUMNS = ("model", "method", "budget", "bits", "ratio", "top1_dense", "top1", "metric", "samples", "seconds")
SPEED = "resnet50-speed"
Task = tuple[str, float, Callable[[], Any]]
"""A method, its budget in bits, and what measures its row."""
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "datafree.png"
ALL, TRELLIS, RENORM, PATHS = "rd", "rd, trellis", "rd, re-normalisation alone", "rd, trellis alone"
WEIGHTS = "rd, weights only"
PARTS = {"rd, a=1, no correction": (False, False, False), "rd, sensitivities alone": (True, False, False)}
PARTS |= {RENORM: (False, False, True), "rd, feedback alone": (False, True, False), PATHS: (False, False, False)}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One network and how it is scored."""

    name: str
    model: nn.Module
    budgets: tuple[float, ...]
    metric: str
    samples: int
    score: Callable[[nn.Module], halves.Score]
    calibration: list[Any] | None = None
    seeds: int = 1
    """The whole package is scored by the mean over so many seeds of its synthetic inputs; its bytes are of seed 0."""

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def row(self, method: str, size: float, state: Mapping[str, torch.Tensor], seconds: float, budget: float) -> Any:
        """One row: the network with some tensors replaced, scored."""
        network = copy.deepcopy(self.model)
        network.load_state_dict({**network.state_dict(), **state})
        row = {"model": self.name, "method": method, "file_bytes": round(size), "ratio": 4 * self.parameters / size}
        row |= {"bits": 8 * size / self.parameters, **self.dense.fields("top1_dense"), **self.scored(network).fields()}
        row |= {"seconds": seconds, "metric": self.metric, "samples": self.samples, "budget": budget}
        return row

    def scored(self, network: nn.Module) -> halves.Score:
        """The score, by the faster layout of the weights in memory."""
        return self.score(network.eval().to(memory_format=torch.channels_last))  # type: ignore[call-overload]

    @functools.cached_property
    def dense(self) -> halves.Score:
        """The score of the network as it is."""
        return self.scored(copy.deepcopy(self.model))

    @functools.cached_property
    def source(self) -> Source:
        return open_source(self.model)

    @functools.cached_property
    def probe(self) -> Probe:
        """Made once for all the rows of parts."""
        found = probe_source(self.source, Options(bits=4))
        assert found is not None
        return found


def cases(wanted: list[str], images: int | None, few: tuple[float, ...] = ()) -> dict[str, Callable[[], Case]]:
    """The networks asked for, made when their turn comes."""

    def pictures(name: str, model: Any, images: Any, budgets: tuple[float, ...], seeds: int = 1) -> Case:
        score = functools.partial(halves.top1, images=images)
        return Case(name, model, few or budgets, "top1", len(images), score, seeds=seeds)

    def minilm() -> Case:
        model, tokens = zoo.minilm()
        texts = zoo.sentences("evaluation")
        dense = zoo.embeddings(model, tokens, texts)

        def score(network: nn.Module) -> halves.Score:
            return halves.similarity(dense, zoo.embeddings(network, tokens, texts))

        calibration = [tokens(zoo.sentences("calibration"))]
        return Case("minilm", model, few or (4.0, 3.0, 2.5), "rank correlation x 100", len(texts), score, calibration)

    known: dict[str, Callable[[], Case]] = {"minilm": minilm}
    if zoo.SHARED.is_dir():
        known["resnet-20"] = lambda: pictures(
            "resnet-20", zoo.resnet20(), zoo.cifar10("test", images), (4.0, 3.0, 2.5, 1.8)
        )
        known["mobilenet-v1-0.75"] = lambda: pictures(
            "mobilenet-v1-0.75", zoo.mobilenet(), zoo.imagenet_like(images), (4.0, 3.0, 2.5), seeds=5
        )
    return {name: make for name, make in known.items() if not wanted or name in wanted}


def full(case: Case, bits: float, method: str = ALL, **options: Any) -> Any:
    """The package as everyone calls it: one call, saved, loaded again."""
    rows = [_once(case, bits, method, seed=seed, **options) for seed in range(case.seeds)]
    whole, figures = ([row[name] for row in rows] for name in ("top1", "top1_figures"))
    means = {name: statistics.mean(row[name] for row in rows) for name in ("top1", "top1_choices", "top1_figures")}
    return rows[0] | means | {"seeds": whole, "seeds_figures": figures}


def _once(case: Case, bits: float, method: str, **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.opq.safetensors"
        start = time.perf_counter()
        result = opq.compress(case.model, size=int(bits * case.parameters / 8), **options)
        result.save(path)
        seconds = time.perf_counter() - start
        size, state = path.stat().st_size, opq.load_state_dict(path)
    return case.row(method, size, state, seconds, bits)


def part(case: Case, bits: float, method: str) -> Any:
    """The package with `a = 1` and plain rounding, or with one part alone; the probe, made before, is not timed."""
    sensitive, feeds_back, renormalises = PARTS[method]
    options = Options(size=int(bits * case.parameters / 8))
    roles = assign(case.source.specs)
    stats = gather(case.source, roles)
    paths = dict.fromkeys(stats if method == PATHS else (), LEAST)
    equal = Problem.of(options, roles, stats=stats, sensitivities=dict.fromkeys(stats, 1.0), trellised=paths)
    _ = case.probe.moments.dense
    start = time.perf_counter()
    problem = weighed(DataFreeCoder(case.source, case.probe), equal, {})[0] if sensitive else equal
    coder = DataFreeCoder(case.source, case.probe, feeds_back=feeds_back, renormalises=renormalises)
    result = Fit(case.source, problem, coder, options.progress).run().result
    return case.row(method, result.bytes, result.state_dict(), time.perf_counter() - start, bits)


def uniform(case: Case, bits: int) -> Any:
    """Every tensor of two or more dimensions rounded to 2^bits - 1 levels between its extremes; the rest in fp32."""
    start = time.perf_counter()
    state, size = {}, 0.0
    for name, w in case.model.state_dict().items():
        if w.is_floating_point() and w.dim() > 1:
            step = float(w.abs().max()) / (2 ** (bits - 1) - 1)
            state[name] = torch.round(w / step) * step
            size += w.numel() * bits / 8 + 4
        else:
            size += w.numel() * w.element_size()
    return case.row(f"uniform {bits}-bit", size, state, time.perf_counter() - start, bits)


def hqq(case: Case, bits: int) -> Any:
    """HQQ, groups of 64, on every matrix; the rest in fp32."""
    own = case.model.state_dict()
    matrices = {n: w.numpy() for n, w in own.items() if w.is_floating_point() and w.dim() == 2 and w.numel() % 64 == 0}
    coded = peers.hqq(matrices, bits=bits)
    kept = sum(w.numel() * w.element_size() for n, w in own.items() if n not in matrices)
    state = {n: torch.from_numpy(np.asarray(a)).reshape(own[n].shape) for n, a in coded.arrays.items()}
    return case.row(f"hqq {bits}-bit", coded.bytes + kept, state, coded.encode, bits)


def nncodec(case: Case, budget: float, tried: dict[int, Any]) -> Any:
    """NNCodec 2 with dependent quantization at the size nearest to the budget."""
    own = {n: w for n, w in case.model.state_dict().items() if w.is_floating_point()}
    qp, coded = peers.nncodec_near({n: w.numpy() for n, w in own.items()}, budget, case.parameters, tried)
    state = {n: torch.from_numpy(np.array(a)).reshape(own[n].shape) for n, a in coded.arrays.items()}
    return case.row(f"nncodec qp={qp}", coded.bytes, state, coded.encode, budget)


def tasks(case: Case, *, with_peers: bool, ablation: bool) -> Iterator[Task]:
    """All rows of one network."""
    for bits in case.budgets:
        yield TRELLIS, bits, lambda bits=bits: full(case, bits, TRELLIS)
        yield ALL, bits, lambda bits=bits: full(case, bits, trellis=False)
        yield WEIGHTS, bits, lambda bits=bits: _once(case, bits, WEIGHTS, seed=0, probe=False)
    if case.calibration is not None:
        method = "rd, 150 sentences of calibration"
        for bits in (b for b in case.budgets if b < 4):
            yield method, bits, lambda bits=bits: full(case, bits, method, calibration=case.calibration, trellis=False)
    if ablation:
        for bits in (8, 4, 3):
            yield "uniform", bits, lambda bits=bits: uniform(case, bits)
        for bits, method in itertools.product(case.budgets, PARTS):
            if method != RENORM or case.source.batchnorms:
                yield method, bits, lambda bits=bits, method=method: part(case, bits, method)
    if with_peers and case.name == "minilm" and peers.available("hqq"):
        for bits in (4, 3):
            yield "hqq", bits, lambda bits=bits: hqq(case, bits)
    if with_peers and peers.available("nncodec"):
        tried: dict[int, Any] = {}
        for bits in case.budgets:
            yield "nncodec", bits, lambda bits=bits: nncodec(case, bits, tried)


def run(case: Case, rows: list[Any], *, with_peers: bool, ablation: bool, again: bool = False) -> list[Any]:
    """The rows with those of one network that are missing, written after each; `again`: those of other code, too."""
    today = results.digest("datafree")
    for method, budget, measure in tasks(case, with_peers=with_peers, ablation=ablation):
        key = (case.name, method, budget)
        held = [row for row in rows if _key(row) == key and row["samples"] == case.samples]
        if held and not (again and (held[0].get("stamp", {}).get("code") != today or "top1_figures" not in held[0])):
            continue
        rows = write([row for row in rows if _key(row) != key] + [measure()])
    return rows


def speed() -> Any:
    """The one call on ResNet-50's shapes, in a process of its own: seconds by part, peak memory above the model's."""
    program = Path(__file__).with_name("speed.py")
    asked = [sys.executable, str(program), "--one", SPEED, "--no-trellis"]
    ran = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.strip().splitlines()[-1])


def write(rows: list[Any]) -> list[Any]:
    """The rows in the file's order, written."""
    rows = sorted(rows, key=lambda row: (row["model"], row["method"], -row["bits"]))
    results.save("datafree", rows)
    return rows


def _key(row: Any) -> tuple[str, str, float]:
    """What a later row replaces an earlier one by."""
    return row["model"], _family(row["method"]), row["budget"]


def draw(rows: list[Any]) -> None:
    """Points below the dense network against bits of the file: one panel a network, one curve a method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["model"] for row in rows))
    there = {_family(row["method"]) for row in rows}
    methods = [m for m in (*benchmark_page.NAMES["datafree"], *benchmark_page.OTHERS) if m in there]
    colours = [colour for colour in benchmark_page.COLOURS if colour != "#17202b"]  # nearly that of `ALL`
    called = {**benchmark_page.NAMES["datafree"], **benchmark_page.OTHERS}
    figure, panels = pyplot.subplots(1, len(names), figsize=(3.1 * len(names), 4.8), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for number, method in enumerate(methods):
            points = sorted((r for r in rows if r["model"] == name and _family(r["method"]) == method), key=_bits)
            style = {TRELLIS: {"linewidth": 2.8, "color": benchmark_page.OWN_COLOUR}, ALL: {"color": "black"}}.get(
                method, {"color": colours[number % len(colours)], "linewidth": 1.2}
            )
            gaps = [r["top1"] - r["top1_dense"] for r in points]
            panel.plot([r["bits"] for r in points], gaps, marker="o", ms=4, label=called[method], **style)
        panel.axhline(0, linestyle=":", color="grey")
        panel.set(
            title=benchmark_page.NETWORKS.get(name, name),
            xlabel="bits per parameter of the file",
            xlim=(1.6, 5),
            ylim=(-40, 3),
        )
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("points from the dense network")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncols=2, fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout(rect=(0, 0.27, 1, 1))
    figure.savefig(PICTURE, dpi=150, metadata=benchmark_page.mark(rows))


def _bits(row: Any) -> float:
    return float(row["bits"])


def _family(method: str) -> str:
    return (
        "uniform" if method.startswith("uniform") else method.split(" ")[0] if method[:3] in ("hqq", "nnc") else method
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help=f"only this network, or {SPEED}; may be repeated")
    parser.add_argument("--again", action="store_true", help="measure rows of other code than today's anew")
    parser.add_argument("--budget", type=float, action="append", default=[], help="only this budget, in bits")
    parser.add_argument("--images", type=int, help="first N test images only")
    parser.add_argument("--no-peers", action="store_true", help="leave HQQ and NNCodec out")
    parser.add_argument("--all-only", action="store_true", help="only the whole package, no part alone")
    options = parser.parse_args()
    rows = results.held("datafree")
    wanted = cases(options.only, options.images, tuple(options.budget))
    if SPEED in options.only or (not options.only and not any(row["model"] == SPEED for row in rows)):
        rows = write([row for row in rows if row["model"] != SPEED] + [speed()])
    for name, make in wanted.items():
        kinds = {"with_peers": not options.no_peers, "ablation": not options.all_only}
        rows = run(make(), rows, **kinds, again=options.again)
        results.show([row for row in rows if row["model"] == name], COLUMNS, name)
    results.show([row for row in rows if row["model"] == SPEED], (*SPEED_COLUMNS,), SPEED)
    draw([row for row in rows if row["model"] != SPEED])


SPEED_COLUMNS = ("model", "probe", "moments", "feedback", "renorm", "seconds", "cpu_seconds", "threads", "peak_bytes")


if __name__ == "__main__":
    main()
