"""A tensor's weights as codes: on a grid, into a table of values, or into a codebook of vectors.

Letters: `w` weights, `q` codes, `step` = Delta, `b` bits of a kept weight.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from opq.base.counts import entropy
from opq.base.rounding import rounded
from opq.file import stored as payloads
from opq.methods.product import ProductCode, by_frequency, decode


@dataclasses.dataclass(frozen=True, eq=False)
class Coded:
    """One tensor, ready for the file."""

    stored: payloads.Stored
    weights: torch.Tensor
    """The weights as the file will be decoded, float32."""
    fields: Mapping[str, Any]
    """Fields of its `TensorPlan`."""

    @functools.cached_property
    def kept(self) -> int:
        """The number of weights that are not zero."""
        return int((self.weights != 0).sum())


def on_grid(name: str, w: torch.Tensor, b: int, *, least: int = 0) -> Coded:
    """Weights on a symmetric grid: `q = sign(w) max(least, round(|w|/step))`, `step = max|w| / (2^(b-1) - 1)`.

    Zeros stay zero. With `least=1` no other weight becomes zero, so that the mask of `w` is preserved.
    """
    magnitude = w.detach().float().abs()
    top = float(magnitude.max()) if w.numel() else 0.0
    step = rounded(top / (2 ** (b - 1) - 1), 24) if top else 1.0
    kept = magnitude > 0
    q = torch.copysign((magnitude * (1.0 / step) + 0.5).floor_().clamp_(min=float(least)), w) * kept
    codes = q.to(torch.int16)
    seen = (codes.double() * step).float()
    smallest = float(magnitude[codes != 0].min()) if top else step
    fields = {"step": step, "threshold": rounded(smallest * (1 - 1e-4), 24), "rounding": 0.5}
    return Coded(payloads.Grid(name, codes.numpy()), seen, fields | _measured(w, seen, codes.numpy()))


def in_table(name: str, w: torch.Tensor, values: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> Coded:
    """Weights with few distinct values, which are rounded to float16; the first is 0, the others by falling frequency.

    Args:
        values: (K,), the first one 0.
        labels: indices into the values, in the tensor's shape.
    """
    order, rank = by_frequency(labels, len(values))
    table, indices = values[order].astype(np.float16).astype(np.float32), rank[labels].reshape(tuple(w.shape))
    seen = torch.from_numpy(table[indices])
    fields = {"codebook": "table"} | _measured(w, seen, indices)
    return Coded(payloads.Table(name, table, indices), seen, fields)


def in_product(name: str, w: torch.Tensor, product: ProductCode) -> Coded:
    """Blocks of weights with few distinct vectors."""
    seen = decode(product, tuple(w.shape))
    fields = {"codebook": "product"} | _measured(w, seen, product.labels)
    return Coded(payloads.Product(name, product.centroids, product.labels), seen, fields)


def _measured(w: torch.Tensor, seen: torch.Tensor, codes: npt.NDArray[np.integer]) -> dict[str, float]:
    """`rate` (the entropy of the codes, bits per weight), `density` and `distortion`."""
    if not w.numel():
        return {"rate": 0.0, "density": 0.0, "distortion": 0.0}
    return {
        "rate": entropy(np.unique(codes, return_counts=True)[1]) / w.numel(),
        "density": float((seen != 0).double().mean()),
        "distortion": float((w.detach().float() - seen).double().square().mean()),
    }
