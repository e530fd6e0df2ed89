"""Writes `benchmarks.md` and its pictures from the rows that the scripts under examples/bench/ left as JSON."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

HEAD = """# Benchmarks

Everything here was measured by a script under `examples/bench/` on one machine (two CPU cores, no accelerator); each
table is the JSON that its script wrote, ratios are of one run. The accuracy of the dense network stands beside that of
the compressed one, because the data are not the usual test sets: CIFAR-10 as JPEG, and 1000 photographs with ImageNet
labels that are not in ImageNet. Bits are 8 x file bytes / parameters, everything in the file counted; `top1` is in per
cent, and for sentence embeddings the rank correlation of similarities with those of the dense network, times 100.

What the rows of opq are called, in every table and picture:

| name | what was called |
|---|---|
| **default** | `opq.compress(model, bits=...)`: the model is at hand and probed by synthetic inputs; no data |
| **trellis=False** | the same on plain grids: what fine-tuning starts from |
| **weights only** | `probe=False`, or a file of bare weights: no model is run, and accuracy is lost at low rates |
| **trellis=False, but ...** | that with one of its parts left out or replaced, to see what the part brings |
| **..., all alike** | every squared error counts alike, as for a codec: `sensitivities` of 1 |
| **rd**, **opq**, **lamp**, ... | under [Methods](#methods): what was passed as `method=`, with the setting beside it |

Start with [accuracy without data](#accuracy-without-data): that is what a user gets. The tables below it are for those
who compare codecs, fine-tune, or compress large checkpoints.
"""
TITLES = {
    "codec": "Size, error and speed beside other tools",
    "datafree": "Accuracy without data",
    "finetune": "Fine-tuned with fixed masks and codebooks",
    "scale": "Large checkpoints",
    "speed": "Time and memory of one call",
}
LAST = ("seconds", "encode_rate", "decode_rate", "decode_seconds")
COLOURS = ("#2b6cb0", "#c9822b", "#3f8f5b", "#7a5aa6", "#17202b", "#1f9aa8", "#8a5a2b", "#d77fb0", "#9aa63a", "#8893a1")
OWN, OWN_COLOUR = ("rd, trellis", "rd"), "#c2255c"
"""The package's default: the first of these that a benchmark has is drawn in this colour."""
FIRST = ("datafree", "finetune", "methods", "codec")
"""The order of the sections; others follow by name."""
DRAWN = ("rd, trellis", "rd", "rd, weights only", "nncodec", "hqq", "uniform")
"""Methods in the picture of `datafree` on the page; its table has all."""
WEIGHTS_ONLY, DEFAULT, GRID = "opq, weights only", "opq, default", "opq, trellis=False"
ALIKE, PLAIN = f"{WEIGHTS_ONLY}, all alike", f"{WEIGHTS_ONLY}, trellis=False, all alike"
NAMES = {
    "codec": {
        "rd, trellis": ALIKE,
        "rd": PLAIN,
        "rd, trellis, at that error": f"{ALIKE}, at NNCodec's error",
        "rd, at that error": f"{PLAIN}, at NNCodec's error",
    },
    "datafree": {
        "rd, trellis": DEFAULT,
        "rd": GRID,
        "rd, 150 sentences of calibration": f"{GRID}, but 150 real sentences in place of noise",
        "rd, feedback alone": f"{GRID}, but no sensitivities and no re-normalisation",
        "rd, sensitivities alone": f"{GRID}, but no feedback and no re-normalisation",
        "rd, re-normalisation alone": f"{GRID}, but no sensitivities and no feedback",
        "rd, weights only": WEIGHTS_ONLY,
        "rd, trellis alone": ALIKE,
        "rd, a=1, no correction": PLAIN,
    },
    "finetune": {"rd": "opq, fine-tuned"},
    "scale": {"rd": PLAIN},
    "speed": {"rd, trellis": DEFAULT},
}
"""By benchmark: what a row's method is called on the page, the best first."""
OTHERS = {"nncodec": "NNCodec 2", "hqq": "HQQ", "uniform": "uniform, one step a tensor"}
"""What other tools are called in the legends of pictures."""
NETWORKS = {"minilm": "MiniLM", "mobilenet-v1-0.75": "MobileNet-V1 0.75", "resnet-20": "ResNet-20"}
"""What networks are called above pictures."""
IN_README = ("rd, trellis", "nncodec", "hqq", "uniform")
"""Methods in README's picture: the default call beside other tools."""


def write(page: Path, results: Path) -> None:
    """The page, written only where it changes, so that Sphinx rebuilds it only then; its pictures beside it."""
    parts = [HEAD]
    for path in sorted(results.glob("*.json"), key=_place):
        rows = json.loads(path.read_text())
        if not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
            continue
        called = NAMES.get(path.stem, {})
        methods = DRAWN if path.stem == "datafree" else None
        title = TITLES.get(path.stem, path.stem.replace("_", " ").capitalize())
        parts += [f"## {title}\n", f"`python examples/bench/{path.stem}.py`\n"]
        if path.with_suffix(".png").exists():
            parts.append(f"![{title}](../examples/bench/results/{path.stem}.png)\n")
        elif draw(rows, page.parent / "pictures" / f"bench_{path.stem}.png", methods=methods, called=called):
            parts.append(f"![Score against bits per weight, one panel a network](pictures/bench_{path.stem}.png)\n")
        parts += [text for group in alike(ordered(rows, called)) for text in (*table(group), "")]
    if len(parts) == 1:
        parts.append("No results yet: run a script under `examples/bench/`.\n")
    text = "\n".join(parts)
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def _place(path: Path) -> tuple[int, str]:
    return (FIRST.index(path.stem) if path.stem in FIRST else len(FIRST), path.stem)


def ordered(rows: Sequence[Row], called: Mapping[str, str]) -> list[Row]:
    """The rows of each network together, its best method first and from many bits to few, under the page's names."""
    if not called:
        return list(rows)
    models, ranks = list(dict.fromkeys(str(row.get("model")) for row in rows)), list(called)

    def place(row: Row) -> tuple[int, int, float]:
        method = str(row.get("method"))
        rank = ranks.index(method) if method in called else len(ranks)
        return (models.index(str(row.get("model"))), rank, -float(row.get("bits") or 0))

    sorted_rows = sorted(rows, key=place)
    return [{**row, "method": called.get(str(row.get("method")), row.get("method"))} for row in sorted_rows]


# --- tables ----------------------------------------------------------------------------------


def alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in groups that fill the same columns, or fewer of them."""
    groups: list[tuple[set[str], list[Row]]] = []
    for row in rows:
        filled = {k for k, v in row.items() if isinstance(v, (int, float, str))}
        for columns, group in groups:
            if filled <= columns or filled >= columns:
                group.append(row)
                columns |= filled
                break
        else:
            groups.append((filled, [row]))
    return [group for _, group in groups]


def table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table of the numbers and short words in rows; what is the same in all of them stands before it."""
    columns = list(dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, (int, float, str))))
    columns = [c for c in columns if c not in LAST] + [c for c in LAST if c in columns]
    same = {c: rows[0].get(c) for c in columns if len(rows) > 2 and len({row.get(c) for row in rows}) == 1}
    columns = [c for c in columns if c not in same]
    said = [f"In all rows: {', '.join(f'{named(c)} {cell(v)}' for c, v in same.items())}.\n"] if same else []
    right = {c for c in columns if not any(isinstance(row.get(c), str) for row in rows)}
    lines = ["| " + " | ".join(named(c) for c in columns) + " |"]
    lines.append("|" + "".join("---:|" if c in right else "---|" for c in columns))
    lines += ["| " + " | ".join(cell(row.get(c)) for c in columns) + " |" for row in rows]
    return [*said, ":::{container} measured\n", "\n".join(lines), "\n:::"]


def named(column: str) -> str:
    """A column's heading."""
    return column.replace("_", " ").replace("top1", "top-1")


def cell(value: Any) -> str:
    """A value in a few characters."""
    if value is None or isinstance(value, (dict, list)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")


# --- pictures --------------------------------------------------------------------------------


def draw(
    rows: Sequence[Row],
    path: Path,
    *,
    methods: Sequence[str] | None = None,
    called: Mapping[str, str] = {},
    most: float = 5.0,
) -> bool:
    """One panel a network, score against bits of the file, one line a method; False where there is nothing to draw.

    Args:
        methods: those to draw; all by default.
        called: what methods are called in the legend, where that is not their name.
        most: bits per weight beyond which points are left out.
    """
    from matplotlib.figure import Figure

    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        method = re.sub(r" (qp=-?\d+|\d+-bit)$", "", str(row.get("method", "")))
        scored = row.get("file_bytes") and row.get("top1") is not None and 0 < row.get("bits", 0) <= most
        if scored and (methods is None or method in methods):
            points.setdefault(str(row["model"]), {}).setdefault(method, []).append((row["bits"], row["top1"]))
    points = {model: lines for model, lines in points.items() if len(lines) > 1}
    if not points:
        return False
    figure = Figure(figsize=(3.0 * max(len(points), 2), 3.0), layout="constrained")
    every = dict.fromkeys(name for lines in points.values() for name in lines)
    own = next((name for name in OWN if name in every), None)
    names = [name for name in every if name != own]
    first = called.get(own or "", own)
    for ax, (model, lines) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        for name, held in lines.items():
            colour = OWN_COLOUR if name == own else COLOURS[names.index(name) % len(COLOURS)]
            width, label = 2.4 if name == own else 1.2, called.get(name, OTHERS.get(name, name))
            ax.plot(*zip(*sorted(held), strict=True), "o-", ms=4, color=colour, lw=width, label=label)
        dense = max((row["top1_dense"] for row in rows if row["model"] == model and "top1_dense" in row), default=None)
        if dense is not None:
            ax.axhline(dense, color="#8893a1", lw=0.8, ls="--", label="dense, 32 bits")
        ax.set(title=NETWORKS.get(model, model), xlabel="bits per weight of the file")
        ax.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("top-1 % or correlation x 100", fontsize=9)
    handles = {label: h for ax in figure.axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    order = sorted(handles, key=lambda label: label != first)
    shown = [handles[label] for label in order]
    columns = len(order) if sum(map(len, order)) < 80 else 4 if max(map(len, order)) < 28 else 2
    figure.set_figheight(2.8 + 0.2 * -(-len(order) // columns))
    figure.legend(shown, order, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, metadata=mark(rows))
    return True


def mark(rows: Sequence[Row]) -> dict[str, str | None]:
    """What a picture says of the rows that it was drawn from: a digest, by which a test knows an old one."""
    seen = [[row.get(field) for field in ("model", "method", "bits", "top1", "top1_dense")] for row in rows]
    return {"Software": None, "Source": hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]}


if __name__ == "__main__":
    HERE = Path(__file__).resolve().parent
    RESULTS = HERE.parent / "examples" / "bench" / "results"
    write(HERE / "benchmarks.md", RESULTS)
    rows = json.loads((RESULTS / "datafree.json").read_text())
    draw(rows, HERE / "pictures" / "readme.png", methods=IN_README, called=NAMES["datafree"])
