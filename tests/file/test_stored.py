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
    GridTurnedRows,
    Log,
    Product,
    Raw,
    Scalar,
    Share,
    Table,
    Trellis,
    TrellisRows,
    TrellisTurned,
    TrellisTurnedRows,
)
from opq.file.writer import pack
from opq.plan import Plan, TensorPlan
from opq.quantizing.grid import scaled
from opq.quantizing.trellis import numbers
from opq.quantizing.turned import Turn

RNG = np.random.default_rng(0)
CODES = np.rint(RNG.laplace(size=(6, 4)) * 2).astype(np.int16)
EXPONENTS = np.array([2, 0, -3, 1, 0, 5], np.int16)
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
    (planned("t", (4, 6), codebook="trellis-turned"), TrellisTurned("t", Turn(0, 1), numbers(CODES).T.copy())),
    (
        planned("t", (2, 2, 3), codebook="grid-turned-rows"),
        GridTurnedRows("t", Turn(1, 1), CODES[:2].T.reshape(2, 2, 2).repeat(2, 2)[:, :, :3].copy(), EXPONENTS),
    ),
    (
        planned("t", (4, 6), codebook="trellis-turned-rows"),
        TrellisTurnedRows("t", Turn(0, 1), numbers(CODES).T.copy(), EXPONENTS),
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


def test_a_turned_tensor_is_the_matrix_that_its_payload_says() -> None:
    """Columns are the axes of the inputs, rows all others in their order."""
    w = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    for turn, wanted in (
        (Turn(0, 1), w.permute(1, 2, 3, 0).reshape(60, 2)),
        (Turn(1, 1), w.permute(0, 2, 3, 1).reshape(40, 3)),
        (Turn(1, 2), w.permute(0, 3, 1, 2).reshape(10, 12)),
        (Turn(3, 1), w.reshape(24, 5)),
        (Turn(0, 4), w.reshape(1, 120)),
    ):
        assert torch.equal(turn.matrix(w), wanted)
        assert turn.shape((2, 3, 4, 5)) == tuple(wanted.shape)
        assert torch.equal(turn.tensor(wanted, (2, 3, 4, 5)), w)
        of_rows = np.arange(len(wanted), dtype=np.float32)
        by = torch.from_numpy(turn.spread(of_rows, (2, 3, 4, 5)).copy())
        assert torch.equal(turn.matrix(w * by), wanted * torch.from_numpy(of_rows)[:, None])


@pytest.mark.parametrize("head", [b"", b"\0", b"\0\0", b"\2\1", b"\0\3", b"\377\377"])
def test_axes_of_inputs_that_a_tensor_has_not_are_refused(head: bytes) -> None:
    plan = planned("t", (4, 6), codebook="trellis-turned")
    payload = TrellisTurned("t", Turn(0, 1), numbers(CODES).T.copy()).payload(plan).bytes()
    data = memoryview(head + payload[2:] if len(head) == 2 else head)
    for read in (TrellisTurned.codes_of, TrellisTurned.turn_of, TrellisTurned.behind):
        with pytest.raises(CorruptFileError, match="axes of the inputs"):
            read(data, plan)
    with pytest.raises(MismatchError, match="axes of its inputs"):
        TrellisTurned("t", Turn(1, 2), numbers(CODES).T.copy()).payload(plan)
    with pytest.raises(CorruptFileError, match="without axes"):
        TrellisTurned.check(planned("t", (), codebook="trellis-turned"), Place("trellis-turned", 9))


def test_the_reader_tells_how_a_tensor_is_turned() -> None:
    item = TrellisTurnedRows("t", Turn(0, 1), numbers(CODES).T.copy(), EXPONENTS)
    plans = (planned("t", (4, 6), codebook="trellis-turned-rows"), planned("g", (6, 4)))
    with Reader(pack(Plan(method="rd", tensors=plans), [item, Grid("g", CODES)])) as reader:
        assert reader.turn("t") == Turn(0, 1)
        assert reader.turn("g") is None
        found = reader.exponents("t")
        assert found is not None
        assert np.array_equal(found, EXPONENTS)
        assert np.array_equal(reader.codes("t"), item.codes)
