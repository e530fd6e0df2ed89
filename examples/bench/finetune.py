"""Weight-only fine-tuning on fixed masks and codebooks: error against real file bytes, and what a step costs.

    python examples/bench/finetune.py [--only lenet-300-100 lenet-5 resnet-20 step] [--validate] [--quick]
    python examples/bench/finetune.py --dense 0 1 2

One shot, no iterative pruning: one plan from the weights alone, then only weights move. The LeNets are trained here
first (kept in cache/), with an L1 penalty; data and ResNet-20 come from ../shared. `--validate` holds out 10,000
training images, counts errors on them and writes nothing: so the recipes of the LeNets were chosen. Without it the
network trains on all training images, and the test images are read once, by the finished file. Prints tables, writes
results/finetune.json and draws docs/pictures/finetune.png; a run of some models keeps the rows of the others.
`--dense` trains ResNet-20 itself by the recipe of its compressed copy, once a seed: what that recipe alone gains.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import halves
import results
import steps
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional

import opq
from opq.training.finetuning import finetune

CACHE = Path(__file__).parent / "cache"
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "finetune.png"
VALIDATION = 10_000
"""Training images that `--validate` holds out."""
COLUMNS = ("model", "method", "ratio", "nominal_ratio", "bits", "file_bytes", "error_dense", "error_oneshot", "error",
           "epochs", "seconds")  # fmt: skip


# --- recipes ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is compressed and trained; the same for every ratio on its curve."""

    model: str
    ratios: tuple[float, ...]
    """Real ratios to reach: fp32 bytes over bytes of the file."""
    epochs: int
    lr: float
    decay: float = 0.0
    """Of AdamW."""
    pull: float = 0.0
    """Of the L1 penalty while fine-tuning: draws levels down, so that the codes stay cheap while they move."""
    batch: int = 128
    headroom: float = 1.0
    """The plan asks for `ratio * headroom`: training spreads the levels, which costs bits."""
    fineness: float = 1.0
    """The plan's steps are divided by this, masks as planned."""
    biases: bool = False
    """Whether biases are compressed too: at 300x they would be a tenth of the file."""
    feedback: bool = False
    """Whether training starts from codes after error feedback; at very low rates feedback spreads too far."""
    alpha: float | None = None
    """Exponent of the probe's sensitivities (from noise, no data); None: all are 1, and there is no probe."""
    distill: float = 0.9
    temperature: float = 4.0
    reestimate: int = 0
    """Training batches from which BatchNorm's statistics are estimated anew at the end."""
    shift: int = 0
    """Images are moved by up to so many pixels either way, in training the dense network and in fine-tuning."""
    mirror: bool = False
    beyond: float = 0.0
    """What is moved in from beyond the edge, normalised."""
    dense_epochs: int = 20
    dense_lr: float = 1e-3
    dense_pull: float = 0.0
    """Of the L1 penalty while the dense network is trained: few large weights, many near zero."""

    @property
    def dense_name(self) -> str:
        """The dense network's name in the cache."""
        return f"{self.model}-{self.dense_epochs}-{self.batch}-{self.dense_lr:g}-{self.dense_pull:g}-{self.shift}"


BLACK = -0.1307 / 0.3081
"""A black pixel of MNIST, normalised."""

RECIPES = (
    Recipe(model="lenet-300-100", ratios=(100, 150, 200, 300), epochs=10, lr=1e-3, pull=1e-4, batch=256, headroom=1.01,
           biases=True, dense_epochs=20, dense_lr=2e-3, dense_pull=1e-4, shift=1, beyond=BLACK),
    Recipe(model="lenet-5", ratios=(298, 400), epochs=20, lr=1e-3, pull=3e-4, batch=256, headroom=1.12, biases=True,
           dense_epochs=15, dense_lr=2e-3, dense_pull=1e-4, shift=1, beyond=BLACK),
    Recipe(model="resnet-20", ratios=(20,), epochs=10, lr=3e-3, decay=0.1, headroom=0.885, feedback=True, alpha=0.5,
           reestimate=100, dense_lr=2e-3, shift=4, mirror=True),
)  # fmt: skip


# --- data ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Shuffled:
    """One epoch of batches in an order of its own; images perhaps shifted and mirrored."""

    images: zoo.Images
    hint: Any
    recipe: Recipe
    epoch: int

    def __len__(self) -> int:
        return len(self.images) // self.recipe.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        for which in order[: len(self) * self.recipe.batch].split(self.recipe.batch):
            x = zoo.normalised(self.images.pixels[which], self.hint)
            yield shifted(x, self.recipe, generator) if self.recipe.shift else x, self.images.labels[which]


def shifted(x: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `shift` pixels either way, and mirrored or not."""
    n, _, height, width = x.shape
    padded = functional.pad(x, (recipe.shift,) * 4, value=recipe.beyond)
    dy, dx = torch.randint(0, 2 * recipe.shift + 1, (2, n, 1), generator=generator)
    columns = torch.arange(width).expand(n, width)
    if recipe.mirror:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows, columns = torch.arange(height) + dy, columns + dx
    return padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def splits(read: Callable[[str], zoo.Images], validate: bool) -> tuple[zoo.Images, zoo.Images]:
    """What is trained on, and what errors are counted on: the test images, or held-out training images."""
    train = read("train")
    if not validate:
        return train, read("test")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))  # those of MNIST are sorted by class
    return train[order[:-VALIDATION]], train[order[-VALIDATION:]]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A dense network, its data and its name."""

    name: str
    dense: nn.Module
    train: Callable[[int], Shuffled]
    test: zoo.Images
    validate: bool = False
    """Whether `test` are held-out training images, to be looked at after each epoch."""
    few: bool = False
    """Whether there are few images, only to see that the script runs."""

    @property
    def suffix(self) -> str:
        """Of files in the cache."""
        return ("-validate" if self.validate else "") + ("-quick" if self.few else "")

    def error(self, model: nn.Module) -> float:
        """Percent of the test images that the model gets wrong."""
        return self.errors(model).whole

    def errors(self, model: nn.Module) -> halves.Score:
        """The same, of each half of the images, too."""
        right = halves.top1(model, self.test, 1000)
        return halves.Score(100 - right.whole, 100 - right.choices, 100 - right.figures)

    def quick(self) -> Task:
        """The same on a few images, to see that the script runs."""
        few = slice(0, 512)

        def train(epoch: int) -> Shuffled:
            whole = self.train(epoch)
            return dataclasses.replace(whole, images=whole.images[few])

        return dataclasses.replace(self, train=train, test=self.test[few], few=True)


def task(recipe: Recipe, validate: bool = False) -> Task:
    """The task of a recipe; a LeNet is trained first, unless an earlier run left it in the cache."""
    train, test = splits(zoo.cifar10 if recipe.model == "resnet-20" else zoo.mnist, validate)
    torch.manual_seed(0)
    make: dict[str, Any] = {"lenet-300-100": zoo.LeNet300, "lenet-5": zoo.LeNet5, "resnet-20": zoo.resnet20}
    model = make[recipe.model]()
    own = Task(recipe.model, model, lambda e: Shuffled(train, model.input_hint, recipe, e), test, validate)
    if recipe.model != "lenet-300-100":
        model.to(memory_format=torch.channels_last)  # convolutions of few channels take 0.6 to 0.8 of the time
    if recipe.model == "resnet-20":
        return own
    return dataclasses.replace(own, dense=trained_densely(own, recipe))


def trained_densely(own: Task, recipe: Recipe) -> nn.Module:
    """The dense network: Adam with a cosine schedule, and the recipe's L1 penalty."""
    path = CACHE / f"{recipe.dense_name}{own.suffix}.pt"
    if not path.exists():
        finetune(own.dense, keep_all(own.dense), own.train, epochs=recipe.dense_epochs, lr=recipe.dense_lr,
                 loss=penalised(own.dense, recipe.dense_pull))  # fmt: skip
        torch.save(own.dense.state_dict(), path)
    own.dense.load_state_dict(torch.load(path, weights_only=True))
    return own.dense.eval()


def penalised(model: nn.Module, pull: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy with `pull` times the sum of the magnitudes of the weights of two dimensions or more."""
    weights = [p for p in model.parameters() if p.dim() > 1 and pull]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        own = functional.cross_entropy(outputs, targets)
        return own + pull * torch.stack([w.abs().sum() for w in weights]).sum() if weights else own

    return loss


def keep_all(model: nn.Module) -> opq.Plan:
    """The plan that compresses nothing: the same loop then trains the dense network."""
    return opq.solve(model, bits=33, probe=False, overrides={"*": "keep"})


# --- one point of a curve --------------------------------------------------------------------


def planned(model: nn.Module, recipe: Recipe, ratio: float) -> opq.Plan | opq.Result:
    """What training starts from, at this ratio and the recipe's headroom, without data: a result, or the plan alone."""
    if recipe.feedback:
        return opq.compress(model, ratio=ratio * recipe.headroom, alpha=recipe.alpha, trellis=False)
    names = [name for name, w in model.state_dict().items() if w.dim() > 1]
    a = None if recipe.alpha is None else opq.probe(model).sensitivities(names, alpha=recipe.alpha)
    biases = {"*.bias": "compress"} if recipe.biases else None
    plan = opq.compress(model, ratio=ratio * recipe.headroom, probe=False, sensitivities=a, overrides=biases,
                        trellis=False).plan  # fmt: skip
    if recipe.fineness == 1:
        return plan
    finer = (dataclasses.replace(t, step=t.step / recipe.fineness) if t.action == "compress" else t for t in plan)
    return plan.replace(tensors=tuple(finer))


def point(own: Task, recipe: Recipe, ratio: float, teacher: nn.Module, error_dense: float) -> dict[str, Any]:
    """Compress, fine-tune, write the file, read it back, evaluate what was read."""
    start = time.perf_counter()
    model = copy.deepcopy(own.dense)
    plan = planned(model, recipe, ratio)
    opq.attach(model, plan)
    error_oneshot = own.error(model)
    stem = f"{own.name}-{ratio:g}{own.suffix}"
    checkpoint = CACHE / f"{stem}.ckpt"
    trained = finetune(model, plan, own.train, teacher=teacher, epochs=recipe.epochs, distill=recipe.distill,
                       temperature=recipe.temperature, loss=penalised(model, recipe.pull / (1 - recipe.distill)),
                       reestimate_bn=recipe.reestimate,
                       evaluate=own.error if own.validate else None, checkpoint=checkpoint,
                       optimizer=lambda p: adamw(p, recipe))  # fmt: skip
    path = CACHE / f"{stem}.opq.safetensors"
    trained.save(path)
    loaded = opq.load(path, copy.deepcopy(own.dense))
    error = own.errors(loaded)
    checkpoint.unlink()
    result, size = trained.result, path.stat().st_size
    if own.validate:
        print(f"{own.name} {ratio:g}: validation error after each epoch", [round(e.score, 2) for e in trained.history])
    return {
        "model": own.name, "method": "rd", "wanted_ratio": ratio, "file_bytes": size,
        "ratio": parameter_bytes(own.dense) / size, "nominal_ratio": result.nominal.ratio, "bits": result.bits,
        "error_dense": error_dense, "error_oneshot": error_oneshot, **error.fields("error"),
        "top1_dense": 100 - error_dense, "top1_oneshot": 100 - error_oneshot, "top1": 100 - error.whole,
        "epochs": recipe.epochs,
        "seconds": time.perf_counter() - start, "device": "cpu",
    }  # fmt: skip


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters in fp32: what ratios count from."""
    return 4 * sum(p.numel() for p in model.parameters())


def adamw(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of the recipe; what has one dimension (biases, BatchNorm) does not decay."""
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.decay},
              {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip
    return torch.optim.AdamW(groups, recipe.lr, fused=True)


def curve(own: Task, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """All points of a recipe. ResNet-20 is compared with the dense network trained for the same extra epochs."""
    reference = plainly(own, recipe) if recipe.model == "resnet-20" else own.dense
    dense = own.error(reference)
    for ratio in recipe.ratios:
        yield point(own, recipe, ratio, reference, dense)


def plainly(own: Task, recipe: Recipe) -> nn.Module:
    """The dense network, trained for so many epochs more by a plain run."""
    reference = copy.deepcopy(own.dense)
    checkpoint = CACHE / f"{own.name}-dense{own.suffix}.ckpt"
    finetune(torch.compile(reference), keep_all(reference), own.train, epochs=recipe.epochs, checkpoint=checkpoint,
             optimizer=lambda p: torch.optim.AdamW(p, recipe.dense_lr, fused=True))  # fmt: skip
    return reference


def alike(own: Task, recipe: Recipe, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The dense network by the recipe of its compressed copy: distilled, decayed, its statistics estimated anew.

    The row before them is of what teaches it, trained by a plain run.
    """
    start, reference = time.perf_counter(), plainly(own, recipe)
    yield densely(own, recipe, reference, "dense, a plain run", start)
    for seed in seeds:
        torch.compiler.reset()  # after many statistics were estimated anew, it would compile no more
        start, model, teacher = time.perf_counter(), copy.deepcopy(own.dense), torch.compile(reference)
        finetune(torch.compile(model), keep_all(model), lambda epoch, seed=seed: own.train(epoch + 1000 * seed),
                 teacher=teacher, epochs=recipe.epochs, distill=recipe.distill, temperature=recipe.temperature,
                 reestimate_bn=recipe.reestimate, optimizer=lambda p: adamw(p, recipe))  # fmt: skip
        yield densely(own, recipe, model, "dense, the same recipe", start) | {"seed": seed}


def densely(own: Task, recipe: Recipe, model: nn.Module, method: str, start: float) -> dict[str, Any]:
    """The row of a dense network."""
    error = own.errors(model)
    return {
        "model": own.name, "method": method, "file_bytes": None, "ratio": 1.0, "bits": 32.0, **error.fields("error"),
        "top1": 100 - error.whole, "epochs": recipe.epochs, "seconds": time.perf_counter() - start, "device": "cpu",
    }  # fmt: skip


# --- the command -----------------------------------------------------------------------------


def keep_rows(rows: list[results.Row], dry: bool) -> list[results.Row]:
    """Writes these rows among those of earlier runs that they do not replace, unless it is a try; returns them all."""
    return rows if dry else results.keep("finetune", rows, place)


def place(row: results.Row) -> tuple[Any, ...]:
    """What a row is about, in the order of the table."""
    models = [*(recipe.model for recipe in RECIPES), "minilm"]
    which = row.get("wanted_ratio", row.get("batch", 0)), row.get("seed", -1)
    return "metric" in row, models.index(row["model"]), *which


MARKS = {"lenet-300-100": (113.5, 2.18), "lenet-5": (297.7, 0.91)}
"""What OLMP reports: ratio by count of fp32 weights, and error."""


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against the real ratio, a panel a LeNet."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    figure, panels = pyplot.subplots(1, len(MARKS), figsize=(5 * len(MARKS), 4), squeeze=False)
    for axis, (model, mark) in zip(panels[0], MARKS.items(), strict=True):
        own = sorted((r for r in rows if r["model"] == model and "wanted_ratio" in r), key=lambda r: r["ratio"])
        points = [(r["ratio"], r["error"]) for r in own]
        axis.plot(*zip(*points, strict=True), "o-", label="fine-tuned, file bytes")
        axis.axhline(own[0]["error_dense"], color="grey", linestyle="--", label="dense")
        axis.plot(*mark, "x", color="tab:red", label=f"OLMP as published, {mark[0]:g}x fewer weights, iterative")
        axis.set(xscale="log", title=model, xlabel="times smaller than fp32", ylabel="test error (%)")
        axis.set_xticks([round(p[0]) for p in points])
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*(r.model for r in RECIPES), "step"], metavar="MODEL")
    parser.add_argument("--ratios", nargs="+", type=float, help="other ratios than the recipe's")
    parser.add_argument("--dense", nargs="+", type=int, metavar="SEED", help="ResNet-20 itself by the same recipe")
    parser.add_argument("--epochs", type=int, help="another number of epochs than the recipe's")
    parser.add_argument("--validate", action="store_true", help="errors on held-out training images, nothing written")
    parser.add_argument("--quick", action="store_true", help="few images and epochs, nothing written: does it run?")
    arguments = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    dry = arguments.quick or arguments.validate
    only = arguments.only or ([] if arguments.dense else [*(r.model for r in RECIPES), "step"])
    rows: list[dict[str, Any]] = []
    for recipe in RECIPES:
        if recipe.model in only:
            ratios, epochs = tuple(arguments.ratios or recipe.ratios), arguments.epochs or recipe.epochs
            recipe = dataclasses.replace(recipe, ratios=ratios, epochs=epochs)
            quick = {"epochs": 1, "ratios": recipe.ratios[:1]} if arguments.quick else {}
            own = task(recipe, arguments.validate)
            for row in curve(own.quick() if arguments.quick else own, dataclasses.replace(recipe, **quick)):
                rows.append(row)
                keep_rows(rows, dry)
    if arguments.dense:
        recipe = next(r for r in RECIPES if r.model == "resnet-20")
        recipe = dataclasses.replace(recipe, epochs=1 if arguments.quick else arguments.epochs or recipe.epochs)
        own = task(recipe, arguments.validate)
        for row in alike(own.quick() if arguments.quick else own, recipe, arguments.dense):
            rows.append(row)
            keep_rows(rows, dry)
    rows += [steps.step_row(*which) for which in steps.STEPS] if "step" in only else []
    rows = keep_rows(rows, dry)
    if not dry:
        plot(rows, PICTURE)
    results.show(
        [r for r in rows if "metric" not in r], COLUMNS, "Error (%) against real file bytes, one plan, weights trained"
    )
    results.show([r for r in rows if "metric" in r], steps.COLUMNS, steps.TITLE)


if __name__ == "__main__":
    main()
