"""Tables and figures of the documentation, and the rows of `examples/bench/results/` that they were taken from."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import notes
import numpy as np
from paths import ROOT

RESULTS = ROOT / "examples" / "bench" / "results"
Row = Mapping[str, Any]
Field = str | Callable[[Row], Any]
"""A field of a row, or what is computed of one."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of a page."""

    page: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    before: str
    """The last line of text before it."""


def tables(page: str) -> list[Table]:
    """The Markdown tables of a page."""
    found, lines = [], (ROOT / page).read_text().splitlines()
    for k, line in enumerate(lines):
        if notes.is_rule(line):
            end = next((n for n in range(k, len(lines)) if not lines[n].startswith("|")), len(lines))
            above = "\n".join(lines[: k - 1]).rstrip().split("\n\n")
            before = " ".join(above[-1].split())
            found.append(Table(page, notes.cells(lines[k - 1]), tuple(map(notes.cells, lines[k + 1 : end])), before))
    return found


def rows(name: str) -> list[Row]:
    """The rows of one benchmark."""
    return list(json.loads((RESULTS / f"{name}.json").read_text()))


def same(shown: str, value: float | None) -> bool:
    """Whether a number as it is written is a value, rounded to as many digits."""
    digits = len(shown.partition(".")[2])
    return value is not None and abs(float(shown.replace(",", "")) - value) <= 0.5 * 10**-digits + 1e-9


def value(row: Row, field: Field) -> Any:
    return row.get(field) if isinstance(field, str) else field(row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where one kind of table comes from."""

    results: str
    words: Mapping[str, Callable[[str], Mapping[str, Any] | None]]
    """By column: what a cell says of the row it was taken from; None where the row is none of ours."""
    numbers: Mapping[str, Sequence[Field]]
    """By column: what the numbers in a cell are, from left to right; a cell may stop earlier."""
    about: Callable[[str], Mapping[str, Any]] = lambda text: {}
    """What the text before the table says of all its rows."""

    def wrong(self, table: Table) -> list[str]:
        """The rows of a table that no row of the results gives."""
        known, above, found = rows(self.results), [""] * len(table.header), []
        for cells in table.rows:
            above = [cell or (up if column in self.words else "") for cell, up, column in
                     zip(cells, above, table.header, strict=True)]  # fmt: skip
            named = dict(zip(table.header, above, strict=True))
            said = [told(named[column]) for column, told in self.words.items()]
            if any(one is None for one in said):
                continue
            wanted = {k: v for one in (self.about(table.before), *said) for k, v in (one or {}).items()}
            if not any(self._is(named, wanted, row) for row in known):
                found.append(" | ".join(cells))
        return found

    def _is(self, named: Mapping[str, str], wanted: Mapping[str, Any], row: Row) -> bool:
        if any(row.get(field) != what for field, what in wanted.items()):
            return False
        for column, fields in self.numbers.items():
            shown = NUMBER.findall(named[column])
            if not all(same(n, value(row, field)) for n, field in zip(shown, fields, strict=False)):
                return False
        return True


# --- what cells say --------------------------------------------------------------------------

MODELS = {"MobileNet": "mobilenet-v1-0.75", "ResNet-20": "resnet-20", "MiniLM": "minilm", "LeNet-300": "lenet-300-100",
          "LeNet-5": "lenet-5", "ResNet-50": "resnet-50 shapes", "stories260K": "stories260k",
          "SmolLM2": "smollm2-135m", "Speaker encoder": "speaker-encoder", "g2p": "g2p",
          "Whisper": "whisper-tiny.en", "Piper": "piper"}  # fmt: skip


def model(text: str) -> dict[str, str]:
    """The network that a text begins with."""
    return {"model": next(name for start, name in MODELS.items() if text.startswith(start))}


def part(text: str) -> dict[str, str]:
    """A method of datafree.md, as its row calls it."""
    text = text.replace("`", "").replace("opq, default", "rd, trellis").replace("opq, trellis=False", "rd")
    text = text.replace("opq (rd), all parts", "rd").replace("opq, all parts", "rd")
    text = text.replace("opq, from the weights alone", "rd, weights only")
    return {"method": text.replace("opq,", "rd,")}


def of_language(text: str) -> dict[str, str]:
    """A method of the table of language models, as its row calls it."""
    text = text.replace("`", "").replace("opq, default", "opq")
    return {"method": {"opq": "rd"}.get(text, text.replace("opq,", "rd,"))}


def dense_score(row: Row) -> float | None:
    """What the dense network has of the figure that language.py gives."""
    found: float | None = row.get("perplexity_dense", row.get("errors_dense"))
    return 1.0 if found is None and "cosine" in row else found


def score(row: Row) -> float | None:
    """The figure that language.py gives: a perplexity, errors in percent, or a cosine."""
    return next((row[name] for name in ("perplexity", "errors", "cosine") if name in row), None)


def exactly(field: str, form: str = "{}") -> Callable[[str], dict[str, str]]:
    """The cell, put into a form, is a field of the row."""
    return lambda text: {field: form.format(text.replace("`", ""))}


def nothing(text: str) -> dict[str, str]:
    return {}


def sent(text: str) -> dict[str, str]:
    """`METHOD, what it is given`."""
    method, _, what = text.replace("`", "").rpartition(", ")
    return {"method": method, "what": what}


def baseline(text: str) -> dict[str, str]:
    return {"method": {"magnitude": "magnitude", "LAMP": "lamp", "k-means": "kmeans"}[text.split(",", maxsplit=1)[0]]}


def million(field: str) -> Callable[[Row], float | None]:
    return lambda row: row[field] / 1e6 if row.get(field) is not None else None


def least(row: Row) -> float:
    return float(min(row.get("seeds", [row["top1"]])))


def most(row: Row) -> float:
    return float(max(row.get("seeds", [row["top1"]])))


def saved(rate: float) -> Callable[[Row], float]:
    """Bits that the trellis saves at equal error, where the plain grid takes so many; of the weights of a row."""

    def of(row: Row) -> float:
        own = [one for one in rows("limit") if one["model"] == row["model"]]
        grid, trellis = min(zip(own[::2], own[1::2], strict=True), key=lambda pair: abs(pair[0]["bits"] - rate))
        assert (grid["method"], trellis["method"]) == ("grid", "trellis")
        return float(grid["gap"] - trellis["gap"])

    return of


def above_limit(rate: float) -> Callable[[Row], float]:
    """Bits above the rate-distortion function at a rate, between the rows of a method and its weights."""

    def of(row: Row) -> float:
        own = [one for one in rows("limit") if all(one[k] == row[k] for k in ("model", "method"))]
        bits, gaps = zip(*sorted((one["bits"], one["gap"]) for one in own), strict=True)
        return float(np.interp(rate, bits, gaps))

    return of


LENET: Callable[[str], Mapping[str, Any]] = lambda text: {"model": "lenet-300-100"}  # noqa: E731
KEPT: Sequence[Field] = ("kept_weights", "weights_ratio")
FILE: Sequence[Field] = ("file_bytes", "ratio")
STAGES = ("read", "statistics", "sample", "quantize", "encode", "verify", "write")

SAVED, RATES = "bits saved at equal error, over the plain grid with the best dead zone", (4, 3, 2.5, 2, 1.5, 1.25)
LIMITS = (0.75, 1, 1.25, 1.5, 2, 3, 4)
PARTS = ("network", "method", "bits per parameter", "dense", "score", "samples")
OF_PARTS = Source(
    results="datafree",
    words={"network": model, "method": part},
    numbers={
        "bits per parameter": ("bits",),
        "dense": ("top1_dense",),
        "score": ("top1", least, most),
        "samples": ("samples",),
    },
)

HALVES = (*PARTS[:3], "half for choices", "half for figures", "dense, both halves")
OF_HALVES = Source(
    results="datafree",
    words={"network": model, "method": part},
    numbers={
        "bits per parameter": ("bits",),
        "half for choices": ("top1_choices",),
        "half for figures": ("top1_figures",),
        "dense, both halves": ("top1_dense_choices", "top1_dense_figures"),
    },
)

SOURCES: dict[tuple[str, tuple[str, ...]], Source] = {
    ("docs/datafree.md", ("network, figure", "method", "bits per parameter", "dense", "figure", "divergence")): Source(
        results="language",
        words={"network, figure": model, "method": of_language},
        numbers={
            "bits per parameter": ("bits",),
            "dense": (dense_score,),
            "figure": (score,),
            "divergence": ("divergence",),
        },
    ),
    **dict.fromkeys([("docs/datafree.md", PARTS), ("docs/research.md", PARTS)], OF_PARTS),
    ("docs/research.md", HALVES): OF_HALVES,
    ("docs/datafree.md", (SAVED, *(f"{rate:g} bits" for rate in RATES))): Source(
        results="limit",
        words={SAVED: lambda text: {"model": text.split(maxsplit=1)[0]}},
        numbers={f"{rate:g} bits": (saved(rate),) for rate in RATES},
    ),
    ("docs/mathematics.md", ("", *(f"{rate:g} bits" for rate in LIMITS))): Source(
        results="limit",
        words={"": lambda text: dict(zip(("model", "method"), text.split(", "), strict=True))},
        numbers={f"{rate:g} bits": (above_limit(rate),) for rate in LIMITS},
    ),
    (
        "docs/finetune.md",
        ("network", "learnt from", "bits", "ratio", "dense", "compressed", "trained", "epochs", "seed"),
    ): Source(
        results="photographs",
        words={"network": model, "learnt from": exactly("method", "rd, {}")},
        numbers={
            "bits": ("budget",),
            "ratio": ("ratio",),
            "dense": ("top1_dense",),
            "compressed": ("top1_start",),
            "trained": ("top1",),
            "epochs": ("epochs",),
            "seed": ("seed",),
        },
    ),
    ("docs/finetune.md", ("changed", "top-1", "agreement, held back", "distance, held back")): Source(
        results="steering",
        words={"changed": exactly("method")},
        numbers={
            "top-1": ("top1",),
            "agreement, held back": ("agreement",),
            "distance, held back": ("distance",),
        },
    ),
    ("docs/finetune.md", ("network", "file", "ratio", "dense error", "one shot", "fine-tuned")): Source(
        results="finetune",
        words={"network": model},
        numbers={
            "file": ("file_bytes",),
            "ratio": ("ratio",),
            "dense error": ("error_dense", "epochs"),
            "one shot": ("error_oneshot",),
            "fine-tuned": ("error",),
        },
    ),
    (
        "docs/finetune.md",
        ("", "batch", "dense step", "by torch's operations", "by the compiled kernel", "both under `torch.compile`",
         "peak memory: dense, torch's, kernel"),
    ): Source(
        results="finetune",
        words={"": model},
        numbers={
            "batch": ("batch",),
            "dense step": ("step_ms_dense",),
            "by torch's operations": ("top1",),
            "by the compiled kernel": ("native",),
            "both under `torch.compile`": ("compiled",),
            "peak memory: dense, torch's, kernel": ("memory_mb_dense", "memory_mb", "memory_mb_native"),
        },
    ),
    (
        "docs/methods/index.md",
        ("method", "setting", "bytes", "smaller", "fewer weights", "error", "steps", "seconds",
         "published on this network"),
    ): Source(
        results="methods",
        words={"method": exactly("method"), "setting": exactly("setting")},
        numbers={
            "bytes": ("file_bytes",),
            "smaller": ("ratio",),
            "fewer weights": ("weights_ratio",),
            "error": ("error",),
            "steps": ("steps",),
            "seconds": ("cpu_s",),
        },
        about=model,
    ),
    (
        "docs/methods/opq.md",
        ("method", "by the paper's count", "real", "bytes of the file", "compressed", "trained"),
    ): Source(
        results="photographs",
        words={"method": exactly("method")},
        numbers={
            "by the paper's count": ("nominal_ratio",),
            "real": ("ratio",),
            "bytes of the file": ("file_bytes",),
            "compressed": (lambda row: row.get("top1_start", row["top1"]),),
            "trained": ("top1",),
        },
        about=model,
    ),
    (
        "docs/methods/baselines.md", ("method", "asked for", "bytes of the file", "error", "processor seconds"),
    ): Source(
        results="methods",
        words={"method": baseline, "asked for": exactly("setting")},
        numbers={"bytes of the file": FILE, "error": ("error",), "processor seconds": ("cpu_s",)},
        about=LENET,
    ),
    (
        "docs/methods/clipq.md", ("lambda", "kept weights", "error", "bytes of the file", "processor seconds"),
    ): Source(
        results="methods",
        words={"lambda": exactly("setting", "lambda {}")},
        numbers={
            "kept weights": KEPT, "error": ("error",), "bytes of the file": FILE, "processor seconds": ("cpu_s",),
        },
        about=LENET,
    ),
    (
        "docs/methods/pq.md", ("network", "dense error", "bytes of the file", "error", "processor seconds"),
    ): Source(
        results="methods",
        words={"network": lambda text: {**model(text), "method": "pq"}},
        numbers={
            "dense error": ("error_dense",), "bytes of the file": FILE, "error": ("error",),
            "processor seconds": ("cpu_s",),
        },
    ),
    (
        "docs/methods/olmp.md",
        ("delta", "learning rate", "epochs", "kept weights", "error", "bytes of the file", "processor seconds"),
    ): Source(
        results="methods",
        words={"epochs": lambda text: {"model": "lenet-300-100", "method": "olmp"}},
        numbers={
            "delta": (lambda row: float(NUMBER.findall(row["setting"])[0]),),
            "learning rate": (lambda row: float(NUMBER.findall(row["setting"])[1]),),
            "epochs": (lambda row: float(NUMBER.findall(row["setting"])[2]),),
            "kept weights": KEPT,
            "error": ("error", "error_dense"),
            "bytes of the file": FILE,
            "processor seconds": ("cpu_s",),
        },
    ),
    (
        "docs/scaling.md",
        ("checkpoint", "weights", "bits", "rounds", "seconds", "processor s", "peak memory", *STAGES),
    ): Source(
        results="scale",
        words={"rounds": lambda text: {"method": "rd"}},
        numbers={
            "checkpoint": ("GB",), "weights": (million("weights"),), "bits": ("bits",), "rounds": ("rounds",),
            "seconds": ("seconds",), "processor s": ("cpu_s",), "peak memory": ("peak_MB",),
            **{stage: (stage,) for stage in STAGES},
        },
    ),
    ("docs/howto/updates.md", ("from, to", "sent", "bytes", "seconds", "to apply")): Source(
        results="updates",
        words={"from, to": exactly("model"), "sent": sent},
        numbers={"bytes": ("bytes", "new_bytes"), "seconds": ("seconds",), "to apply": ("apply_seconds",)},
    ),
    (
        "docs/howto/web.md",
        ("network", "read by", "bytes", "first reading, s", "then, M weights/s", "download and first reading, s"),
    ): Source(
        results="web",
        words={"network": exactly("model"), "read by": exactly("method")},
        numbers={
            "bytes": ("file_bytes",), "first reading, s": ("first_seconds",), "then, M weights/s": ("decode_rate",),
            "download and first reading, s": ("seconds",),
        },
    ),
    ("docs/trust.md", ("run", "cases", "refused", "read", "crashes", "hangs", "wrong results", "memory")): Source(
        results="reliability",
        words={"run": lambda text: {"what": "files made wrong, seed 1"} if "reliability.py" in text else None},
        numbers={
            "cases": ("tried",), "refused": ("refused",), "read": ("read",), "crashes": ("crashes",),
            "hangs": ("hangs",), "wrong results": ("wrong",), "memory": (million("memory"),),
        },
    ),
}  # fmt: skip
"""Tables that come from rows, by page and header."""

WITHOUT: dict[tuple[str, str], str] = {
    ("docs/howto/updates.md", "the receiver has"): "no figures: what to send to whom",
    ("docs/mathematics.md", "Letter"): "no figures: what letters mean",
    ("docs/datafree.md", "layer"): "no figures: how each kind of layer is treated",
    ("docs/research.md", "chosen"): "no figures: which choices were made on which images",
    ("docs/finetune.md", "option"): "no figures: what each option means",
    ("docs/methods/index.md", "`method=`"): "no figures: what each method takes",
    ("docs/scaling.md", "on 16 cores"): "computed from the measured rates, and said so",
    ("docs/trust.md", "oldest"): "versions, by .ci/versions",
    ("docs/trust.md", "survived at first"): "faults by put_faults.py that tests let through before",
    ("docs/trust.md", "not executed"): "mutants by folder, by .ci/mutants",
    ("docs/trust.md", "survivors"): "mutants that survived, by .ci/mutants",
}
"""Tables that come from no row, by page and a word of the header, each with the reason."""


def checked_pages() -> list[str]:
    """The pages whose tables are compared with rows."""
    docs = ["datafree.md", "finetune.md", "mathematics.md", "research.md", "scaling.md", "trust.md"]
    docs += [f"howto/{name}.md" for name in ("export", "updates", "web")]
    methods = sorted(str(path.relative_to(ROOT)) for path in Path(ROOT / "docs/methods").glob("*.md"))
    return [*(f"docs/{name}" for name in docs), *methods]
