"""The report's charts as matplotlib figures, for notebooks and papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from opq.base.extras import need
from opq.errors import OptionError
from opq.report.figures import Drawn, Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["overview", "bytes", "allocation", "histogram", "curves", "entropy"]
CODES, KEPT, OTHER, CHOSEN = "#2b6cb0", "#c9822b", "#8893a1", "#c2255c"
LIGHT = "#8db4dd"
"""The codes of the other one of a trellis' two grids."""
_HIGHEST = 10.0
"""Bits per weight up to which curves are drawn. A choice: few tensors get more."""


def plot(drawn: Figures, kind: Kind = "overview", *, tensor: str | None = None, ax: Axes | None = None) -> Figure:
    """One chart of the report.

    Args:
        kind: `bytes`, what the file's bytes are; `allocation`, bits per weight and sparsity of each tensor;
            `histogram`, the codes of one tensor with fitted Laplacian, and its dead zone or the two grids of its
            trellis; `curves`, rate-distortion curves with the chosen points; `entropy`, coded bytes against the
            entropy of the codes; `overview`, four of them.
        tensor: for `histogram`; the largest by default.
        ax: axes to draw on, instead of a new figure.

    Raises:
        OptionError: no such chart, or no such tensor with a grid.
        MissingExtraError: matplotlib is not installed.
    """
    plt = need("matplotlib.pyplot", "report")
    if kind not in (*_CHARTS, "overview"):
        wanted = ", ".join(["overview", *_CHARTS])
        raise OptionError("unknown chart", got=repr(kind), wanted=wanted, remedy="Name one of these.")
    if kind == "overview":
        figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
        for name, place in zip(("bytes", "allocation", "histogram", "curves"), axes.flat, strict=True):
            _CHARTS[name](drawn, place, tensor)
        figure.suptitle(drawn.label)
    else:
        figure = plt.figure(figsize=(7, 3.6), layout="constrained") if ax is None else ax.figure
        _CHARTS[kind](drawn, ax or figure.add_subplot(), tensor)
    if ax is None:
        plt.close(figure)  # else a notebook would show it twice
    return figure  # type: ignore[no-any-return]


def _bytes(drawn: Figures, ax: Axes, tensor: str | None) -> None:
    parts = [("codes", drawn.coded_bytes, CODES), ("kept", drawn.kept_bytes, KEPT), ("rest", drawn.other_bytes, OTHER)]
    left = 0
    for name, size, colour in parts:
        ax.barh(0, size / 1e3, left=left / 1e3, color=colour, label=f"{name} {size / drawn.file_bytes:.1%}")
        left += size
    ax.set(xlabel="kB", yticks=[], ylim=(-1, 1.6), title=f"{drawn.file_bytes:,} bytes")
    ax.legend(loc="upper right", ncols=3, frameon=False, fontsize=8)


def _allocation(drawn: Figures, ax: Axes, tensor: str | None) -> None:
    own = drawn.compressed
    place = np.arange(len(own))
    ax.bar(place, [8 * t.bytes / t.plan.size for t in own], color=CODES)
    ax.set(xlabel="compressed tensors, in order", ylabel="bits per weight", title="Allocation")
    other = ax.twinx()
    other.plot(place, [t.sparsity for t in own], "o", color=CHOSEN, markersize=3)
    other.set_ylim(0, 1)
    other.set_ylabel("fraction of zeros", color=CHOSEN)


def _histogram(drawn: Figures, ax: Axes, tensor: str | None) -> None:
    t = _gridded(drawn, tensor)
    step, threshold, n = t.plan.step, t.plan.threshold, t.counts.sum()
    seen = (t.counts > 2e-5 * n) | (np.abs(t.codes) < 2)
    q, counts = t.codes[seen], t.counts[seen]
    width = np.where(q == 0, 2 * threshold, step)
    if t.on_trellis:
        colours, label = np.where(q % 2 == 0, CODES, LIGHT), "codes, by their grid"
    else:
        colours, label = np.where(q == 0, OTHER, CODES), "codes"
        ax.axvspan(-threshold, threshold, color=CHOSEN, alpha=0.13, lw=0, label="dead zone")
    ax.bar(q * step, counts / n / width, width=width * 0.85, color=colours, label=label)
    if t.weights is not None:
        edges, heights = t.weights
        ax.stairs(np.where(heights > 0, heights, np.nan), edges, color="black", lw=0.8, label="weights")
    if t.tau:
        x = np.linspace(-1, 1, 400) * (np.abs(q).max() + 0.6) * step
        ax.plot(x, np.exp(-np.abs(x) / t.tau) / (2 * t.tau), color=KEPT, label="Laplacian")
    reach = (np.abs(q).max() + 0.8) * step
    ax.set(yscale="log", xlim=(-reach, reach), ylim=(0.3 / n / step, None), xlabel="weight", ylabel="density")
    kind = "trellis of step" if t.on_trellis else "step"
    ax.set_title(f"{t.plan.name}: {kind} {step:.3g}, {t.sparsity:.0%} zero", fontsize=10)
    ax.legend(frameon=False, fontsize=8)


def _gridded(drawn: Figures, name: str | None) -> Drawn:
    own = [t for t in drawn.compressed if t.plan.stepped and t.counts.size]
    found = [t for t in own if name is None or t.plan.name == name]
    if not found:
        raise OptionError(
            "no tensor with a uniform grid", got=repr(name), wanted=", ".join(t.plan.name for t in own[:5])
        )
    return max(found, key=lambda t: t.plan.size)


def _curves(drawn: Figures, ax: Axes, tensor: str | None) -> None:
    for t in drawn.compressed:
        if t.curve is None or t.curve.distortion[0] <= 0:
            continue
        seen = t.curve.rate <= _HIGHEST
        level = 10 * np.log10(np.maximum(t.curve.distortion, 1e-30) / t.curve.distortion[0])
        ax.plot(t.curve.rate[seen], level[seen], color=CODES, alpha=0.3, lw=0.8)
        rate = min(8 * t.entropy_bytes / t.plan.size, _HIGHEST)
        chosen = t.curve.distortion_at(rate) / t.curve.distortion[0]
        ax.plot(rate, 10 * np.log10(max(chosen, 1e-30)), "o", color=CHOSEN, markersize=3)
    kind = "measured" if drawn.measured else "fitted Laplacians"
    ax.set(
        xlabel="bits per weight",
        ylabel="error, dB",
        title=f"Rate and distortion ({kind}), λ = {drawn.plan.multiplier:.3g}",
    )


def _entropy(drawn: Figures, ax: Axes, tensor: str | None) -> None:
    own = [t for t in drawn.compressed if t.entropy_bytes > 0]
    ax.axline((1, 1), slope=1, color=OTHER, lw=0.8)
    ax.plot([t.entropy_bytes for t in own], [t.bytes for t in own], "o", color=CODES, markersize=4)
    over = sum(t.bytes for t in own) / max(sum(t.entropy_bytes for t in own), 1e-9) - 1
    ax.set(xscale="log", yscale="log", xlabel="entropy of the codes, bytes", ylabel="coded, bytes")
    ax.set_title(f"Coded size against entropy: {over:+.2%} in all")


_CHARTS: dict[str, Callable[[Figures, Any, str | None], None]] = {
    "bytes": _bytes,
    "allocation": _allocation,
    "histogram": _histogram,
    "curves": _curves,
    "entropy": _entropy,
}
