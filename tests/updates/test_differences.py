"""Differences of integers come back, and cost what their classes tell."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings

from opq.base.dtypes import DTYPES
from opq.coding import entropy
from opq.coding.stack import StackWriter, uniform
from opq.errors import CorruptFileError
from opq.updates import differences, patterns, scales

BF16 = patterns.element("BF16")


def integers(values: torch.Tensor) -> npt.NDArray[np.int16]:
    return patterns.in_order(values.to(torch.bfloat16).view(torch.uint8).numpy().tobytes(), BF16)


def size(old: torch.Tensor, new: torch.Tensor) -> int:
    """Bytes of a chunk that was seen to come back."""
    before, after, length = integers(old), integers(new), old.shape[1]
    data = differences.encode(after, before, BF16, length)
    assert np.array_equal(differences.decode(memoryview(data), before, BF16, length), after)
    return len(data)


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ((3, 300), 300),
        ((5, 4, 4), 16),
        ((2, 1 << 16), 1 << 16),
        ((2, 15), 256),
        ((2, (1 << 16) + 1), 256),
        ((900,), 256),
    ],
)
def test_a_block_is_a_row_or_256_elements_where_rows_are_too_short_or_too_long(
    shape: tuple[int, ...], length: int
) -> None:
    """Both sides compute it from the shape, so another length would read old updates wrongly."""
    assert differences.block(shape) == length


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_numbers_of_one_octave_are_of_one_class_and_those_of_the_next_of_the_next(dtype: str) -> None:
    """Both sides class numbers by it, so that other bits would read old updates wrongly."""
    kind, info = patterns.element(dtype), torch.finfo(DTYPES[dtype])
    values = torch.tensor([1, 1.5, 2 - info.eps, 2, 4, -1, info.eps - 2, -2], dtype=DTYPES[dtype])
    found = patterns.exponents(patterns.in_order(values.view(torch.uint8).numpy().tobytes(), kind), kind)
    assert (found - found[0]).tolist() == [0, 0, 0, 1, 2, 0, 0, 1]
    assert info.eps == 2.0**-kind.fraction


def test_rows_that_hardly_move_cost_what_they_would_alone() -> None:
    g = torch.Generator().manual_seed(0)
    old, noise = 0.04 * torch.randn(400, 96, generator=g), torch.randn(400, 96, generator=g)
    little, much = old + 2e-6 * noise, old + 2e-3 * noise
    mixed = torch.where(torch.arange(400)[:, None] % 4 == 0, much, little)
    apart = size(old[::4], much[::4]) + size(old[1::4], little[1::4]) + size(old[2::4], little[2::4])
    apart += size(old[3::4], little[3::4])
    scattered = torch.where(torch.rand(old.shape, generator=g) < 0.25, much, little)
    assert size(old, mixed) < 1.1 * apart
    assert size(old, scattered) > 1.25 * apart


def test_decay_costs_its_places_and_not_its_signs() -> None:
    g = torch.Generator().manual_seed(0)
    old = 0.04 * torch.randn(400, 96, generator=g)
    signs = torch.randint(0, 2, old.shape, generator=g) * 2 - 1
    moved = int((integers(old) != integers(old * (1 - 3e-4))).sum())
    saved = size(old, old * (1 + 3e-4 * signs)) - size(old, old * (1 - 3e-4))
    assert saved > 0.75 * moved / 8


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "U8", "F8_E4M3"]),
    rows=st.integers(1, 40),
    length=st.integers(16, 40),
    short=st.integers(0, 15),
    spread=st.integers(0, 70),
    seed=st.integers(0, 1 << 30),
)
def test_any_integers_come_back(dtype: str, rows: int, length: int, short: int, spread: int, seed: int) -> None:
    """Rows of all scales, some of them as they were, the last one shorter."""
    kind, rng = patterns.element(dtype), np.random.default_rng(seed)
    info, amount = np.iinfo(kind.dtype), rows * length - short
    reference = rng.integers(info.min, info.max, amount, dtype=kind.dtype, endpoint=True)
    wide = rng.integers(0, spread, rows, endpoint=True) * rng.integers(0, 2, rows)
    powers = np.repeat(np.minimum(wide, 8 * kind.width - 2), length)[:amount]
    with np.errstate(over="ignore"):
        new = reference + (rng.integers(-(1 << 62), 1 << 62, amount) >> (62 - powers)).astype(kind.dtype)
    data = differences.encode(new, reference, kind, length)
    assert np.array_equal(differences.decode(memoryview(data), reference, kind, length), new)


def test_classes_are_tried_and_the_cheapest_kept() -> None:
    rng = np.random.default_rng(0)
    reference = integers(0.04 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    lengths = np.full(64, 64)
    flat = rng.integers(-2, 3, reference.size).astype(np.int16)
    assert scales.chosen_classes(flat, reference, BF16, lengths).way == "one"
    rowwise = (flat * np.repeat(1 + 300 * (np.arange(64) % 2), 64)).astype(np.int16)
    found = scales.chosen_classes(rowwise, reference, BF16, lengths)
    assert len(set(found.scales.tolist())) > 1
    assert scales.chosen_classes(flat[:200], reference[:200], BF16, np.full(2, 100)).way == "one"


def forged(*, number: int, scale: int) -> bytes:
    """A chunk of two rows of 16 integers that says how they fall into classes."""
    stream = entropy.encode(np.array([0, scale], np.int16))
    zeros = entropy.encode(np.zeros(16, np.int16))
    writer = StackWriter()
    writer.put(1, uniform(3))
    writer.put(number - 1, uniform(16))
    writer.uint(120)
    writer.put(0, uniform(2))
    writer.uint(len(stream))
    for _ in range(2):
        writer.put(0, uniform(2))
        writer.uint(len(zeros))
    head = writer.finish()
    return len(head).to_bytes(4, "little") + head + stream + zeros + zeros


def test_classes_that_cannot_be_are_corrupt() -> None:
    ones = np.ones(32, np.int16)
    kind = patterns.element("I16")
    assert np.array_equal(differences.decode(memoryview(forged(number=1, scale=15)), ones, kind, 16), ones)
    with pytest.raises(CorruptFileError, match="a block of no class"):
        differences.decode(memoryview(forged(number=1, scale=16)), ones, kind, 16)
    with pytest.raises(CorruptFileError, match="a block of no class"):
        differences.decode(memoryview(forged(number=1, scale=-1)), ones, kind, 16)
    with pytest.raises(CorruptFileError, match="classes by exponent of what has none"):
        differences.decode(memoryview(forged(number=2, scale=1)), ones, kind, 16)
