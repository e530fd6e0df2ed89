"""Pass one: from every tensor to its curve and a few numbers, in one sweep over the checkpoint.

Element types of at most 16 bits are counted by their bit patterns, which is exact. Each histogram is replaced by its
curve at once, so that even tens of thousands of tensors take little memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load, save

from opq.allocation.curve import THETAS, Curve
from opq.allocation.stats import HALF, SHIFT, TensorStats
from opq.base.pool import Pool
from opq.compression.copies import copies
from opq.errors import CorruptSourceError, NonFiniteError
from opq.sources.base import Source, TensorSpec
from opq.streaming.chunks import Tensors
from opq.streaming.clock import Clock

PIECE = 1 << 22
"""Weights read at once. A choice that trades memory for the overhead of each read."""
_CACHED = 1 << 19
"""Weights counted at once: with their patterns they fit into a processor's cache. A choice of speed."""
_NUMBERS = ("min_abs", "max_abs", "mean_abs", "mean_square")
_COLUMNS = ("log_step", "theta", "rate", "distortion", "density")


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Measure:
    """What pass two needs to know about a tensor."""

    size: int
    min_abs: float
    max_abs: float
    mean_abs: float
    mean_square: float
    digest: str
    """A digest of the histogram; equal tensors have equal digests."""
    curve: Curve

    @classmethod
    def of(cls, stats: TensorStats) -> Measure:
        digest = hashlib.sha256(stats.bins.tobytes() + stats.counts.tobytes()).hexdigest()
        numbers = {name: float(getattr(stats, name)) for name in _NUMBERS}
        return cls(size=stats.size, digest=digest, curve=Curve.of(stats, thetas=THETAS), **numbers)


class Counter:
    """Statistics of a tensor that is read in pieces: the same as `TensorStats.of` for the whole tensor.

    Args:
        dtype: the element type of the pieces; by default that of the tensor.
    """

    def __init__(self, spec: TensorSpec, dtype: torch.dtype | None = None):
        self.spec, dtype = spec, dtype or spec.dtype
        self._patterns = np.uint8 if dtype.itemsize == 1 else np.uint16
        narrow = dtype.itemsize <= 2
        self._total: Any = np.zeros(1 << 8 * dtype.itemsize, np.int64) if narrow else TensorStats.empty()

    def count(self, flat: torch.Tensor) -> npt.NDArray[np.int64] | TensorStats:
        """The statistics of one piece; `add` joins them, in any order."""
        if flat.dtype.itemsize > 2:
            return TensorStats.of(flat, name=self.spec.name, threads=1)
        patterns = flat.view(torch.uint8).numpy().view(self._patterns)
        counts = np.zeros(len(self._total), np.int64)
        for start in range(0, len(patterns), _CACHED):
            some = np.bincount(patterns[start : start + _CACHED])
            counts[: len(some)] += some
        return counts

    def add(self, piece: npt.NDArray[np.int64] | TensorStats) -> None:
        self._total = self._total + piece

    def stats(self) -> TensorStats:
        """Raises `NonFiniteError` for NaN and infinity."""
        return self._total if isinstance(self._total, TensorStats) else of_patterns(self._total, self.spec)


def of_patterns(counts: npt.NDArray[np.int64], spec: TensorSpec) -> TensorStats:
    """The statistics of a tensor of at most 16 bits from the counts of its bit patterns."""
    found = np.flatnonzero(counts)
    if not len(found):
        return TensorStats.empty()
    width = np.uint8 if spec.dtype.itemsize == 1 else np.uint16
    values = torch.from_numpy(found.astype(width).view(np.uint8)).view(spec.dtype).to(torch.float32).numpy()
    wrong = int(counts[found][~np.isfinite(values)].sum())
    if wrong:
        got = f"{wrong} of {int(counts.sum())} weights NaN or infinite"
        raise NonFiniteError(f"tensor {spec.name!r} is not finite", got=got, wanted="finite weights")
    wide = values.view(np.uint32).astype(np.int64)
    bins, where = np.unique(wide >> SHIFT, return_inverse=True)
    total = np.zeros(bins.size, np.int64)
    np.add.at(total, where, counts[found])
    magnitudes = np.abs(values)
    assert bins[-1] < 2 * HALF
    return TensorStats(int(counts.sum()), bins, total, float(magnitudes.min()), float(magnitudes.max()))


def measure(specs: Iterable[TensorSpec], tensors: Tensors, pool: Pool, clock: Clock) -> Iterator[tuple[str, Measure]]:
    """The measures of some tensors, in order; pieces are read and counted in the pool.

    Raises:
        NonFiniteError: NaN or infinity among the weights.
    """

    def piece(job: tuple[Counter, int, int]) -> npt.NDArray[np.int64] | TensorStats:
        counter, start, stop = job
        with clock("read"):
            flat = tensors.read(counter.spec.name, start, stop)
        with clock("statistics"):
            return counter.count(flat)

    def finish(counter: Counter) -> Measure:
        with clock("curves"):
            return Measure.of(counter.stats())

    counters = [Counter(spec, tensors.dtype(spec.name)) for spec in specs]
    jobs = [(c, s, min(s + PIECE, c.spec.size)) for c in counters for s in range(0, c.spec.size, PIECE)]
    waiting: list[tuple[str, Future[Measure]]] = []
    for (counter, _, stop), counted in zip(jobs, pool.ordered(piece, jobs), strict=True):
        counter.add(counted)
        if stop == counter.spec.size:
            waiting.append((counter.spec.name, pool.submit(finish, counter)))
        while len(waiting) > 2 * pool.size:
            name, future = waiting.pop(0)
            yield name, future.result()
    for name, future in waiting:
        yield name, future.result()


def packed(measures: Mapping[str, Measure]) -> bytes:
    """Measures as bytes, for other processes and for a later run."""
    listed = list(measures.values())
    arrays: dict[str, Any] = {n: np.array([getattr(m, n) for m in listed], np.float64) for n in _NUMBERS}
    arrays["size"] = np.array([m.size for m in listed], np.int64)
    arrays["points"] = np.array([len(m.curve.rate) for m in listed], np.int64)
    for name in _COLUMNS:
        arrays[name] = np.concatenate([getattr(m.curve, name) for m in listed] or [np.zeros(0)])
    text = json.dumps([list(measures), [m.digest for m in listed]]).encode()
    arrays["names"] = np.frombuffer(text, np.uint8)
    return bytes(save(arrays))


def unpacked(data: bytes) -> dict[str, Measure]:
    """The inverse of `packed`."""
    held = load(data)
    names, digests = json.loads(held["names"].tobytes())
    ends = np.cumsum(held["points"])
    found = {}
    for k, name in enumerate(names):
        part = slice(int(ends[k] - held["points"][k]), int(ends[k]))
        curve = Curve(**{column: held[column][part] for column in _COLUMNS})
        numbers = {n: float(held[n][k]) for n in _NUMBERS}
        found[name] = Measure(size=int(held["size"][k]), digest=digests[k], curve=curve, **numbers)
    return found


def ties(source: Source, measures: Mapping[str, Measure], tensors: Tensors) -> dict[str, str]:
    """Tensors that are equal to an earlier one, as when a tied model was saved in several files without its ties."""
    digests = {name: found.digest for name, found in measures.items() if found.min_abs < found.max_abs}
    return copies(source.by_name, digests, lambda one, other: _equal(tensors, one, other, source))


def _equal(tensors: Tensors, one: str, other: str, source: Source) -> bool:
    size = source.by_name[one].size
    for start in range(0, size, PIECE):
        stop = min(start + PIECE, size)
        a, b = (tensors.read(n, start, stop).view(torch.uint8) for n in (one, other))
        if not torch.equal(a, b):
            return False
    return True


SCALES = ("_scale_inv", "_scale", ".scales", ".scale")
"""Endings of the names of block scales that belong to float8 weights."""


def scales_of(source: Source) -> dict[str, str]:
    """Weights of one byte an element, each with the name of the tensor of its scales."""
    names, found = source.by_name, {}
    for spec in source.specs:
        if spec.dtype.is_floating_point and spec.dtype.itemsize == 1 and spec.like is None:
            stem = spec.name.removesuffix(".weight")
            scale = next(
                (n for n in (*(spec.name + s for s in SCALES), *(stem + s for s in SCALES)) if n in names), None
            )
            if scale is not None:
                found[spec.name] = scale
    return found


def scale_square(source: Source, name: str) -> float:
    """Mean square of a tensor of scales; raises `CorruptSourceError` if it is not positive and finite."""
    found = float(source.tensor(name).double().square().mean())
    if not (np.isfinite(found) and found > 0):
        raise CorruptSourceError(f"tensor {name!r} holds no scales", got=found, wanted="positive numbers")
    return found
