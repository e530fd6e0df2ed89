"""Tensor -> `TensorStats`: a histogram of float32 bit patterns, counted in one pass; two of them can be merged.

A bin is the top 17 bits of the float32 pattern: sign, exponent and 8 bits of mantissa. This makes 256 bins per octave
over the whole range of float32, so that neither the scale nor outliers need to be known in advance. The histogram
consists of integers, so it is the same however the tensor is split into chunks and shared among threads and ranks.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools

import numpy as np
import torch

from opq.base.arrays import Floats, Ints
from opq.errors import NonFiniteError

SHIFT = 15
"""Low bits of the float32 pattern that the bin leaves out. A choice: bins of 1/256 octave are narrower than every step
that matters, and 2^17 counts of 8 bytes fit into a processor's cache."""
BINS = 1 << (32 - SHIFT)
HALF = BINS // 2
"""The first bin of the negative numbers."""
_INFINITE = 0x7F800000
"""The float32 pattern of infinity; those of NaN are larger."""
_CHUNK = 1 << 18
"""Weights counted in one call: 1 MiB of float32, within a processor's cache. A choice of speed."""
_PARALLEL = 1 << 22
"""Weights above which a tensor is shared among threads, in parts of this size. A choice: below, threads cost more than
they save."""


@dataclasses.dataclass(frozen=True, eq=False)
class TensorStats:
    """All that the solver knows about one tensor.

    Within a bin the weights are taken as uniformly distributed, or as all equal to the lower edge where their element
    type has no other value in the bin. `min_abs` and `max_abs` are exact and narrow the outermost bins.
    """

    size: int
    """Number of weights n."""
    bins: Ints
    """(occupied bins,) ascending: pattern >> 15."""
    counts: Ints
    """(occupied bins,) The number of weights in each of `bins`; sums to `size`."""
    min_abs: float
    """Smallest magnitude (0 for an empty tensor)."""
    max_abs: float
    """Largest magnitude (0 for an empty tensor)."""

    @classmethod
    def of(cls, tensor: torch.Tensor, *, name: str | None = None, threads: int | None = None) -> TensorStats:
        """The statistics of a tensor of any shape, memory layout and floating type, seen as float32.

        Args:
            tensor: the weights, on any device.
            name: named in the error.
            threads: used for tensors of more than 4 M weights; by default `torch.get_num_threads()`.

        Raises:
            NonFiniteError: NaN or infinity among the weights (or a float64 beyond float32).
        """
        flat = _flat(tensor.detach())
        if flat.numel() <= _PARALLEL:
            return _checked(_count(flat), name)
        workers = threads or torch.get_num_threads()
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            return _checked(functools.reduce(_add, pool.map(_count, torch.split(flat, _PARALLEL))), name)

    @classmethod
    def empty(cls) -> TensorStats:
        """The statistics of no weights: the neutral element of `+`."""
        none = np.zeros(0, dtype=np.int64)
        return cls(0, none, none, 0.0, 0.0)

    def __add__(self, other: TensorStats) -> TensorStats:
        """The statistics of both tensors' weights together; exact, associative and commutative."""
        return _add(self, other)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorStats):
            return NotImplemented
        same = (self.size, self.min_abs, self.max_abs) == (other.size, other.min_abs, other.max_abs)
        return same and np.array_equal(self.bins, other.bins) and np.array_equal(self.counts, other.counts)

    @functools.cached_property
    def magnitudes(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Bins of |w|, ascending: lower edges, upper edges, counts of w >= 0 and of w < 0; (bins,) each."""
        bins, where = np.unique(self.bins % HALF, return_inverse=True)
        negative = self.bins >= HALF
        both = np.zeros((2, bins.size))
        both[negative.astype(int), where] = self.counts
        coarse = not np.any(bins % 2)  # 7 bits of mantissa or fewer (bfloat16, float8, integers): all on lower edges
        lower = np.maximum(_edge(bins), self.min_abs)
        upper = np.clip(_edge(bins if coarse else bins + 1), lower, self.max_abs)
        return lower, upper, both[0], both[1]

    @property
    def mean_abs(self) -> float:
        """Mean magnitude: tau, the maximum-likelihood scale of a Laplacian."""
        lower, upper, positive, negative = self.magnitudes
        return float(np.sum((positive + negative) * (lower + upper)) / 2 / max(self.size, 1))

    @property
    def mean_square(self) -> float:
        """Mean square: the distortion of pruning everything."""
        lower, upper, positive, negative = self.magnitudes
        squares = lower * lower + lower * upper + upper * upper
        return float(np.sum((positive + negative) * squares) / 3 / max(self.size, 1))


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as a flat view in memory order where there is one: their order does not matter for the histogram."""
    if not tensor.is_contiguous() and tensor.numel():
        order = sorted(range(tensor.dim()), key=lambda d: tensor.stride(d), reverse=True)
        tensor = tensor.permute(order)
    return tensor.reshape(-1)


def _count(flat: torch.Tensor) -> TensorStats:
    """The histogram of a flat tensor, chunk by chunk, each within the cache."""
    if not flat.numel():
        return TensorStats.empty()
    total = torch.zeros(BINS, dtype=torch.int64, device=flat.device)
    smallest, largest = _INFINITE, 0
    for chunk in torch.split(flat, _CHUNK):
        pattern = chunk.to(torch.float32).view(torch.int32)
        some = torch.bincount((pattern >> SHIFT) & (BINS - 1))
        total[: some.numel()] += some
        low, high = torch.aminmax(pattern & 0x7FFFFFFF)
        smallest, largest = min(smallest, int(low)), max(largest, int(high))
    bins = total.nonzero()[:, 0]
    return TensorStats(flat.numel(), bins.cpu().numpy(), total[bins].cpu().numpy(), _value(smallest), _value(largest))


def _add(a: TensorStats, b: TensorStats) -> TensorStats:
    if not a.size or not b.size:
        return a if a.size else b
    bins, where = np.unique(np.concatenate([a.bins, b.bins]), return_inverse=True)
    counts = np.zeros(bins.size, dtype=np.int64)
    np.add.at(counts, where, np.concatenate([a.counts, b.counts]))
    # min() and max() of floats may lose a NaN, so NaN is ranked with infinity.
    low = min(a.min_abs, b.min_abs, key=_rank)
    return TensorStats(a.size + b.size, bins, counts, low, max(a.max_abs, b.max_abs, key=_rank))


def _checked(stats: TensorStats, name: str | None) -> TensorStats:
    wrong = int(stats.counts[stats.bins % HALF >= _INFINITE >> SHIFT].sum())
    if wrong:
        raise NonFiniteError(
            f"tensor {name!r} is not finite" if name else "the tensor is not finite",
            got=f"{wrong} of {stats.size} weights NaN or beyond float32",
            wanted="finite weights",
        )
    return stats


def _rank(value: float) -> float:
    return value if value == value else float("inf")


def _value(pattern: int) -> float:
    return float(np.array(pattern, dtype=np.uint32).view(np.float32))


def _edge(bins: Ints) -> Floats:
    """Lower edges of bins of magnitudes."""
    return (bins << SHIFT).astype(np.uint32).view(np.float32).astype(np.float64)
