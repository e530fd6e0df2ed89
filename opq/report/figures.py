"""The data of the report: figures of every tensor of a file, read from its bytes.

The file holds codes, not weights. So rate-distortion curves are those of a Laplacian fitted to the codes (in closed
form), unless the source is given: then its own curves are computed, and its histogram is drawn.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from opq.allocation import laplace
from opq.allocation.curve import THETAS, Curve, lower_hull
from opq.allocation.stats import TensorStats
from opq.base.arrays import Floats, Ints
from opq.file.folder_reader import FolderReader
from opq.file.reader import Reader
from opq.plan import Plan, TensorPlan
from opq.quantizing.rows import divided
from opq.report import trellises
from opq.report.accounting import differences, information
from opq.sources.base import Source

POINTS = 48
"""Points of a curve, by which the page draws it and solves with it. A choice that trades the size of the page for the
accuracy of its solver."""
_FARTHEST = 1e120
"""The largest magnitude that is drawn: squares of 2^20 times this number, and their sums, are within float64."""
_STEPS = 20
"""Octaves of steps below 32 tau that a fitted curve covers. A choice: up to about 17 bits per weight."""


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """One tensor, ready to be drawn."""

    plan: TensorPlan
    bytes: int
    """Of the payload."""
    codes: Ints
    """The values that occur among the codes, ascending; empty for a kept tensor."""
    counts: Ints
    tau: float
    """Scale of the Laplacian that fits the codes best, in units of the weight; 0 where there is none."""
    curve: Curve | None
    weights: tuple[Floats, Floats] | None = None
    """Edges and density of the source's own histogram, if there is a source."""

    @property
    def sparsity(self) -> float:
        """Fraction of codes that are zero."""
        return float(self.counts[self.codes == 0].sum() / max(self.counts.sum(), 1))

    @property
    def entropy_bytes(self) -> float:
        """Zeroth-order entropy of all codes together as the file holds them, in bytes."""
        return information(self.plan, self.codes, self.counts)

    @property
    def on_trellis(self) -> bool:
        """Whether the codes follow the paths of a trellis: then there is no dead zone."""
        return self.plan.on_trellis


@dataclasses.dataclass(frozen=True, eq=False)
class Figures:
    """A whole file."""

    label: str
    plan: Plan
    tensors: tuple[Drawn, ...]
    file_bytes: int
    source_bytes: int
    elements: int
    basis: str
    """What the codes rest on, in words."""
    base: str
    """What the weights are differences to, in words; empty where they are none."""
    measured: bool
    """Whether curves are computed from the source, not from fitted Laplacians."""

    @property
    def compressed(self) -> tuple[Drawn, ...]:
        """The tensors with codes."""
        return tuple(t for t in self.tensors if t.plan.action == "compress")

    @property
    def coded_bytes(self) -> int:
        """Bytes of the payloads of codes."""
        return sum(t.bytes for t in self.compressed)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the payloads of kept tensors."""
        return sum(t.bytes for t in self.tensors if t.plan.action == "keep")

    @property
    def other_bytes(self) -> int:
        """Bytes of header and index."""
        return self.file_bytes - self.coded_bytes - self.kept_bytes


def figures(reader: Reader | FolderReader, *, label: str = "", source: Source | None = None) -> Figures:
    """The figures of an open file; tensors are decoded one at a time.

    Args:
        label: the file's name in the report.
        source: what was compressed, for its own curves and histograms.
    """
    plan, sizes = reader.plan, reader.sizes
    return Figures(
        label=label,
        plan=plan,
        tensors=tuple(_drawn(reader, t, sizes[t.name], source) for t in plan),
        file_bytes=reader.bytes,
        source_bytes=plan.source_bytes,
        elements=plan.elements,
        basis=reader.basis,
        base=differences(reader.base) if reader.base else "",
        measured=source is not None,
    )


def _drawn(reader: Reader | FolderReader, tensor: TensorPlan, size: int, source: Source | None) -> Drawn:
    none = np.zeros(0, np.int64)
    if tensor.action != "compress":
        return Drawn(tensor, size, none, none, 0.0, None)
    values_there, counts = np.unique(reader.codes(tensor.name), return_counts=True)
    codes = values_there.astype(np.int64)
    if not tensor.stepped or not _squares(tensor):
        return Drawn(tensor, size, codes, counts, 0.0, None)
    tau = fitted(codes, counts, tensor)
    if source is not None and tensor.name in source.by_name:
        values, exponents, turn = source.tensor(tensor.name), reader.exponents(tensor.name), reader.turn(tensor.name)
        values = values if turn is None else turn.matrix(values)
        values = values if exponents is None else divided(values, exponents, reader.columns(tensor.name))
        stats = TensorStats.of(values, name=tensor.name)
        reach = max(stats.max_abs, tensor.step)
        heights, edges = np.histogram(values.float().numpy(), bins=160, range=(-reach, reach), density=True)
        curve = _as_coded(Curve.of(stats), tensor, stats.mean_abs)
        return Drawn(tensor, size, codes, counts, stats.mean_abs, curve, (edges, heights))
    return Drawn(tensor, size, codes, counts, tau, _as_coded(laplacian_curve(tau), tensor, tau) if tau else None)


def _as_coded(curve: Curve, tensor: TensorPlan, tau: float) -> Curve:
    """A tensor's curve on plain grids, or on a trellis if its codes follow one."""
    return trellises.on_trellis(curve, tau) if tensor.on_trellis and tau else curve


def _squares(tensor: TensorPlan) -> bool:
    """Whether the squares of a tensor's weights, times its sensitivity, are finite; otherwise no curve is drawn.

    A file may contain any finite step and sensitivity.
    """
    return all(1 / _FARTHEST < value < _FARTHEST for value in (tensor.step, tensor.sensitivity))


def fitted(codes: Ints, counts: Ints, tensor: TensorPlan) -> float:
    """The maximum-likelihood `tau` of a Laplacian for the codes; 0 if all of them are zero.

    Maximises `sum counts log P_k(tau)`, `P_k` the mass of the cell that code k stands for. On a trellis the cells of
    its two grids overlap: see `opq.report.trellises`.
    """
    from scipy.optimize import minimize_scalar

    k, inverse = np.unique(np.abs(codes), return_inverse=True)
    n = np.bincount(inverse, weights=counts)
    if k[-1:].sum() == 0:
        return 0.0
    around = math.log(tensor.step * max(float(k @ n) / float(n.sum()), 1e-4))
    threshold = max(tensor.threshold, 1e-12 * tensor.step)
    low = np.where(k == 0, 0.0, np.maximum((k - 1 + tensor.rounding) * tensor.step, threshold))
    high = np.where(k == 0, threshold, np.maximum((k + tensor.rounding) * tensor.step, threshold * (1 + 1e-9)))

    def surprise(log_tau: float) -> float:
        tau = math.exp(log_tau)
        if tensor.on_trellis:
            return -float(n @ trellises.log_masses(k.astype(float), tensor.step / tau))
        return -float(n @ (-low / tau + np.log(-np.expm1(-(high - low) / tau))))

    found = minimize_scalar(surprise, bounds=(around - 8, around + 8), method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


def laplacian_curve(tau: float) -> Curve:
    """The rate-distortion curve of a Laplacian, from the closed form, over the steps and dead zones of `Curve.of`."""
    step, theta = (g.ravel() for g in np.meshgrid(32 * tau * np.exp2(-np.arange(0, _STEPS, 1 / 8)), THETAS))
    rate, distortion, density = laplace.quantizer(step, theta * step, tau, rounding=theta)
    on = lower_hull(rate, distortion)
    return Curve(np.log(step[on]), theta[on], rate[on], distortion[on], density[on])


def samples(curve: Curve, most: float = 12.0) -> dict[str, list[float]]:
    """`POINTS` points of a curve, denser at low rates: rate, log slope, log step, distortion, density."""
    low, high = float(curve.rate[0]), min(float(curve.rate[-1]), most)
    rate = low + (high - low) * np.linspace(0, 1, POINTS if high > low else 1) ** 2
    log_step, _, distortion, density = curve.sample(rate)
    slope = np.array([curve.log_slope(r) for r in rate])
    held = {"rate": rate, "slope": slope, "step": log_step, "distortion": distortion, "density": density}
    return {name: [float(f"{v:.5g}") for v in values] for name, values in held.items()}


def of_tensor(tensor: Drawn) -> dict[str, Any]:
    """One row of the page's tables."""
    plan = tensor.plan
    out: dict[str, Any] = {
        "name": plan.name,
        "shape": "x".join(map(str, plan.shape)) or "scalar",
        "dtype": plan.dtype,
        "action": plan.action,
        "reason": plan.reason,
        "size": plan.size,
        "bytes": tensor.bytes,
    }
    if plan.action != "compress":
        return out
    numbers = {"step": plan.step, "a": plan.sensitivity, "sparsity": tensor.sparsity, "entropy": tensor.entropy_bytes}
    return out | {"codebook": plan.codebook} | {name: float(f"{v:.6g}") for name, v in numbers.items()}


def of_histogram(tensor: Drawn) -> dict[str, Any]:
    """One tensor's codes, dead zone and density as the page's script draws them."""
    plan = tensor.plan
    return {
        "name": plan.name,
        "shape": "x".join(map(str, plan.shape)) or "scalar",
        "size": plan.size,
        "step": plan.step,
        "threshold": plan.threshold,
        "trellis": tensor.on_trellis,
        "sparsity": tensor.sparsity,
        "tau": tensor.tau,
        "codes": tensor.codes.tolist(),
        "counts": tensor.counts.tolist(),
        "weights": None if tensor.weights is None else [[float(f"{v:.4g}") for v in part] for part in tensor.weights],
    }
