"""Kept one-dimensional tensors, on a grid so fine that the network hardly changes, in about a quarter of the bytes.

In inference a BatchNorm computes `y = s x + t`, `s = weight / sqrt(var + eps)` and `t = bias - mean s`: two vectors,
not four. So the running statistics are stored coarsely, which is enough to continue training from. Weight and bias are
changed so that they compensate exactly for the errors of the statistics, and only these two are stored on fine grids.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from opq.base.arrays import Floats
from opq.base.format_v1 import LARGEST_CODE
from opq.base.rounding import rounded
from opq.file.stored import Fine, Log, Raw, Stored

BITS = 6
"""The coarsest grid: its step is 2^-6 of the root mean square, for a signal-to-noise ratio of 47 dB. A choice."""

PER_OCTAVE = 2
"""Codes in an octave of a running variance. A choice: inference is exact anyway, and training soon updates it."""

LEAST_VAR = 1e-12
"""Smaller running variances, those of dead channels, are stored as this number, which is far below any eps."""

ROOM = 1.01
"""By how much a step is wider than the largest code needs, so that rounding it to few bits leaves the code in range."""

FAR = 1024
"""Values beyond so many times the lower quartile of magnitudes do not decide how fine a grid is: a bias of -10,000
masks a class or a word, and says nothing of the others. A choice: 311 times is the most in the benchmarks' networks."""

MEAN_STEPS = 2
"""Steps of a running mean in the median standard deviation. A choice, for the same reason."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """The four vectors of a BatchNorm layer, their names, and its eps."""

    names: tuple[str, str, str, str]
    """Of weight, bias, running mean and running variance."""
    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    eps: float = 1e-5


def fine(name: str, tensor: torch.Tensor, *, bits: int = BITS) -> Stored:
    """A floating-point tensor on a grid whose step is `2^-bits` of its root mean square; bit for bit if there is none.

    There is none where a value is so far out that its code does not fit 16 bits.

    Args:
        bits: 6 gives a signal-to-noise ratio of 47 dB, each further bit 6 dB more.
    """
    values = _doubles(tensor)
    stored = _on_grid(name, values, _step(values, bits))
    return Raw(name, tensor) if stored is None or _lost(values, stored) else stored


def running_mean(name: str, mean: torch.Tensor, deviations: Floats, *, bits: int = BITS) -> Stored:
    """A running mean that no weight and bias make up for: every channel's error is small against its own deviation.

    An error `e_c` moves the outputs of channel c by `e_c / s_c`. The step is `2^-bits` of the root mean square of the
    mean or, where that is smaller, of the deviations' harmonic one, `(mean of 1 / s_c^2)^(-1/2)`, which keeps the mean
    square of all `e_c / s_c` to that of a weight's error. Where 16 bits do not hold so many steps, the step is as wide
    as they need, up to `2^-BITS` of the same; the vector is stored as it is where that is not enough.

    Args:
        deviations: of the channels, positive, in the mean's units.
    """
    values = _doubles(mean)
    usual = _step(values, bits)
    if not values.size or not np.isfinite(deviations).all():
        return Raw(name, mean)
    typical = float(np.mean(deviations**-2.0)) ** -0.5
    widest = min(ROOM * float(np.abs(values).max()) / LARGEST_CODE, math.ldexp(typical, -BITS))
    step = max(math.ldexp(typical, -bits), widest)
    stored = _on_grid(name, values, min(usual, rounded(step, 16)))
    return Raw(name, mean) if stored is None or _lost(values, stored) else stored


def batchnorm(norm: Norm, *, bits: int = BITS) -> list[Stored]:
    """The four vectors of a BatchNorm in about 22 bits a channel; its function in inference has the accuracy of `bits`.

    All are stored bit for bit if one cannot be put on a grid (a negative variance, a value that is not finite).
    """
    raw: list[Stored] = [
        Raw(n, t) for n, t in zip(norm.names, (norm.weight, norm.bias, norm.mean, norm.var), strict=True)
    ]
    weight, bias, mean, var = (_doubles(t) for t in (norm.weight, norm.bias, norm.mean, norm.var))
    if not weight.size or not all(np.isfinite(v).all() for v in (weight, bias, mean, var)) or var.min() < 0:
        return raw
    coarse_var = Log(
        norm.names[3], np.rint(np.log2(np.maximum(var, LEAST_VAR)) * PER_OCTAVE).astype(np.int16), PER_OCTAVE
    )
    variances = np.exp2(coarse_var.codes / PER_OCTAVE)
    weight = weight * np.sqrt((variances + norm.eps) / (var + norm.eps))
    new_weight = _on_grid(norm.names[0], weight, _step(weight, bits))
    coarse_mean = _on_grid(norm.names[2], mean, rounded(float(np.median(np.sqrt(variances))) / MEAN_STEPS, 16))
    if new_weight is None or coarse_mean is None:
        return raw
    slope = new_weight.codes * new_weight.step / np.sqrt(variances + norm.eps)
    bias = bias + (coarse_mean.codes * coarse_mean.step - mean) * slope
    new_bias = _on_grid(norm.names[1], bias, _step(weight, bits))
    return raw if new_bias is None else [new_weight, new_bias, coarse_mean, coarse_var]


def _lost(values: Floats, stored: Fine) -> bool:
    """Whether all values would become 0, because they are so small that their squares are 0."""
    return bool(values.any()) and not stored.codes.any()


def _doubles(tensor: torch.Tensor) -> Floats:
    values: Floats = tensor.detach().cpu().to(torch.float64).numpy()
    return values


def _step(values: Floats, bits: int) -> float:
    """`2^-bits` of the root mean square of all values but those `FAR` out, rounded to 16 bits; 1 if all are zero."""
    sizes = np.abs(values)
    usual = float(np.quantile(sizes[sizes > 0], 0.25)) if (sizes > 0).any() else 0.0
    near = values[sizes <= FAR * usual]
    square = float(np.mean(np.square(near))) if near.size else 0.0
    step = math.ldexp(math.sqrt(square), -bits) if math.isfinite(square) else 0.0
    return rounded(step, 16) or 1.0


def _on_grid(name: str, values: Floats, step: float) -> Fine | None:
    """The values in steps, or None if one is not finite or its code does not fit 16 bits."""
    if not np.isfinite(values).all() or (values.size and np.abs(values).max() > LARGEST_CODE * step):
        return None
    return Fine(name, np.rint(values / step).astype(np.int16), step)
