"""How far the grid and the trellis are from the rate-distortion function, by the bytes of the real coder.

    python examples/bench/limit.py            about a minute

Independent Laplacian and Gaussian weights of variance one, half a million of each, are quantized by the best grid for a
rate and by the trellis, and coded; a row holds bits and error, and how many bits any method needs at least for that
error: for Gaussian weights `log2(1 / D) / 2`, for Laplacian ones by Blahut's iteration (1972). Writes
results/limit.json and draws docs/pictures/limit.png.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import results
import torch

from opq.allocation.curve import Curve
from opq.allocation.stats import TensorStats
from opq.coding import entropy
from opq.compression.problem import on_grid
from opq.plan import TensorPlan
from opq.quantizing import trellis
from opq.quantizing.grid import quantize

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "limit.png"
SHAPE = (1024, 512)
"""Of the weights: paths of 128 rows, and a tensor that is coded in chunks, as large ones are."""
RATES = (0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
"""Bits per weight on the grid; the trellis has the step at which its error is about the same."""
COLUMNS = ("model", "method", "bits", "distortion", "limit", "gap", "decibels")
REACH, SPACING, SWEEPS = 10.0, 0.025, 150
"""Of the iteration: the largest weight, the distance of points, and the sweeps for one slope."""

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


@functools.cache
def weights(name: str) -> torch.Tensor:
    """Independent weights of variance one."""
    g = np.random.default_rng(0)
    drawn = g.laplace(0, math.sqrt(0.5), SHAPE) if name == "Laplacian" else g.standard_normal(SHAPE)
    return torch.from_numpy(drawn.astype(np.float32))


def density(name: str, x: Floats) -> Floats:
    """The density of the weights at points of equal distance, as probabilities."""
    p = np.exp(-math.sqrt(2) * np.abs(x)) if name == "Laplacian" else np.exp(-(x**2) / 2)
    found: Floats = p / p.sum()
    return found


def iterated(name: str, slope: float, sweeps: int = SWEEPS) -> tuple[float, float]:
    """A point of the rate-distortion function, (bits, distortion), where `-dD/dR = slope` per bit (Blahut 1972).

    Reproductions have the density `q`; each sweep multiplies it by `sum_x p(x) k(x - y) / sum_y q(y) k(x - y)`, with
    `k(d) = exp(-s d^2)`. The rate is an upper bound that falls towards the function.
    """
    s = math.log(2) / slope
    x = np.arange(-REACH, REACH + SPACING / 2, SPACING)
    p = q = density(name, x)
    square = (x[:, None] - x) ** 2
    kernel = np.exp(-s * square)
    for _ in range(sweeps):
        q = q * (kernel.T @ (p / (kernel @ q)))
    joint = (p / (kernel @ q))[:, None] * kernel * q
    distortion = float((joint * square).sum())
    rate = -s * distortion - float(p @ np.log(kernel @ q))
    return rate / math.log(2), distortion


@functools.cache
def limit(name: str) -> tuple[Floats, Floats]:
    """Points of the rate-distortion function by falling distortion: bits, and log2 of the distortion."""
    if name == "Gaussian":
        bits = np.linspace(0, 7, 100)
        return bits, -2 * bits
    found = [(0.0, 1.0), *(iterated(name, 2 * math.log(2) * 4.0**-r) for r in (-0.45, -0.2, *np.arange(0.1, 5.8, 0.3)))]
    bits, distortion = np.array(sorted(found)).T
    return bits, np.log2(distortion)


def row(name: str, method: str, codes: npt.NDArray[np.int16], held: npt.NDArray[np.int16], step: float) -> Row:
    """What codes cost and how far they are off."""
    w = weights(name).double().numpy()
    size, distortion = len(entropy.encode(held)), float(((w - step * codes.astype(np.float64)) ** 2).mean())
    return {"model": name, "method": method, "bits": 8 * size / w.size, "distortion": distortion, "file_bytes": size}


def rows(name: str) -> list[Row]:
    """Grid and trellis at every rate, with what is possible at most."""
    w = weights(name)
    stats = TensorStats.of(w)
    curve, largest, found = Curve.of(stats), stats.max_abs, []
    for rate in RATES:
        point = curve.at_rate(rate)
        fields: dict[str, Any] = {"name": "w", "shape": SHAPE, "dtype": "F32", "action": "compress", "reason": ""}
        grid = TensorPlan(**(fields | on_grid(point, largest)))
        codes = quantize(w, grid).numpy()
        found.append(row(name, "grid", codes, codes, grid.step))
        fine = math.sqrt(point.distortion / trellis.error(rate - trellis.SAVED))
        path = quantize(w, TensorPlan(**fields, codebook="trellis", step=fine, rate=rate - trellis.SAVED)).numpy()
        found.append(row(name, "trellis", path, trellis.paths(path), fine))
    bits, logs = limit(name)
    for one in found:
        one["limit"] = float(np.interp(-math.log2(one["distortion"]), -logs, bits))
        one["gap"] = one["bits"] - one["limit"]
        one["decibels"] = 10 * math.log10(2) * 2 * one["gap"]
    return found


def plot(measured: list[Row], path: Path) -> None:
    """Error against bits, and the distance from the limit in bits, one column for each distribution."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(9, 6), sharex=True, sharey="row")
    for (above, below), name in zip(panels.T, ("Laplacian", "Gaussian"), strict=True):
        bits, logs = limit(name)
        inside = bits <= 5.2
        above.plot(bits[inside], 10 * math.log10(2) * logs[inside], color="black", label="rate-distortion function")
        for method, colour, mark in (("grid", "#2b6cb0", "o"), ("trellis", "#c2255c", "s")):
            own = [one for one in measured if one["model"] == name and one["method"] == method]
            x = [one["bits"] for one in own]
            decibels = [10 * math.log10(one["distortion"]) for one in own]
            above.plot(x, decibels, mark + "-", color=colour, label=method, markersize=3)
            below.plot(x, [one["gap"] for one in own], mark + "-", color=colour, label=method, markersize=3)
        above.set(title=f"{name} weights", ylabel="mean squared error, dB" if name == "Laplacian" else "")
        below.set(xlabel="bits per weight, coded", ylabel="bits above the limit" if name == "Laplacian" else "")
        below.set_ylim(0, 0.45)
        below.axhline(math.log2(math.pi * math.e / 6) / 2, color="gray", ls=":", lw=1)
        for panel in (above, below):
            panel.grid(alpha=0.3)
    panels[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    measured = [one for name in ("Laplacian", "Gaussian") for one in rows(name)]
    results.show(measured, COLUMNS, "Bits above the rate-distortion function")
    results.save("limit", measured)
    plot(measured, PICTURE)


if __name__ == "__main__":
    main()
