"""CLIP-Q's quantizer of one tensor (Tung and Mori, CVPR 2018, section 3): clip, partition, quantize.

Letters: `w` weights, `p` the fraction clipped, `b` bits, `c_minus <= 0 <= c_plus` the clipping thresholds.

    1 clip       weights between c_minus and c_plus become 0
    2 partition  the rest of the axis, [min w, c_minus] and [c_plus, max w], is cut into 2^b - 1 equal intervals
    3 quantize   every interval becomes the mean of its weights

Code 0 is zero; negative codes count intervals from c_minus outwards, positive ones from c_plus.
"""

from __future__ import annotations

import dataclasses

import torch

from opq.errors import OptionError


@dataclasses.dataclass(frozen=True, slots=True)
class Partition:
    """One tensor, quantized."""

    codes: torch.Tensor
    """int16, in the tensor's shape."""
    values: torch.Tensor
    """float32: what the codes from `-negative` to `positive` stand for, in this order; the middle one is 0."""
    negative: int
    """Number of intervals below zero."""

    @property
    def weights(self) -> torch.Tensor:
        """The quantized weights, float32."""
        return self.values[(self.codes + self.negative).long()]


def thresholds(w: torch.Tensor, p: float) -> tuple[float, float]:
    """`c_minus, c_plus`: the fraction `p` of the negative and of the positive weights lies between them and zero.

    Raises:
        OptionError: `p` is not in [0, 1).
    """
    if not 0 <= p < 1:
        raise OptionError("p is out of range", got=p, wanted="0 <= p < 1")
    return -_quantile(-w[w < 0], p), _quantile(w[w > 0], p)


def _quantile(magnitudes: torch.Tensor, p: float) -> float:
    """The value at or below which the fraction `p` of the magnitudes lies."""
    count = int(p * magnitudes.numel())
    return float(magnitudes.kthvalue(count).values) if count else 0.0


def partition(w: torch.Tensor, p: float, b: int) -> Partition:
    """Clips, partitions and quantizes. Thresholds and means are those of the present weights.

    Raises:
        OptionError: `p` is not in [0, 1), or `b` not in 1 to 8.
    """
    if not 1 <= b <= 8:
        raise OptionError("b is out of range", got=b, wanted="1 to 8 bits")
    w = w.detach().float()
    c_minus, c_plus = thresholds(w, p)
    low, high = (min(float(w.min()), 0.0), max(float(w.max()), 0.0)) if w.numel() else (0.0, 0.0)
    k_minus, k_plus = _shares(c_minus - low, high - c_plus, 2**b - 1)
    codes = _side(w, c_plus, high, k_plus) - _side(-w, -c_minus, -low, k_minus)
    cells = (codes + k_minus).flatten()
    counts = torch.bincount(cells, minlength=k_minus + k_plus + 1)
    sums = torch.bincount(cells, w.double().flatten(), minlength=k_minus + k_plus + 1)
    values = (sums / counts.clamp(min=1)).float()
    values[k_minus] = 0.0
    return Partition(codes.to(torch.int16), values, k_minus)


def _shares(minus: float, plus: float, k: int) -> tuple[int, int]:
    """How many of `k` intervals each side gets, in proportion to its length, and at least one if it has a length."""
    if minus <= 0 or plus <= 0:
        return (k, 0) if plus <= 0 < minus else (0, k)
    if k == 1:
        return (1, 0) if minus > plus else (0, 1)
    share = min(max(round(k * minus / (minus + plus)), 1), k - 1)
    return share, k - share


def _side(w: torch.Tensor, c: float, high: float, k: int) -> torch.Tensor:
    """For weights above `c` the number, from 1, of their interval among the `k` between `c` and `high`; else 0."""
    if k == 0 or high <= c:
        return torch.zeros(w.shape, dtype=torch.int64)
    inside = ((w - c) / (high - c) * k).ceil_().clamp_(1, k)
    return torch.where(w > c, inside, torch.zeros(())).to(torch.int64)
