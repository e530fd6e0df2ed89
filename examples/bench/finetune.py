"""Weight-only fine-tuning on fixed masks and codebooks: error against real file bytes, and what a step costs.

    python examples/bench/finetune.py [--only lenet-300-100 lenet-5 resnet-20 step] [--quick]

One shot, no iterative pruning: one plan from the weights alone, then only weights move. The LeNets are trained here
first (kept in cache/); data and ResNet-20 come from ../shared. Prints tables and writes results/finetune.json; a run of
some models keeps the rows of the others.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import results
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional

import opq
from opq.finetune import finetune
from opq.objective import Objective

CACHE = Path(__file__).parent / "cache"
COLUMNS = ("model", "method", "ratio", "nominal_ratio", "bits", "file_bytes", "error_dense", "error_oneshot", "error",
           "epochs", "seconds")  # fmt: skip
STEP_COLUMNS = (
    "model",
    "method",
    "metric",
    "batch",
    "step_ms_dense",
    "step_ms",
    "top1",
    "memory_mb_dense",
    "memory_mb",
)


# --- recipes ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is compressed and trained; the same for every ratio on its curve."""

    model: str
    ratios: tuple[float, ...]
    """Real ratios to reach: fp32 bytes over bytes of the file."""
    epochs: int
    lr: float
    decay: float
    """Of AdamW: pulls levels down, so that the codes stay cheap while they move."""
    batch: int = 128
    headroom: float = 1.0
    """The plan asks for `ratio * headroom`: training spreads the levels, which costs bits."""
    fineness: float = 1.0
    """The plan's steps are divided by this, masks as planned: finer levels train better than the one-shot optimum."""
    feedback: bool = False
    """Whether training starts from codes after error feedback; at very low rates feedback spreads too far."""
    alpha: float = 0.5
    """Exponent of the probe's sensitivities (from noise, no data). They are local: the further from the dense network,
    the less they say, so the smaller the exponent."""
    distill: float = 0.9
    temperature: float = 4.0
    dense_epochs: int = 20


RECIPES = (
    Recipe(model="lenet-300-100", ratios=(92, 100, 150), epochs=20, lr=1e-2, decay=0.03, headroom=1.5, alpha=0.15,
           fineness=1.4),
    Recipe(model="lenet-5", ratios=(298, 400), epochs=8, lr=1e-2, decay=0.1, headroom=1.26, alpha=0.15, dense_epochs=6),
    Recipe(model="resnet-20", ratios=(20,), epochs=10, lr=2e-3, decay=1e-2, headroom=1.05, feedback=True),
)  # fmt: skip


# --- data ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Shuffled:
    """One epoch of batches in an order of its own; images perhaps shifted and flipped."""

    images: zoo.Images
    hint: Any
    batch: int
    epoch: int
    augment: bool = False

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        for which in order[: len(self) * self.batch].split(self.batch):
            x = zoo.normalised(self.images.pixels[which], self.hint)
            yield shifted(x, generator) if self.augment else x, self.images.labels[which]


def shifted(x: Tensor, generator: torch.Generator, most: int = 4) -> Tensor:
    """Each image moved by up to `most` pixels either way over zeros, and mirrored or not."""
    n, _, height, width = x.shape
    padded = functional.pad(x, (most,) * 4)
    dy, dx = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator)
    columns = torch.arange(width).expand(n, width)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, width - 1 - columns, columns) + dx
    rows = torch.arange(height) + dy
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A dense network, its data and its name."""

    name: str
    dense: nn.Module
    train: Callable[[int], Shuffled]
    test: zoo.Images

    def error(self, model: nn.Module) -> float:
        """Percent of the test images that the model gets wrong."""
        return 100 - zoo.top1(model, self.test, 1000)

    def quick(self) -> Task:
        """The same on a few images, to see that the script runs."""
        few = slice(0, 512)

        def train(epoch: int) -> Shuffled:
            whole = self.train(epoch)
            return dataclasses.replace(whole, images=whole.images[few])

        return dataclasses.replace(self, train=train, test=self.test[few])


def task(recipe: Recipe) -> Task:
    """The task of a recipe; a LeNet is trained first, unless an earlier run left it in the cache."""
    read = zoo.cifar10 if recipe.model == "resnet-20" else zoo.mnist
    train, test = read("train"), read("test")
    make = {"lenet-300-100": zoo.LeNet300, "lenet-5": zoo.LeNet5, "resnet-20": zoo.resnet20}[recipe.model]
    torch.manual_seed(0)
    model = make()
    augment = recipe.model == "resnet-20"
    own = Task(recipe.model, model, lambda e: Shuffled(train, model.input_hint, recipe.batch, e, augment), test)
    if recipe.model == "resnet-20":
        return own
    return dataclasses.replace(own, dense=trained_densely(own, recipe.dense_epochs))


def trained_densely(own: Task, epochs: int) -> nn.Module:
    """The dense network: Adam at 1e-3 with a cosine schedule."""
    path = CACHE / f"{own.name}.pt"
    if not path.exists():
        finetune(own.dense, keep_all(own.dense), own.train, epochs=epochs, lr=1e-3)
        torch.save(own.dense.state_dict(), path)
    own.dense.load_state_dict(torch.load(path, weights_only=True))
    return own.dense.eval()


def keep_all(model: nn.Module) -> opq.Plan:
    """The plan that compresses nothing: the same loop then trains the dense network."""
    return opq.solve(model, bits=33, probe=False, overrides={"*": "keep"})


# --- one point of a curve --------------------------------------------------------------------


def planned(model: nn.Module, recipe: Recipe, ratio: float) -> opq.Plan | opq.Result:
    """What training starts from, at this ratio and the recipe's headroom, without data: a result, or the plan alone."""
    if recipe.feedback:
        return opq.compress(model, ratio=ratio * recipe.headroom, alpha=recipe.alpha)
    names = [name for name, w in model.state_dict().items() if w.dim() > 1]
    a = opq.probe(model).sensitivities(names, alpha=recipe.alpha)
    plan = opq.compress(model, ratio=ratio * recipe.headroom, probe=False, sensitivities=a).plan
    finer = (dataclasses.replace(t, step=t.step / recipe.fineness) if t.action == "compress" else t for t in plan)
    return plan.replace(tensors=tuple(finer))


def point(own: Task, recipe: Recipe, ratio: float, teacher: nn.Module, error_dense: float) -> dict[str, Any]:
    """Compress, fine-tune, write the file, read it back, evaluate what was read."""
    start = time.perf_counter()
    model = copy.deepcopy(own.dense)
    plan = planned(model, recipe, ratio)
    opq.attach(model, plan)
    error_oneshot = own.error(model)
    checkpoint = CACHE / f"{own.name}-{ratio:g}.ckpt"
    trained = finetune(model, plan, own.train, teacher=teacher, epochs=recipe.epochs, distill=recipe.distill,
                       temperature=recipe.temperature, evaluate=lambda m: after_epoch(own, m), checkpoint=checkpoint,
                       optimizer=lambda p: torch.optim.AdamW(p, recipe.lr, weight_decay=recipe.decay))  # fmt: skip
    path = CACHE / f"{own.name}-{ratio:g}.opq.safetensors"
    trained.save(path)
    loaded = opq.load(path, copy.deepcopy(own.dense))
    error = own.error(loaded)
    checkpoint.unlink()
    result = trained.result
    return {
        "model": own.name, "method": "rd", "wanted_ratio": ratio, "file_bytes": path.stat().st_size,
        "ratio": result.source_bytes / path.stat().st_size, "nominal_ratio": result.nominal.ratio, "bits": result.bits,
        "error_dense": error_dense, "error_oneshot": error_oneshot, "error": error, "top1_dense": 100 - error_dense,
        "top1_oneshot": 100 - error_oneshot, "top1": 100 - error, "epochs": recipe.epochs,
        "seconds": time.perf_counter() - start, "device": "cpu",
    }  # fmt: skip


def after_epoch(own: Task, model: nn.Module) -> float:
    """What is written into the history after an epoch: the test error. No epoch is chosen by it.

    The recipe (learning rate, decay, steps) was set by hand with test errors in view, so rows are somewhat optimistic.
    """
    return own.error(model)


def curve(own: Task, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """All points of a recipe. ResNet-20 is compared with the dense network trained for the same extra epochs."""
    reference = own.dense
    if recipe.model == "resnet-20":
        reference = copy.deepcopy(own.dense)
        finetune(reference, keep_all(reference), own.train, epochs=recipe.epochs,
                 checkpoint=CACHE / "resnet-20-dense.ckpt", evaluate=lambda m: after_epoch(own, m),
                 optimizer=lambda p: torch.optim.AdamW(p, recipe.lr, weight_decay=recipe.decay))  # fmt: skip
    dense = own.error(reference)
    for ratio in recipe.ratios:
        yield point(own, recipe, ratio, reference, dense)


# --- what a step costs -----------------------------------------------------------------------

STEPS = (("lenet-300-100", 128), ("lenet-300-100", 1024), ("lenet-5", 128), ("resnet-20", 128))


def step_row(name: str, batch: int) -> dict[str, Any]:
    """Median time of a training step, dense and attached in turns, and the peak memory of a process of each."""
    dense, attached = (step_function(name, batch, on_grid) for on_grid in (False, True))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(7 if name == "resnet-20" else 100):
        for step, seen in zip((dense, attached), times, strict=True):
            start = time.perf_counter()
            step()
            seen.append(time.perf_counter() - start)
    one, other = (1e3 * statistics.median(seen) for seen in times)
    memory = [peak_memory(name, batch, on_grid) for on_grid in (False, True)]
    return {
        "model": name, "method": "rd", "metric": "step time over dense step time", "batch": batch, "step_ms_dense": one,
        "step_ms": other, "top1_dense": 1.0, "top1": other / one, "memory_mb_dense": memory[0], "memory_mb": memory[1],
        "file_bytes": None, "ratio": None, "bits": None, "seconds": sum(map(sum, times)), "device": "cpu",
    }  # fmt: skip


def step_function(name: str, batch: int, on_grid: bool) -> Callable[[], None]:
    """One training step of the network on random inputs: forward, backward, Adam."""
    torch.manual_seed(0)
    model = {"lenet-300-100": zoo.LeNet300, "lenet-5": zoo.LeNet5, "resnet-20": zoo.ResNet20}[name]().train()
    x, y = torch.randn(batch, *model.input_hint.image_size), torch.randint(10, (batch,))
    if on_grid:
        opq.attach(model, opq.solve(model, bits=1, probe=False))
    optimizer, objective = torch.optim.Adam(model.parameters(), 1e-6), Objective("cross_entropy")

    def step() -> None:
        loss = objective(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peak_memory(name: str, batch: int, on_grid: bool) -> float:
    """Peak resident memory in MB of a process that trains a few steps."""
    command = [sys.executable, __file__, "--memory", name, str(batch), str(int(on_grid))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report_memory(name: str, batch: str, on_grid: str) -> None:
    """What the process of `peak_memory` does."""
    step = step_function(name, int(batch), on_grid == "1")
    for _ in range(5):
        step()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's, whose pages fork shares
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


# --- the command -----------------------------------------------------------------------------


def keep_rows(rows: list[dict[str, Any]], quick: bool) -> list[dict[str, Any]]:
    """Writes these rows among those of earlier runs that they do not replace, unless it is a try; returns them all."""
    if quick:
        return rows
    path = results.RESULTS / "finetune.json"
    before = json.loads(path.read_text()) if path.exists() else []
    fresh = {place(row) for row in rows}
    every = sorted([row for row in before if place(row) not in fresh] + rows, key=place)
    results.save("finetune", every)
    return every


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is about, in the order of the table."""
    models = [recipe.model for recipe in RECIPES]
    return "metric" in row, models.index(row["model"]), row.get("wanted_ratio", row.get("batch"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*(r.model for r in RECIPES), "step"], metavar="MODEL")
    parser.add_argument("--ratios", nargs="+", type=float, help="other ratios than the recipe's")
    parser.add_argument("--epochs", type=int, help="another number of epochs than the recipe's")
    parser.add_argument("--quick", action="store_true", help="few images and epochs, nothing written: does it run?")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        report_memory(*arguments.memory)
        return
    CACHE.mkdir(exist_ok=True)
    only = arguments.only or [*(r.model for r in RECIPES), "step"]
    rows: list[dict[str, Any]] = []
    for recipe in RECIPES:
        if recipe.model in only:
            ratios, epochs = tuple(arguments.ratios or recipe.ratios), arguments.epochs or recipe.epochs
            recipe = dataclasses.replace(recipe, ratios=ratios, epochs=epochs)
            quick = {"epochs": 1, "ratios": recipe.ratios[:1]} if arguments.quick else {}
            own = task(recipe)
            for row in curve(own.quick() if arguments.quick else own, dataclasses.replace(recipe, **quick)):
                rows.append(row)
                keep_rows(rows, arguments.quick)
    rows += [step_row(*which) for which in STEPS] if "step" in only else []
    rows = keep_rows(rows, arguments.quick)
    results.show(
        [r for r in rows if "metric" not in r], COLUMNS, "Error (%) against real file bytes, one plan, weights trained"
    )
    results.show([r for r in rows if "metric" in r], STEP_COLUMNS, "A training step, attached over dense (column top1)")


if __name__ == "__main__":
    main()
