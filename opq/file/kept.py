"""How tensors that are not compressed are stored: as small as possible without harm to the network.

One-dimensional weights, biases and norms are stored on a grid so fine that its error is far below that of the
compressed tensors (`fine_bits`). The vectors of a BatchNorm are stored together (`opq.file.vectors`). Integers and
booleans, buffers outside of BatchNorms (for example the frequencies of a rotary embedding), small tensors, and what the
user keeps are stored bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch

from opq.base.arrays import Floats
from opq.file import vectors
from opq.file.stored import Log, Raw, Stored
from opq.plan import Plan
from opq.sources.base import BatchNormNames, Source

FINEST = 13
"""Bits of the finest grid: the step is 2^-13 of the root mean square. Finer codes would take nearly the 16 bits of a
half-precision number. A choice."""
SHORTEST = 8
"""Elements of the shortest vector that is put on a grid. A choice: for a shorter one the header of the codes takes as
much as is saved."""
UNKNOWN_EPS_PER_OCTAVE = 64
"""Codes in an octave of a running variance whose eps is unknown, so that the weight cannot compensate for its error. A
choice: the standard deviation is then wrong by at most 0.3 %."""
UNKNOWN_EPS = 1e-5
"""What dead channels are divided by the root of, where eps is not known: torch's default."""


def keep(source: Source, plan: Plan, changed: Mapping[str, torch.Tensor], *, whole: Plan | None = None) -> list[Stored]:
    """The stored form of every kept tensor.

    Args:
        changed: new values, by name; other values are taken from the source.
        whole: the plan of all files, if `plan` is that of one file of several: its rate decides how fine the grids are.
    """
    names = {t.name for t in plan if t.action == "keep"}

    def value(name: str) -> torch.Tensor:
        return changed[name] if name in changed else source.tensor(name)

    bits = fine_bits(whole or plan)
    stored: dict[str, Stored] = {}
    for norm in source.batchnorms.values():
        if bits is not None and set(_floating(norm)) <= names and _by_default(plan, norm):
            stored |= {item.name: item for item in _batchnorm(norm, value, bits)}
    for name in (t.name for t in plan if t.action == "keep" and t.name not in stored):
        tensor = value(name)
        is_parameter = plan[name].vector and source.by_name[name].kind == "parameter"
        worth = is_parameter and tensor.numel() >= SHORTEST and bits is not None
        stored[name] = vectors.fine(name, tensor, bits=bits or 0) if worth else Raw(name, tensor)
    return list(stored.values())


def fine_bits(plan: Plan) -> int | None:
    """The grid of kept vectors: its step is `2^-bits` of the root mean square. None if vectors must be stored exactly.

    Five bits finer than the compressed tensors, if there are such fine grids, but at least three, and never below a
    signal-to-noise ratio of 47 dB. For the error of a vector is the same at every position and in every sample, so that
    it does not average out like the errors of weights. docs/research.md compares three and five bits.
    """
    weights = sum(t.size for t in plan.compressed)
    rate = sum(t.size * t.rate for t in plan.compressed) / weights if weights else math.inf
    if rate > FINEST - 3:
        return None
    return min(max(vectors.BITS, math.ceil(rate) + 5), FINEST)


def _floating(norm: BatchNormNames) -> list[str]:
    """The names of the floating-point vectors of a BatchNorm."""
    return [n for n in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if n is not None]


def _by_default(plan: Plan, norm: BatchNormNames) -> bool:
    """Whether the user has not asked for any of the layer's vectors to be kept exactly."""
    return all(plan[name].vector for name in _floating(norm))


def _batchnorm(norm: BatchNormNames, value: Callable[[str], torch.Tensor], bits: int) -> Iterator[Stored]:
    """The vectors of one BatchNorm: jointly if weight, bias and eps are known, otherwise each on its own grid."""
    if norm.weight is not None and norm.bias is not None and norm.eps is not None:
        names = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        weight, bias, mean, var = map(value, names)
        yield from vectors.batchnorm(
            vectors.Norm(names=names, weight=weight, bias=bias, mean=mean, var=var, eps=norm.eps), bits=bits
        )
        return
    for name in _floating(norm):
        if name == norm.running_var:
            yield _log(name, value(name))
        elif name == norm.running_mean:
            yield vectors.running_mean(name, value(name), _deviations(value(norm.running_var), norm.eps), bits=bits)
        else:
            yield vectors.fine(name, value(name), bits=bits)


def _deviations(var: torch.Tensor, eps: float | None) -> Floats:
    """By what a BatchNorm divides its channels; where eps is not known, dead channels are taken to have torch's."""
    variances = var.detach().double()
    alive = variances > vectors.LEAST_VAR
    squares = torch.where(alive, variances, UNKNOWN_EPS) if eps is None else variances + eps
    found: Floats = squares.clamp_min(vectors.LEAST_VAR).sqrt().cpu().numpy()
    return found


def _log(name: str, var: torch.Tensor) -> Log | Raw:
    """A running variance by its logarithm; bit for bit if it has values that are negative or not finite."""
    values = var.detach().double()
    if not values.numel() or not bool((torch.isfinite(values) & (values >= 0)).all()):
        return Raw(name, var)
    codes = (values.clamp_min(vectors.LEAST_VAR).log2() * UNKNOWN_EPS_PER_OCTAVE).round().to(torch.int16)
    return Log(name, codes.numpy(), UNKNOWN_EPS_PER_OCTAVE)
