"""What steers fine-tuning on pictures without labels: one thing changed at a time.

    python examples/bench/steering.py [--only lr pictures epochs trained] [--seed N]

MobileNet-V1 0.75 at 2.0 bits, compressed once with `calibration=` the photographs, then trained on them as in
`photographs.py`, its codes as they are; each row changes one of: the learning rate, the number of photographs that are
learnt from, the epochs, what is trained. Rows are written to results/steering.json as they are done, and drawn in
docs/pictures/steering.png. `distance` is the divergence from the dense network on the tenth that is held back; `top1`
is of the photographs that are scored.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import halves
import photographs
import results
import tiny
import zoo
from torch import nn

import opq

NETWORK, BITS = "mobilenet-v1-0.75", 2.0
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "steering.png"
TRIED: Mapping[str, tuple[Any, ...]] = {
    "lr": (5e-5, 5e-4, 2e-3),
    "pictures": (100, 300, 1000),
    "epochs": (1, 3, 8),
    "trained": ("biases and norms", "and statistics", "biases", "nothing"),
}
"""The values of each thing, the usual one among them. "And statistics": BatchNorm statistics follow the batches."""
NAMES = {"lr": "learning rate", "pictures": "photographs", "epochs": "epochs", "trained": "what is trained"}
COLUMNS = ("what", "value", "top1", "top1_choices", "top1_figures", "agreement", "distance", "kept", "seconds")


@dataclasses.dataclass(frozen=True)
class How:
    """One training; by default the usual one."""

    lr: float = 5e-4
    pictures: int = 1000
    epochs: int = 3
    trained: str = "biases and norms"


def scores(case: photographs.Case, file: Path, how: How, seed: int) -> dict[str, Any]:
    """One training, scored."""
    start, model = time.perf_counter(), copy.deepcopy(case.model)
    if how.trained == "biases":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.requires_grad_(False)
    trained, best, state = None, None, opq.load_state_dict(file)
    if how.trained != "nothing":
        given = {name: images.first(how.pictures) for name, images in case.given.items()}
        trained = opq.finetune(model, file, **given, epochs=how.epochs, lr=how.lr, seed=seed, codes="keep",
                               bn="update" if how.trained == "and statistics" else None,
                               progress=photographs.logged(), **case.options)  # fmt: skip
        best, state = trained.best, trained.result.state_dict()
    score = halves.top1(photographs.filled(case.model, state), zoo.imagenet_like())
    return {
        "budget": BITS, "seed": seed, "samples": 1000, "metric": "top1", **score.fields(),
        "agreement": None if best is None else 100 * best.score, "distance": None if best is None else best.distance,
        "kept": None if trained is None else trained.kept, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def place(row: results.Row) -> tuple[int, int]:
    """What a row is about, in the order of the table."""
    return list(TRIED).index(row["what"]), TRIED[row["what"]].index(row["value"])


def plot(rows: Sequence[results.Row], path: Path) -> None:
    """A panel for each thing: what is scored, against its values."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(TRIED), figsize=(13, 3.4), sharey=True)
    start = next((r["top1"] for r in rows if r["value"] == "nothing"), None)
    for axis, (what, values) in zip(axes, TRIED.items(), strict=True):
        own = {r["value"]: r["top1"] for r in rows if r["what"] == what}
        shown = [v for v in values if v in own and v != "nothing"]
        axis.plot(range(len(shown)), [own[v] for v in shown], "o" if what == "trained" else "o-", color="C0")
        labels = [f"{v:g}" if isinstance(v, float) else str(v).replace(" and ", "\nand ") for v in shown]
        axis.set_xticks(range(len(shown)), labels)
        if start is not None:
            axis.axhline(start, color="grey", linestyle=":", label="before training")
        axis.set(xlabel=NAMES[what], xlim=(-0.5, len(shown) - 0.5))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("top-1 (%)")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TRIED)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tiny.import_torchvision()
    case = photographs.CASES[NETWORK](1000)
    photographs.CACHE.mkdir(exist_ok=True)
    file = photographs.CACHE / "steering.opq.safetensors"
    opq.compress(case.model, bits=BITS, calibration=case.given["images"]).save(file)
    once = functools.cache(lambda how: scores(case, file, how, arguments.seed))  # the usual one is of every panel
    for what in arguments.only or TRIED:
        for value in TRIED[what]:
            about = {"model": NETWORK, "method": f"{NAMES[what]}: {value}", "what": what, "value": value}
            rows = results.keep("steering", [{**about, **once(How(**{what: value}))}], place)
    plot(rows, PICTURE)
    results.show(rows, COLUMNS, f"{NETWORK} at {BITS} bits, trained on photographs without labels")


if __name__ == "__main__":
    main()
