"""Sensitivities estimated from the weights alone, for use without a probe.

An error in a layer matters by its effect on the layer's outputs, relative to the variation of these outputs. Without a
model the inputs are unknown. If they are assumed to be alike in every layer except for their scale, what remains is the
error relative to the weights: the sensitivity of tensor i with weights w is `a_i = 1 / sum w^2`. More is known about
two kinds of layers.

- A convolution before a BatchNorm: the running variance `var_j` tells how much output channel j varies, and so

      a_i = x / rows * mean_j 1 / var_j,    x = median_j var_j / |w_j|^2

  where `w_j` is row j of the weights, `rows` the number of rows, and `x` the power of the inputs that the variances
  imply. If all channels are alike, this is `1 / sum w^2` again.
- A table of embeddings: an input uses few of its many rows, and the formula above, which falls with the number of
  weights, is used unchanged. If the table is the output layer too, every token uses every row. Then its sensitivity is
  that of a layer of median size.

docs/datafree.md shows what this gives, `examples/bench/datafree.py` measures it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from opq.base.arrays import Floats
from opq.compression.differences import Differences
from opq.plan import Budget
from opq.sources.base import BatchNormNames, Source, TensorSpec

FAINT_CHANNEL = 100
"""Variances smaller than the median divided by this are raised to that value. Otherwise channels of MobileNet that are
nearly constant would get all bits (`docs/research.md`, weights alone)."""

OUTLYING = 10
"""The largest ratio of the mean square to the square of the mean magnitude that is used; larger ones are lowered to it.
It is the ratio of Laplacian weights of which four fifths are zero. A larger one comes from a few outliers, and errors
that are small relative to the outliers would destroy the other weights. A choice."""

LEAST_BITS = 2.0
"""Budgets below this many bits per weight count every squared error alike. There, relative errors would leave almost no
bits to large tensors, and a network is useless once a single tensor carries no information. Measured on ResNet-20 with
a trellis, top-1: relative errors give 76.4 % instead of 73.5 at 2.5 bits, but 60.7 instead of 70.8 at 1.8 bits."""

TALL = 16
"""A matrix with at least this ratio of rows to columns is taken for a table of embeddings. The ratio is 40 and more in
language models, and 1 to 2 in classifiers of a thousand classes."""


class Power(Protocol):
    """The statistics of a tensor that are needed here."""

    @property
    def size(self) -> int:
        """Number of weights."""

    @property
    def mean_abs(self) -> float:
        """Mean magnitude of the weights."""

    @property
    def mean_square(self) -> float:
        """Mean square of the weights."""


@dataclasses.dataclass(frozen=True, slots=True)
class Means:
    """The statistics that `prior` needs of one tensor."""

    size: int
    mean_abs: float
    mean_square: float

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Means:
        """The statistics of weights of any shape; sums are computed in float64."""
        w = tensor.double()
        return cls(w.numel(), float(w.abs().mean()), float(w.square().mean())) if w.numel() else cls(0, 0.0, 0.0)


def prior(source: Source, stats: Mapping[str, Power], budget: Budget | None = None) -> dict[str, float]:
    """`a_i` of every compressed tensor by name, divided by their median; 1 for a tensor of zeros.

    Args:
        source: the network that is compressed.
        stats: statistics of the compressed tensors by name.
        budget: the budget of the file; if it is below `LEAST_BITS`, all sensitivities are 1.
    """
    if budget is not None and _bits(source, budget) < LEAST_BITS:
        return dict.fromkeys(stats, 1.0)
    sizes = sorted(found.size for found in stats.values())
    ordinary = sizes[len(sizes) // 2] if sizes else 1
    norms, outputs = paired(source, stats), set(_output_tables(source))
    a: dict[str, float] = {}
    for name, found in stats.items():
        size = min(found.size, ordinary) if name in outputs else found.size
        power = size * min(found.mean_square, OUTLYING * found.mean_abs**2)
        a[name] = 1 / power if power > 0 else 0.0
        if name in norms:
            variances = source.tensor(norms[name].running_var).double().numpy()
            a[name] = _before_norm(source.tensor(name).double().numpy(), variances) or a[name]
    known = sorted(value for value in a.values() if value > 0)
    middle = known[len(known) // 2] if known else 1.0
    return {name: value / middle or 1.0 for name, value in a.items()}


def guessed(source: Source, stats: Mapping[str, Power], budget: Budget | None) -> dict[str, float]:
    """`a_i` from the weights alone: those of the network itself, also if differences to a base are compressed."""
    if not isinstance(source, Differences):
        return prior(source, stats, budget)
    return prior(source.whole, {name: Means.of(source.whole.tensor(name)) for name in stats})


def _bits(source: Source, budget: Budget) -> float:
    """Bits that the budget allows each element of the source."""
    size = budget.bytes(elements=source.elements, source_bytes=source.bytes)
    return 8 * size / max(source.elements, 1)


def _before_norm(w: Floats, variances: Floats) -> float:
    """`a_i` of weights (channels, ...) before a BatchNorm; 0 if the variances give no information."""
    powers = np.sum(w.reshape(len(w), -1) ** 2, axis=1)  # (channels,)
    alive = (powers > 0) & (variances > 0) & np.isfinite(variances)
    least = float(np.median(variances)) / FAINT_CHANNEL
    if not (alive.any() and 0 < least < np.inf):
        return 0.0
    inputs = float(np.median(variances[alive] / powers[alive]))
    return inputs / len(w) * float(np.mean(1 / np.maximum(variances, least)))


# --- which BatchNorm follows which convolution, by their names --------------------------------


def paired(source: Source, names: Iterable[str]) -> dict[str, BatchNormNames]:
    """The BatchNorm after each convolution (or matrix) that has one, inferred from order, names and sizes.

    A state dict has its tensors in the order in which the layers were made, usually that of the forward pass. Files are
    often sorted by name instead. Then layers and BatchNorms of one module are paired: in a numbered sequence (`0`, `1`,
    `3`, `4`) a layer with the next BatchNorm, otherwise (`conv1`, `bn1`, `conv2`, `bn2`) the k-th layer with the k-th
    BatchNorm, if there are as many of both.
    """
    specs = [source.by_name[name] for name in names]
    pairs = _by_names(specs, source) if _sorted(source) else _by_order(specs, source)
    return {name: norm for name, norm in pairs.items() if _channels(source, norm) == source.by_name[name].shape[0]}


def _sorted(source: Source) -> bool:
    """Whether the order gives no information: in every file, tensors of one type are sorted by name, as safetensors
    sorts them."""
    groups: dict[object, list[str]] = {}
    for spec in source:
        groups.setdefault((source.files.get(spec.name), spec.dtype), []).append(spec.name)
    return all(names == sorted(names) for names in groups.values())


def _channels(source: Source, norm: BatchNormNames) -> int:
    return source.by_name[norm.running_var].size


def _by_order(specs: Sequence[TensorSpec], source: Source) -> dict[str, BatchNormNames]:
    """Each layer with the first BatchNorm between it and the next layer."""
    layers, norms = {spec.name for spec in specs}, {n.running_var: n for n in source.batchnorms.values()}
    found: dict[str, BatchNormNames] = {}
    last = None
    for name in source.names:
        if name in layers:
            last = name
        elif name in norms and last is not None:
            found.setdefault(last, norms[name])
    return found


def _by_names(specs: Iterable[TensorSpec], source: Source) -> dict[str, BatchNormNames]:
    """Each layer with the BatchNorm of the same module that its name suggests."""
    children: dict[str, tuple[list[TensorSpec], list[BatchNormNames]]] = {}
    for spec in specs:
        children.setdefault(_parent(_parent(spec.name)), ([], []))[0].append(spec)
    for norm in source.batchnorms.values():
        children.setdefault(_parent(norm.prefix), ([], []))[1].append(norm)
    found: dict[str, BatchNormNames] = {}
    for layers, norms in children.values():
        found |= {spec.name: norm for spec, norm in _matched(layers, norms)}
    return found


def _matched(
    layers: Sequence[TensorSpec], norms: Sequence[BatchNormNames]
) -> Iterator[tuple[TensorSpec, BatchNormNames]]:
    """The pairs among the layers and the BatchNorms of one module."""
    if not layers:
        return
    layers = sorted(layers, key=lambda spec: _natural(spec.name))
    norms = sorted(norms, key=lambda norm: _natural(norm.prefix))
    numbers = [_number(_parent(spec.name)) for spec in layers]
    behind = [_number(norm.prefix) for norm in norms]
    if all(number is not None for number in (*numbers, *behind)):
        for spec, start, end in zip(layers, numbers, [*numbers[1:], None], strict=True):
            yield from ((spec, n) for n, at in zip(norms, behind, strict=True) if _within(start, at, end))
        return
    for some in (layers, [spec for spec in layers if len(spec.shape) > 2]):
        if len(some) == len(norms):
            yield from zip(some, norms, strict=True)
            return


def _within(start: int | None, at: int | None, end: int | None) -> bool:
    return (start or 0) < (at or 0) and (end is None or (at or 0) < end)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _number(path: str) -> int | None:
    """The last part of a path if it is a number."""
    last = path.rpartition(".")[2]
    return int(last) if last.isdecimal() else None


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key for sorting names with numbers by value: `conv2` before `conv10`."""
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"(\d+)", name) if p)


# --- tables of embeddings that are output layers, too -------------------------------------------


_ENCODER = re.compile(r"(^|\.)embeddings\.[^.]+\.weight$")
"""The names of tables in encoders (BERT and similar ones, CLIP), which are not used for the outputs."""
_HEADS = ("lm_head.", "cls.predictions.", "embed_out.", "output.weight")
"""Parts of names by which output layers of language models are recognised, at the start or after a dot."""
_RECURRENT = re.compile(r"(^|[._])(ih|hh)(_l\d+)?(_reverse)?$")
"""Names of the matrices of LSTM, GRU, RNN (`weight_ih_l0`, `weight_hh_l1_reverse`) and of their cells (`weight_ih`)."""


def _output_tables(source: Source) -> list[str]:
    """Tables that compute the outputs: by name, by a tie to such a table, or as the only table of a decoder."""
    tables = [s for s in source if s.like is None and is_table(s.name, s.shape)]
    heads = {s.like or s.name for s in source if _is_head(s.name)}
    found = [spec.name for spec in tables if spec.name in heads]
    return found or [s.name for s in tables if not _ENCODER.search(s.name)]


def is_table(name: str, shape: Sequence[int]) -> bool:
    """Whether a matrix is taken for a table of embeddings, by its shape; gates of few inputs are as tall."""
    return len(shape) == 2 and shape[0] >= TALL * shape[1] and not is_recurrent(name)


def is_recurrent(name: str) -> bool:
    """Whether a matrix is that of inputs or of hidden states of a recurrent layer, by torch's names of these."""
    return _RECURRENT.search(name) is not None


def _is_head(name: str) -> bool:
    return any(name.startswith(head) or f".{head}" in name for head in _HEADS)
