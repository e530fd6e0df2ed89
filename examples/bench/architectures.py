"""Many tiny architectures: does a default call serve each of them, and is the probe never worse than its absence?

    python examples/bench/architectures.py                    all of them, about ten minutes of one core
    python examples/bench/architectures.py --only whisper     those whose name holds a word
    python examples/bench/architectures.py --part 1/4         every fourth, from the first
    python examples/bench/architectures.py --dry              a table and no JSON
    python examples/bench/architectures.py --noise            how far errors differ by chance
    python examples/bench/architectures.py --page             the tables of docs/howto/models.md, from the JSON

Of each network (`tiny.py`) at 6 bits: whether inputs were made that run through it (`runs`), whether it was probed, how
many of its compressed tensors have input moments (`fed`, of `compressed`), whether a file of it loads into a new
network of its kind (`loads`) and gives there exactly the tensors that decoding gives (`equal`); and the outputs' error
on other synthetic inputs, relative to how they vary from sample to sample, by default and with `probe=False`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import results
import tiny
import torch
from torch import nn

import opq
from opq.errors import OpqError
from opq.models.batch import Batch
from opq.models.outputs import weighing
from opq.probing.inputs import synthetic
from opq.probing.sensitivity import probe

BITS = 6.0
SAMPLES = 32
"""Inputs that the outputs' error is measured on, of another seed than the probe's."""
NOISE = 1.41
"""Errors by default and without probe are two draws of rounding. Of files of one net without probe, at the budgets of
`NEAR`, the error beyond what the budget explains has this factor as standard deviation between two (`--noise`; nets of
2,600 to 8,500 weights, in the worst of them up to 3.1). Twice that is called worse."""
ABSOLUTE = 1e-6
"""An error too small to speak of."""
NEAR = (5.95, 5.97, 5.99, 6.01, 6.03, 6.05)
NOISY = ("torch.nn/lstm-cell", "torch.nn/gru-cell", "torch.nn/two-embeddings", "torch.nn/lstm", "graph/gcn-dense")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was found of one architecture; `failed` says where something raised, and what."""

    model: str
    family: str
    weights: int
    runs: bool = False
    probed: bool = False
    fed: int = 0
    compressed: int = 0
    loads: bool = False
    equal: bool = False
    error: float | None = None
    error_without: float | None = None
    failed: str = ""
    seconds: float = 0.0

    @property
    def worse(self) -> bool:
        """Whether the probe has made the outputs worse, beyond noise, or anything raised."""
        if self.error is None or self.error_without is None:
            return bool(self.failed)
        return bool(self.failed) or self.error > NOISE**2 * self.error_without + ABSOLUTE


def rows(names: Sequence[str]) -> Iterator[Row]:
    """One after the other."""
    builders = tiny.fill()
    for name in names:
        yield measured(name, builders[name])


def measured(name: str, build: tiny.Builder) -> Row:
    """One architecture; nothing but what opq says itself is let pass as its failure."""
    begun = time.process_time()
    model, again = made(build), made(build)
    row = Row(model=name, family=name.partition("/")[0], weights=sum(p.numel() for p in model.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            row = _measured(row, model, again)
        except OpqError as error:
            row = dataclasses.replace(row, failed=f"{type(error).__name__}: {str(error).splitlines()[0]}")
        except Exception as error:  # what must not happen, and is shown
            row = dataclasses.replace(row, failed=f"raw {type(error).__name__}: {str(error).splitlines()[:1]}")
    return dataclasses.replace(row, seconds=round(time.process_time() - begun, 2))


def made(build: tiny.Builder) -> nn.Module:
    """The network with the same random weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def _measured(row: Row, model: nn.Module, again: nn.Module) -> Row:
    batch = _inputs(model)
    before = None if batch is None else outputs(model, batch)
    result, without = opq.compress(model, bits=BITS), opq.compress(model, bits=BITS, probe=False)
    probed = "probe of the model" in result.basis
    row = dataclasses.replace(row, runs=batch is not None, probed=probed, compressed=len(result.plan.compressed))
    if probed:
        row = dataclasses.replace(row, fed=_fed(model, [t.name for t in result.plan.compressed]))
    state = result.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.opq.safetensors"
        result.save(path)
        loaded = opq.load(path, again)
        row = dataclasses.replace(row, loads=True)
        own = loaded.state_dict()
        same = set(own) <= set(state) and all(_same(own[n], state[n]) for n in own if isinstance(own[n], torch.Tensor))
        row = dataclasses.replace(row, equal=same)
        if batch is None or before is None:
            return row
        after = outputs(loaded, batch)
        without.save(path)
        plain = outputs(opq.load(path, again), batch)
    return dataclasses.replace(row, error=distance(before, after), error_without=distance(before, plain))


def _inputs(model: nn.Module) -> Batch | None:
    try:
        return synthetic(model, samples=SAMPLES, seed=1)
    except OpqError:
        return None


def _fed(model: nn.Module, names: Sequence[str]) -> int:
    """How many of the tensors have moments of their inputs."""
    moments = probe(model, samples=4).moments
    found = 0
    for name in names:
        with contextlib.suppress(KeyError):
            found += moments[name] is not None
    return found


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())


@torch.no_grad()
def outputs(model: nn.Module, batch: Batch) -> list[torch.Tensor]:
    """What the network gives, without its inside, in inference mode, random numbers the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [o.double() for o in weighing(batch(model))]


def distance(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Mean over the outputs of the squared error relative to their variation from sample to sample."""
    found = []
    for a, b in zip(before, after, strict=True):
        known = a.isfinite() & b.isfinite()
        a, b = a.where(known, 0), b.where(known, 0)
        varied = float((a - a.mean(0)).square().sum()) if a.dim() else float(a.square())
        if varied > 1e-12 * float(a.square().sum()):
            found.append(float((a - b).square().sum()) / varied)
    return float(f"{sum(found) / len(found):.3g}") if found else 0.0


# --- noise -----------------------------------------------------------------------------------


def noise() -> float:
    """The standard deviation, as a factor, between the errors of two files of one net that differ in chance alone."""
    deviations = [statistics.stdev(_logarithms(tiny.fill()[name])) for name in NOISY]
    return float(2.0 ** math.sqrt(2 * statistics.mean(d * d for d in deviations)))


def _logarithms(build: tiny.Builder) -> list[float]:
    """Binary logarithms of the errors at budgets near each other, each as if it had the same bits."""
    model, again = made(build), made(build)
    batch = synthetic(model, samples=SAMPLES, seed=1)
    before, found = outputs(model, batch), []
    for bits in NEAR:
        result = opq.compress(model, bits=bits, probe=False)
        again.load_state_dict(result.state_dict())
        found.append(math.log2(distance(before, outputs(again, batch))) + 2 * (result.bits - BITS))
    return found


# --- the page --------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "models.md"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"


def tables(found: Sequence[results.Row]) -> str:
    """Both tables of the page, as Markdown: one row a family, and folded one row a network."""
    order = list(tiny.fill())
    found = sorted(found, key=lambda row: order.index(row["model"]))
    families = dict.fromkeys(row["family"] for row in found)
    short = [_family(name, [row for row in found if row["family"] == name]) for name in families]
    full = [
        [
            f"{row['model']}",
            f"{row['weights']:,}",
            "yes" if row["probed"] else "no",
            f"{row['fed']} of {row['compressed']}",
            "yes" if row["equal"] else "no",
            *map(_number, (row["error"], row["error_without"])),
        ]
        for row in found
    ]
    heads = (
        ["library", "networks", "run", "probed", "equal after loading", "not worse", "largest error", "`probe=False`"],
        ["network", "weights", "probed", "fed back", "equal", "error", "`probe=False`"],
    )
    folded = ["<details><summary>Every network</summary>", "", *_markdown(heads[1], full), "", "</details>"]
    return "\n".join([*_markdown(heads[0], short), "", *folded])


def _family(name: str, found: Sequence[results.Row]) -> list[str]:
    counts = [sum(bool(row[field]) for row in found) for field in ("runs", "probed", "equal")]
    errors = [[row[f] for row in found if row[f] is not None] for f in ("error", "error_without")]
    good = sum(not row["worse"] for row in found)
    return [name, *map(str, (len(found), *counts, good)), *(_number(max(e, default=None)) for e in errors)]


def _markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]


def _number(error: float | None) -> str:
    return "" if error is None else f"{error:.2g}"


def write_page() -> None:
    """Puts the tables of the results into the page."""
    found = json.loads((results.RESULTS / "architectures.json").read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(found)}\n\n{END}{after}")


# --- command line ----------------------------------------------------------------------------


def chosen(only: Sequence[str], part: str) -> list[str]:
    """Names of the architectures asked for."""
    names = [name for name in tiny.fill() if not only or any(word in name for word in only)]
    k, n = map(int, part.split("/"))
    return names[k - 1 :: n]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--noise", action="store_true", help="only measure how far errors differ by chance")
    parser.add_argument("--page", action="store_true", help="only put the tables into docs/howto/models.md")
    asked = parser.parse_args(arguments)
    if asked.page:
        write_page()
    elif asked.noise:
        print(f"the errors of two files differ by a factor of {noise():.2f} by chance (standard deviation)")
    else:
        run(chosen(asked.only, asked.part), keep=not asked.dry)


def run(names: Sequence[str], *, keep: bool) -> None:
    """Measures, prints, and where they are to be kept writes the rows in place of those of the same networks."""
    found: list[dict[str, Any]] = []
    for row in rows(names):
        found.append(dataclasses.asdict(row) | {"worse": row.worse})
        if row.worse:
            print(f"{row.model}: {row.failed or f'{row.error} by default, {row.error_without} without'}", flush=True)
        if keep:
            results.merge("architectures", found[-1:])
    results.show(
        found,
        ["model", "weights", "runs", "probed", "fed", "compressed", "loads", "equal", "error", "error_without"],
        f"{len(found)} tiny architectures at {BITS:g} bits",
    )
    seconds = math.fsum(row["seconds"] for row in found)
    print(f"{seconds:.0f} s; {sum(row['worse'] for row in found)} worse by default or failed")


if __name__ == "__main__":
    tiny.import_torchvision()
    main(sys.argv[1:])
