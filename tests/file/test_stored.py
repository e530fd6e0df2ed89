"""Kinds of payload: one class each, to bytes and back; what is wrong with one is refused by its tensor's name."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from file_helpers import bytes_of, in_memory, with_index
from plans import kept, planned

from opq.base.dtypes import torch_dtype
from opq.base.format_v1 import KIND_NAMES
from opq.coding import entropy
from opq.errors import CorruptFileError, MismatchError
from opq.file.payload import Coded, Place, Stored
from opq.file.reader import Reader
from opq.file.stored import (
    KINDS,
    PAYLOADS,
    Fine,
    Grid,
    GridRows,
    Log,
    Product,
    Raw,
    Scalar,
    Share,
    Table,
    Trellis,
    TrellisRows,
)
from opq.file.writer import pack
from opq.plan import Plan, TensorPlan
from opq.quantizing.grid import scaled
from opq.quantizing.trellis import numbers

RNG = np.random.default_rng(0)
CODES = np.rint(RNG.laplace(size=(6, 4)) * 2).astype(np.int16)
LISTED: dict[str, Any] = {"step": 0.0, "threshold": 0.0, "rounding": 0.5}
EVERY: list[tuple[TensorPlan, Stored]] = [
    (planned("t", (6, 4)), Grid("t", CODES)),
    (planned("t", (6, 4), codebook="trellis", rounding=0.5, threshold=0.015625), Trellis("t", numbers(CODES))),
    (
        planned("t", (2, 3), codebook="table", **LISTED),
        Table("t", np.array([0.5, -2.0], np.float32), np.array([[0, 1, 1], [1, 0, 0]])),
    ),
    (
        planned("t", (1, 3), codebook="product", **LISTED),
        Product("t", np.array([[0.5, 1.0], [2.0, 4.0]], np.float32), np.array([1, 0])),
    ),
    (
        planned("t", (2, 2), codebook="grid-rows"),
        GridRows("t", np.array([[0, 1], [-2, 3]], np.int16), np.array([-1, 6], np.int16)),
    ),
    (
        planned("t", (2, 2), codebook="trellis-rows"),
        TrellisRows("t", numbers(np.array([[0, 1], [-2, 3]], np.int16)), np.array([2, 0], np.int16)),
    ),
    (kept("t", torch.zeros(4)), Fine("t", np.array([0, 1, -2, 3], np.int16), 0.25)),
    (kept("t", torch.zeros(3)), Log("t", np.array([0, 1, -2], np.int16), 2)),
    (kept("t", torch.ones(3)), Raw("t", torch.tensor([1.0, 2.0, math.inf]))),
    (kept("t", torch.tensor([5])), Scalar("t", torch.tensor([-7]))),
]


def test_there_is_one_class_for_each_number_in_the_file() -> None:
    assert tuple(kind.kind for kind in KINDS) == KIND_NAMES
    assert {item.kind for _, item in EVERY} == set(PAYLOADS) == set(KIND_NAMES) - {Share.kind}


@pytest.mark.parametrize(("plan", "item"), EVERY, ids=[item.kind for _, item in EVERY])
def test_each_kind_restores_what_its_payload_holds(plan: TensorPlan, item: Stored) -> None:
    """The class alone, without a file; and the digest is that of what comes back."""
    payload = item.payload(plan)
    data = payload.bytes()
    assert abs(payload.size - len(data)) <= 4
    back = type(item).restore(memoryview(data), plan, item.number)
    assert back.dtype == torch_dtype(plan.dtype)
    assert tuple(back.shape) == plan.shape
    with Reader(in_memory(bytes_of(pack(Plan(method="x", tensors=(plan,)), [item])))) as opened:
        assert torch.equal(opened.tensor("t"), back)
    if isinstance(item, Coded):
        codes = type(item).codes_of(memoryview(data), plan)
        np.testing.assert_array_equal(codes.ravel(), item.read().ravel())
    else:
        with pytest.raises(MismatchError, match="no codes"):
            type(item).codes_of(memoryview(data), plan)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["table", "product"])
def test_a_codebook_that_is_not_finite_is_refused_by_name(kind: str, wrong: float) -> None:
    payload = struct.pack("<BHH2f", 4, 2, 1, 1.0, wrong) + entropy.encode(np.array([0, 1, 1, 0]))
    tensor = planned("layer.w", (4,), codebook=kind, **LISTED)
    data = with_index(Plan(method="x", tensors=(tensor,)), [Place(kind, len(payload))], payload)
    with Reader(in_memory(data)) as opened:
        for ask in (opened.tensor, opened.codes):
            with pytest.raises(CorruptFileError, match=r"'layer\.w': a codebook holds a number that is not finite"):
                ask("layer.w")


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_is_refused_by_name(wrong: float) -> None:
    data = with_index(Plan(method="x", tensors=(kept("n.bias", torch.zeros(4)),)), [Place("fine", 0, number=wrong)])
    with pytest.raises(CorruptFileError, match=r"the step of tensor 'n\.bias' is not finite"):
        Reader(in_memory(data))
    forged = planned("w", (2, 2))
    object.__setattr__(forged, "step", wrong)
    with pytest.raises(CorruptFileError, match="the step of tensor 'w' is not finite"):
        Reader(in_memory(with_index(Plan(method="x", tensors=(forged,)), [Place("grid", 0)])))


def test_a_threshold_that_is_a_product_beyond_all_numbers_is_refused() -> None:
    forged = planned("w", (2, 2), step=1e300, threshold=math.inf, rounding=1e300)
    with pytest.raises(CorruptFileError, match="the threshold of tensor 'w' is not finite"):
        Reader(in_memory(with_index(Plan(method="x", tensors=(forged,)), [Place("grid", 0)])))


@pytest.mark.parametrize("step", [2.0**115, -(2.0**115), 1e300, -1.7e308])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_no_code_gives_an_infinite_weight_whatever_the_step(step: float, dtype: torch.dtype) -> None:
    found = scaled(torch.tensor([-32767, -1, 0, 1, 32767], dtype=torch.int16), step, dtype)
    largest = torch.finfo(dtype).max
    assert bool(torch.isfinite(found).all())
    assert abs(float(found[0])) == abs(float(found[-1])) == min(abs(32767 * step), largest)
    assert (float(found[-1]) > 0) == (step > 0)
