"""CLIP-Q's quantizer against the same written one weight at a time, and what its layers cost."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from opq.methods.clip import partition, thresholds
from opq.methods.clipq import stored_bits


def skewed(seed: int = 0) -> torch.Tensor:
    """Weights that reach three times as far below zero as above it."""
    g = torch.Generator().manual_seed(seed)
    return torch.cat([torch.rand(2000, generator=g), -3 * torch.rand(2000, generator=g)])


@pytest.mark.parametrize(("p", "b"), [(0.0, 2), (0.3, 3), (0.6, 4)])
@pytest.mark.parametrize("sign", [1, -1])
def test_each_side_is_cut_between_its_own_threshold_and_its_own_extreme(p: float, b: int, sign: int) -> None:
    w = sign * skewed()
    found = partition(w, p, b)
    c_minus, c_plus = thresholds(w, p)
    k_minus, k_plus = found.negative, len(found.values) - 1 - found.negative
    assert min(k_minus, k_plus) >= 1
    minus, plus = (float(c_minus - w.min()) / k_minus, float(w.max() - c_plus) / k_plus)
    for value, code in zip(w.double().tolist(), found.codes.tolist(), strict=True):
        place = (value - c_plus) / plus if value > c_plus else (value - c_minus) / minus if value < c_minus else 0.0
        wanted = math.ceil(place) if place > 0 else math.floor(place)
        near_an_edge = abs(place - round(place)) < 1e-3
        assert code == wanted or (near_an_edge and abs(code - wanted) <= 1), (value, code, wanted)
    assert int(found.codes.min()) == -k_minus
    assert int(found.codes.max()) == k_plus


@pytest.mark.parametrize("b", [1, 3, 8])
def test_a_layer_costs_the_entropy_of_its_codes_and_sixteen_bits_for_each_value_of_its_codebook(b: int) -> None:
    w = skewed(1)
    counts = Counter(partition(w, 0.4, b).codes.tolist())
    entropy = sum(n * math.log2(len(w) / n) for n in counts.values())
    assert stored_bits(w, 0.4, b) == pytest.approx(entropy + 16 * (2**b - 1), rel=1e-9)
