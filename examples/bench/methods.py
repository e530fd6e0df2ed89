"""The published methods side by side: error against real file bytes, and the processor seconds that each takes.

    python examples/bench/methods.py [--quick] [--model NAME ...] [--method NAME ...] [--again] [--seconds N]

Every method starts from the same dense network, is distilled from it and may make the same number of training steps
(`STEPS`); where training has two stages each gets half. OLMP alone has more, and its rows say so; those with "L1" start
from the networks of finetune.py instead. Errors are of the file as read back, on the whole test set. A row is written
as soon as it is done and skipped in the next run, so that the full table can be made in pieces; rows that were not run
are listed, never filled in. Writes results/methods.json and draws docs/pictures/methods.png; `--quick` takes minutes
on two cores, prints only, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import results
import torch
from finetune import CACHE, Recipe, Shuffled, Task, planned, task
from finetune import RECIPES as PENALISED
from torch import nn

import opq
from opq.training.finetuning import finetune

COLUMNS = ("model", "method", "setting", "file_bytes", "ratio", "weights_ratio", "error_dense", "error", "steps",
           "cpu_s", "published")  # fmt: skip
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "methods.png"
PUBLISHED = {
    ("lenet-300-100", "olmp"): "113.5x fewer weights at 2.18 % (2.27 % before)",
    ("lenet-5", "olmp"): "297.7x fewer weights at 0.91 % (0.91 % before)",
    ("lenet-300-100", "kmeans"): "Deep Compression: 40x at 1.58 % (1.64 % before)",
    ("lenet-5", "kmeans"): "Deep Compression: 39x at 0.74 % (0.80 % before)",
    ("lenet-5", "pq"): "23x to 38x over LeNet-5, AlexNet and ResNet",
    ("resnet-20", "pq"): "23x to 38x over LeNet-5, AlexNet and ResNet",
}
"""What the papers report on the same network; see PAPERS.md for sources and accounting."""


RECIPES = (
    Recipe(model="lenet-300-100", ratios=(), epochs=0, lr=1e-2, decay=0.03, headroom=1.2, alpha=0.15, fineness=1.4),
    Recipe(model="lenet-5", ratios=(), epochs=0, lr=1e-2, decay=0.1, alpha=0.15, dense_epochs=6),
    Recipe(model="resnet-20", ratios=(), epochs=0, lr=2e-3, decay=1e-2, feedback=True, alpha=0.5,
           shift=4, mirror=True),
)  # fmt: skip
"""Dense networks trained without a penalty, the same for all methods. `PENALISED` are those of finetune.py, with one
and on shifted images: rows that start from them say so, and are to be held against the rows there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One row to be: a method at one setting on one network."""

    model: str
    method: str
    setting: str
    epochs: int
    """Of `STEPS` training steps each, all stages together."""
    make: Callable[[Task, Recipe, Case], tuple[opq.Result, float]]
    """The result, and the processor seconds that it took."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    penalised: bool = False
    """Whether it starts from the dense network of finetune.py."""
    again: tuple[Mapping[str, Any], ...] = ()
    """Method options of further calls, each on the result of the one before; their epochs are among `epochs`."""

    @property
    def recipe(self) -> Recipe:
        """How the dense network was trained, and what `rd` is asked for."""
        return next(r for r in (PENALISED if self.penalised else RECIPES) if r.model == self.model)

    @property
    def key(self) -> tuple[str, str, str]:
        """What a row is known by."""
        return self.model, self.method, self.setting


# --- what all start from ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Part(Shuffled):
    """The first so many batches of an epoch, whose order is its own."""

    steps: int = 0

    def __len__(self) -> int:
        return min(self.steps, super().__len__())


def shared_task(recipe: Recipe, few: bool) -> Task:
    """The task with its epochs cut to `STEPS`, the network in the memory layout that processors are fastest in."""
    own = task(recipe)
    own = own.quick() if few else own
    own.dense.to(memory_format=torch.channels_last)
    steps, whole, by = STEPS[recipe.model], own.train, dataclasses.replace(recipe, batch=128)
    return dataclasses.replace(own, train=lambda epoch: Part(**vars(whole(epoch)) | {"recipe": by}, steps=steps))


# --- how each method is run ------------------------------------------------------------------


def teacher(own: Task) -> nn.Module:
    """The dense network, for distillation."""
    return copy.deepcopy(own.dense).requires_grad_(False).eval()


def on_fixed_grid(own: Task, recipe: Recipe, case: Case) -> tuple[opq.Result, float]:
    """One shot, then weight-only training on masks and steps that stay: `rd`, `opq` and the baselines."""
    start = time.process_time()
    model = copy.deepcopy(own.dense)
    plan: opq.Plan | opq.Result
    lr = recipe.lr if case.method == "rd" else recipe.lr / 5  # the recipe's is made for the few coarse levels of rd
    if case.method == "rd":
        plan = planned(model, recipe, case.options["ratio"])
    else:
        probe = {"probe": False} if case.method == "opq" else {}
        plan = opq.compress(model, method=case.method, **case.options, **probe)
    trained = finetune(model, plan, own.train, teacher=teacher(own), epochs=case.epochs, distill=recipe.distill,
                       temperature=recipe.temperature,
                       optimizer=lambda p: torch.optim.AdamW(p, lr, weight_decay=recipe.decay, fused=True))  # fmt: skip
    return trained.result, time.process_time() - start


class Clock:
    """Processor seconds of one row, interrupted runs included: a progress callback that keeps them in a file."""

    def __init__(self, path: Path):
        self.path, self.start = path, time.process_time()
        self.before = float(path.read_text()) if path.exists() else 0.0
        self.written = self.start

    @property
    def seconds(self) -> float:
        return self.before + time.process_time() - self.start

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.process_time() - self.written > 5:
            self.written = time.process_time()
            self.path.write_text(str(self.seconds))


def by_itself(own: Task, recipe: Recipe, case: Case) -> tuple[opq.Result, float]:
    """Methods that train on their own; interrupted, they go on where they were."""
    stages = 2 if case.method in ("kmeans", "pq") else 1
    options = dict(case.options)
    first = case.epochs - sum(how["epochs"] for how in case.again)
    calls = [{"epochs": first // stages} | options.pop("method_options", {}), *case.again]
    CACHE.mkdir(exist_ok=True)
    name = "methods-" + "-".join(case.key).replace(" ", "").replace("/", "")
    clock, model = Clock(CACHE / f"{name}.seconds"), copy.deepcopy(own.dense)
    for number, how in enumerate(calls):
        checkpoint = CACHE / (f"{name}.again{number}" if number else name)
        distill = {"distill": recipe.distill} | ({"teacher": own.dense} if number else {})
        result = opq.compress(model, method=case.method, data=own.train, checkpoint=checkpoint, progress=clock,
                              method_options=distill | how, **options)  # fmt: skip
        model.load_state_dict(result.state_dict())
    for left in CACHE.glob(f"{name}.*"):
        left.unlink()
    return result, clock.seconds


# --- the table -------------------------------------------------------------------------------

STEPS = {"lenet-300-100": 468, "lenet-5": 234, "resnet-20": 50}
"""Training steps, of 128 images each, that count as one epoch: all of the images, a half, an eighth."""
EPOCHS = {"lenet-300-100": 6, "lenet-5": 4, "resnet-20": 2}
"""Of so many steps; even, since two stages share them."""
RATIOS = {"lenet-300-100": (60, 120, 240), "lenet-5": (100, 300), "resnet-20": (10, 16)}
CODEBOOK_RATIOS = {"lenet-300-100": (30, 60), "lenet-5": (38, 100), "resnet-20": (10, 16)}
LAMBDAS = {"lenet-300-100": (0.3, 3), "lenet-5": (0.3, 3), "resnet-20": (1,)}
OLMP = {
    "lenet-300-100": ((0.06, 0.01, 40, 12), (0.06, 0.01, 56, 12), (0.06, 0.01, 96, 12), (0.06, 0.01, 120, 13),
                      (0.06, 0.02, 48, 12), (0.07, 0.02, 32, 12)),
    "lenet-5": ((0.05, 0.01, 40, 16),),
    "resnet-20": ((0.05, 0.02, 8, 3),),
}  # fmt: skip
"""delta, learning rate, epochs, of these pruning: OLMP cannot do with fewer."""
OLMP_PENALISED = {
    "lenet-300-100": ((0.02, 0.01, 48, 12), (0.05, 0.01, 48, 12), (0.1, 0.01, 64, 16)),
    "lenet-5": ((0.02, 0.01, 40, 12), (0.03, 0.01, 80, 12)),
    "resnet-20": (),
}
"""The same, from the dense networks of finetune.py."""
DEEP = {"bounds": (-1.3, 20.0), "sigma": 2.0}
"""Options of OLMP for networks that do not bear `c = 0` in all layers at once, which prunes half of every layer: deep
ones, and those that are pruned already."""
GENTLE = {"delta": 0.008, "lr": 0.001, "optimizer": "adam", "search_batches": 4, "evaluations": 160} | DEEP
"""Options of further calls of OLMP."""
OLMP_AGAIN = {
    "lenet-5": (((0.02, 0.01, 40, 12), ({"epochs": 60, "prune_epochs": 10}, {"epochs": 50, "prune_epochs": 5})),),
}
"""Of `OLMP_PENALISED`, and epochs of further calls, each on the result of the one before and distilled from the dense
network."""


def cases() -> list[Case]:
    """The full table."""
    found = []
    for model, epochs in EPOCHS.items():
        for method in ("rd", "opq", "lamp", "magnitude"):
            found += [_grid(model, method, ratio, epochs) for ratio in RATIOS[model]]
        found += [_own(model, "kmeans", f"{r}x", epochs, ratio=r) for r in CODEBOOK_RATIOS[model]]
        found += [_own(model, "pq", f"{r}x", epochs, ratio=r) for r in CODEBOOK_RATIOS[model]]
        found += [_own(model, "clipq", f"lambda {w:g}", epochs, method_options={"weight": w}) for w in LAMBDAS[model]]
        found += [_olmp(model, *how) for how in OLMP[model]]
        found += [_olmp(model, *how, penalised=True) for how in OLMP_PENALISED[model]]
        found += [_again(_olmp(model, *how, penalised=True), calls) for how, calls in OLMP_AGAIN.get(model, ())]
    return found


def _olmp(model: str, delta: float, lr: float, epochs: int, pruning: int, penalised: bool = False) -> Case:
    how: dict[str, Any] = {"delta": delta, "lr": lr, "prune_epochs": pruning, "evaluations": 400}
    how |= DEEP if model == "resnet-20" else {}
    setting = f"delta {delta:g}, lr {lr:g}, {epochs} epochs{', L1' if penalised else ''}"
    return dataclasses.replace(_own(model, "olmp", setting, epochs, method_options=how), penalised=penalised)


def _again(case: Case, calls: tuple[Mapping[str, Any], ...]) -> Case:
    again = tuple(GENTLE | own for own in calls)
    epochs = case.epochs + sum(how["epochs"] for how in again)
    deltas = [case.options["method_options"]["delta"], *(how["delta"] for how in again)]
    setting = f"delta {', then '.join(f'{d:g}' for d in deltas)}, {epochs} epochs, L1"
    return dataclasses.replace(case, setting=setting, epochs=epochs, again=again)


def _grid(model: str, method: str, ratio: int, epochs: int) -> Case:
    options: dict[str, Any] = {"ratio": ratio}
    if method in ("lamp", "magnitude"):
        options["method_options"] = {"bits": 4}
    return Case(model=model, method=method, setting=f"{ratio}x", epochs=epochs, make=on_fixed_grid, options=options)


def _own(model: str, method: str, setting: str, epochs: int, **options: Any) -> Case:
    return Case(model=model, method=method, setting=setting, epochs=epochs, make=by_itself, options=options)


def row(own: Task, case: Case, recipe: Recipe, error_dense: float) -> dict[str, Any]:
    """Compress and train, write the file, read it back, evaluate what was read."""
    result, seconds = case.make(own, recipe, case)
    path = CACHE / "methods.opq.safetensors"
    CACHE.mkdir(exist_ok=True)
    result.save(path)
    error = own.errors(opq.load(path, copy.deepcopy(own.dense)))
    size, kept = path.stat().st_size, sum(int((w != 0).sum()) for w in _weights(result))
    return {
        "model": case.model, "method": case.method, "setting": case.setting, "file_bytes": size,
        "ratio": result.source_bytes / size, "bits": 8 * size / result.elements, "kept_weights": kept,
        "weights_ratio": result.elements / max(kept, 1), "top1_dense": 100 - error_dense, "top1": 100 - error.whole,
        "error_dense": error_dense, **error.fields("error"), "steps": case.epochs * len(own.train(0)),
        "cpu_s": seconds, "device": "cpu", "published": PUBLISHED.get((case.model, case.method)),
    }  # fmt: skip


def _weights(result: opq.Result) -> list[torch.Tensor]:
    """Every floating tensor that the file holds, biases included: what is counted as a weight."""
    return [t for n, t in result.state_dict().items() if t.dtype.is_floating_point and result.plan[n].like is None]


# --- the command -----------------------------------------------------------------------------


def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a row is known by."""
    return row["model"], row["method"], row["setting"]


def quick(case: Case) -> Case:
    """The same with two short epochs and short searches."""
    options = dict(case.options)
    search = {"olmp": {"evaluations": 40, "population": 5, "prune_epochs": 1, "epochs": 2, "delta": 0.1}}
    search["clipq"] = {"evaluations": 6, "startup": 3, "epochs": 2}
    short = search.get(case.method, {})
    if short or "method_options" in options:
        options["method_options"] = dict(options.get("method_options", {})) | short
    return dataclasses.replace(case, epochs=2, options=options)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against bytes above, processor seconds against bytes below: one column a network, one curve a method.

    Rows that start from another dense network than the rest are left to the table.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    penalised = {case.key for case in cases() if case.penalised}
    rows = [r for r in rows if key(r) not in penalised]
    models = [m for m in EPOCHS if any(r["model"] == m for r in rows)]
    methods = [m for m in dict.fromkeys(c.method for c in cases()) if any(r["method"] == m for r in rows)]
    figure, axes = pyplot.subplots(2, len(models), figsize=(5.5 * len(models), 7.5), squeeze=False, sharex="col",
                                   height_ratios=(3, 2))  # fmt: skip
    for (upper, lower), model in zip(axes.T, models, strict=True):
        for number, method in enumerate(methods):
            own = [r for r in rows if key(r)[:2] == (model, method)]
            found = sorted((r["file_bytes"] / 1e3, r["error"], r["cpu_s"]) for r in own)
            style = {"linewidth": 2.8, "color": "black"} if method == "rd" else {"color": f"C{number - 1}"}
            for axis, column in ((upper, 1), (lower, 2)):
                axis.plot([f[0] for f in found], [f[column] for f in found], marker="o", label=method, **style)
        dense = next(r["error_dense"] for r in rows if r["model"] == model)
        upper.axhline(dense, color="gray", linestyle=":", label="dense")
        upper.set(title=model, ylim=(0.8 * dense, max(3 * dense, dense + 3)))
        lower.set(xscale="log", yscale="log", xlabel="kilobytes of the file")
        for axis in (upper, lower):
            axis.grid(alpha=0.3, which="both")
        for axis in (lower.xaxis, lower.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("test error (%)")
    axes[1][0].set_ylabel("processor seconds")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=5, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="LeNet-300-100 on few images, printed only: does it run?")
    parser.add_argument("--model", nargs="+", choices=[*EPOCHS], default=[*EPOCHS])
    parser.add_argument("--method", nargs="+", default=None)
    parser.add_argument("--setting", nargs="+", default=None, help="only these settings, as the table prints them")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--again", action="store_true", help="make rows anew that are there already")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so many seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    wanted = [c for c in cases() if c.model in arguments.model and c.method in (arguments.method or [c.method])]
    wanted = [c for c in wanted if c.setting in (arguments.setting or [c.setting])]
    if arguments.quick:
        one = {c.method: quick(c) for c in wanted if c.model == "lenet-300-100" and not c.penalised}
        rows = run(list(one.values()), [], arguments.seconds, few=True)
    else:
        before = results.held("methods")
        done = set() if arguments.again else set(map(key, before))
        rows = run([c for c in wanted if c.key not in done], before, arguments.seconds)
        if rows:
            draw(rows, PICTURE)
    results.show(rows, COLUMNS, "The published methods: test error (%) and bytes of the file")
    missing = [" ".join(c.key) for c in cases() if c.key not in set(map(key, rows))]
    print(f"not run ({len(missing)}): " + ", ".join(missing) if missing and not arguments.quick else "")


def run(wanted: list[Case], rows: list[dict[str, Any]], seconds: float, few: bool = False) -> list[dict[str, Any]]:
    """The rows so far with the wanted ones, each written as soon as it is there."""
    start, tasks = time.perf_counter(), {}
    order = [case.key for case in cases()]
    for case in wanted:
        if time.perf_counter() - start > seconds:
            break
        if case.recipe not in tasks:
            own = shared_task(case.recipe, few)
            tasks[case.recipe] = own, own.error(own.dense)
        own, error_dense = tasks[case.recipe]
        made = row(own, case, case.recipe, error_dense)
        rows = [r for r in rows if key(r) != case.key] + [made]
        rows.sort(key=lambda r: order.index(key(r)) if key(r) in order else len(order))
        if not few:
            results.save("methods", rows)
        print(
            f"{' '.join(case.key)}: {made['file_bytes']:,} bytes, {made['error']:.2f} %, {made['cpu_s']:.0f} s",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
