"""Kinds of payload: one class each, to bytes and back; what is wrong with one is refused by its tensor's name."""

from __future__ import annotations

import dataclasses
import math
import struct
from fractions import Fraction
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
    GridColumns,
    GridRows,
    GridTurnedRows,
    Log,
    Product,
    Raw,
    Scalar,
    Share,
    Table,
    Trellis,
    TrellisColumns,
    TrellisRows,
    TrellisTurned,
    TrellisTurnedRows,
    head_of_rows,
)
from opq.file.writer import pack
from opq.plan import Plan, TensorPlan
from opq.quantizing import rows
from opq.quantizing.grid import scaled
from opq.quantizing.trellis import numbers
from opq.quantizing.turned import Turn

RNG = np.random.default_rng(0)
CODES = np.rint(RNG.laplace(size=(6, 4)) * 2).astype(np.int16)
EXPONENTS = np.array([2, 0, -3, 1, 0, 5], np.int16)
ACROSS = np.array([0, 7, -2, 1], np.int16)
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
    (
        planned("t", (6, 2, 2), codebook="grid-columns"),
        GridColumns("t", Turn(1, 2), CODES.reshape(6, 2, 2), EXPONENTS, ACROSS),
    ),
    (
        planned("t", (4, 6), codebook="trellis-columns"),
        TrellisColumns("t", Turn(0, 1), numbers(CODES).T.copy(), EXPONENTS, ACROSS),
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


def on_columns(shape: tuple[int, ...], dtype: str = "F64", step: float = 0.5) -> TensorPlan:
    return planned("t", shape, dtype, codebook="grid-columns", step=step)


def restored(item: GridColumns, plan: TensorPlan) -> torch.Tensor:
    return type(item).restore(memoryview(item.payload(plan).bytes()), plan, item.number)


def test_a_weight_is_its_code_times_the_step_of_its_row_times_the_factor_of_its_column() -> None:
    codes = np.array([[1, -3, 0], [2, 5, -7]], np.int16)
    e, f = np.array([0, 4], np.int16), np.array([-8, 2, 3], np.int16)
    found = restored(GridColumns("t", Turn(1, 1), codes, e, f), on_columns((2, 3)))
    assert found.tolist() == [
        [0.125, -1.5 * 1.4142135623730951, 0.0],
        [0.5, 5 * 1.4142135623730951, -7 * 1.681792830507429],
    ]
    turned = restored(GridColumns("t", Turn(0, 1), codes.T.copy(), e, f), on_columns((3, 2)))
    assert torch.equal(turned, found.T)
    n = np.array([[2, 0], [0, 2], [-1, 0]], np.int16)
    paths = TrellisColumns("t", Turn(1, 1), n, np.array([0, 4, 8], np.int16), np.array([4, -4], np.int16))
    plan = planned("t", (3, 2), "F64", codebook="trellis-columns", step=0.5)
    assert restored(paths, plan).tolist() == [[2.0, 0.0], [0.0, 1.0], [-4.0, 0.0]]


def test_a_weight_by_row_and_column_is_rounded_once_to_float64_and_then_to_its_type() -> None:
    e, f = np.array([1, 3], np.int16), np.array([1, 2, 3, -101], np.int16)
    codes = np.random.default_rng(3).integers(-32767, 32768, (2, 4)).astype(np.int16)
    item, plan = GridColumns("t", Turn(1, 1), codes, e, f), on_columns((2, 4))
    found = restored(item, plan)
    steps, factors = rows.steps(0.5, e).astype(np.float64), rows.factors(f)
    for i, j in np.ndindex(2, 4):
        exact = int(codes[i, j]) * Fraction(steps[i]) * Fraction(factors[j])
        assert float(found[i, j]) == float(exact)  # a fraction becomes the nearest float
    assert not np.array_equal(found.numpy(), codes * (steps[:, None] * factors))
    for dtype in ("F32", "BF16", "F16"):
        assert torch.equal(restored(item, on_columns((2, 4), dtype)), found.to(torch_dtype(dtype)))


def test_no_factor_of_a_column_gives_an_infinite_weight() -> None:
    codes, farthest = np.array([[1, 1], [-1, 3]], np.int16), np.array([400, -400], np.int16)
    for dtype in ("F16", "BF16", "F32"):
        found = restored(GridColumns("t", Turn(1, 1), codes, farthest, farthest), on_columns((2, 2), dtype, 1.0))
        assert found.tolist() == [[torch.finfo(torch_dtype(dtype)).max, 1.0], [-1.0, 0.0]]


@pytest.mark.parametrize("turn", [Turn(1, 2), Turn(1, 1), Turn(0, 2)])
def test_factors_by_column_stand_between_the_turn_and_what_a_kind_without_them_holds(turn: Turn) -> None:
    shape = (6, 2, 2)
    codes = CODES.reshape(shape)
    count, width = turn.shape(shape)
    e, f = np.resize(EXPONENTS, count), np.resize(ACROSS, width)
    data = GridColumns("t", turn, codes, e, f).payload(planned("t", shape, codebook="grid-columns")).bytes()
    matrix = GridRows("t", turn.codes(codes), e).payload(planned("t", (count, width), codebook="grid-rows")).bytes()
    assert data == bytes((turn.front, turn.inputs)) + head_of_rows(f) + matrix


@pytest.mark.parametrize("wrong", [ACROSS[:3], ACROSS[None], np.append(ACROSS, 1), ACROSS + 394, ACROSS - 399])
def test_exponents_of_columns_that_do_not_fit_are_not_written(wrong: Any) -> None:
    item = GridColumns("t", Turn(1, 1), CODES, EXPONENTS, wrong.astype(np.int16))
    with pytest.raises(MismatchError, match=r"'t': exponents of columns: got .*, wanted \(4,\) within 400"):
        item.payload(on_columns((6, 4)))
    with pytest.raises(MismatchError, match=r"'t': exponents of rows: got .*, wanted \(6,\) within 400"):
        GridColumns("t", Turn(1, 1), CODES, wrong.astype(np.int16), ACROSS).payload(on_columns((6, 4)))
    with pytest.raises(MismatchError, match="axes of its inputs"):
        GridColumns("t", Turn(1, 2), CODES, EXPONENTS, ACROSS).payload(on_columns((6, 4)))


@pytest.mark.parametrize("kept_of_head", range(6 + len(entropy.encode(ACROSS))))
def test_a_payload_that_ends_in_the_exponents_of_columns_is_refused(kept_of_head: int) -> None:
    plan = on_columns((6, 4))
    payload = GridColumns("t", Turn(1, 1), CODES, EXPONENTS, ACROSS).payload(plan).bytes()
    with Reader(in_memory(one(plan, payload[:kept_of_head]))) as opened:
        for ask in (opened.tensor, opened.codes, opened.exponents, opened.columns):
            with pytest.raises(CorruptFileError, match=r"'t': (exponents of columns are cut off|axes of the inputs)"):
                ask("t")


def test_exponents_of_columns_that_are_no_such_are_refused() -> None:
    plan = on_columns((6, 4))
    payload = GridColumns("t", Turn(1, 1), CODES, EXPONENTS, ACROSS).payload(plan).bytes()
    behind = payload[len(head := b"\1\1" + head_of_rows(ACROSS)) :]
    assert payload[: len(head)] == head
    for wrong, fact in (
        (ACROSS + 394, "a column scaled too far: got 401, wanted exponents within 400"),
        (ACROSS - 399, "a column scaled too far: got 401, wanted exponents within 400"),
        (np.append(ACROSS, 3), ""),
        (ACROSS[:3], ""),
    ):
        data = one(plan, b"\1\1" + head_of_rows(wrong.astype(np.int16)) + behind)
        with Reader(in_memory(data)) as opened:
            for ask in (opened.tensor, opened.columns):
                with pytest.raises(CorruptFileError, match=f"'t': {fact}"):
                    ask("t")
    farthest = np.array([400, -400, 400, -400], np.int16)
    with Reader(in_memory(one(plan, b"\1\1" + head_of_rows(farthest) + behind))) as opened:
        assert opened.columns("t").tolist() == farthest.tolist()
        assert bool(torch.isfinite(opened.tensor("t")).all())


@pytest.mark.parametrize("head", [b"\0\0", b"\2\1", b"\0\3", b"\1\2", b"\377\377"])
def test_columns_along_axes_that_a_tensor_has_not_are_refused(head: bytes) -> None:
    plan = on_columns((6, 4))
    payload = GridColumns("t", Turn(1, 1), CODES, EXPONENTS, ACROSS).payload(plan).bytes()
    with Reader(in_memory(one(plan, head + payload[2:]))) as opened:
        for ask in (opened.tensor, opened.codes, opened.exponents, opened.columns, opened.turn):
            with pytest.raises(CorruptFileError, match="'t': axes of the inputs that a tensor has not"):
                ask("t")
    for kind in (GridColumns, TrellisColumns):
        with pytest.raises(CorruptFileError, match="without"):
            kind.check(planned("t", (), codebook=kind.kind), Place(kind.kind, 9))


def one(plan: TensorPlan, payload: bytes) -> bytes:
    """A file of one tensor whose payload is what it is."""
    return with_index(Plan(method="x", tensors=(plan,)), [Place(plan.codebook, len(payload))], payload)


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


@pytest.mark.parametrize(("turn", "shape"), [(Turn(1, 1), (6, 4)), (Turn(0, 1), (4, 6))])
def test_the_reader_tells_the_exponents_of_columns(turn: Turn, shape: tuple[int, ...]) -> None:
    n = turn.back(numbers(CODES), shape)
    items: list[Stored] = [
        GridColumns("g", turn, turn.back(CODES, shape), EXPONENTS, ACROSS),
        TrellisColumns("t", turn, n, EXPONENTS, ACROSS),
        TrellisTurnedRows("r", turn, n, EXPONENTS),
        Grid("w", CODES),
    ]
    plans = (
        *(planned(item.name, shape, codebook=item.kind) for item in items[:3]),
        planned("w", (6, 4)),
        TensorPlan(name="tied", shape=shape, dtype="F32", action="share", reason="tied", like="t"),
    )
    assert [(t.by_row, t.by_column, t.turned) for t in plans[:4]] == [(1, 1, 1), (1, 1, 1), (1, 0, 1), (0, 0, 0)]
    packed = pack(Plan(method="rd", tensors=plans), items)
    with Reader(packed) as reader:
        for name in ("g", "t", "tied"):
            assert reader.turn(name) == turn
            for told, wanted in ((reader.exponents(name), EXPONENTS), (reader.columns(name), ACROSS)):
                assert told is not None
                assert told.dtype == np.int16
                assert np.array_equal(told, wanted)
        assert np.array_equal(turn.codes(reader.codes("g")), CODES)
        assert np.array_equal(reader.codes("tied"), n)
        assert reader.columns("r") is None
        assert reader.columns("w") is None
        with pytest.raises(MismatchError):
            reader.columns("none")
    other = dataclasses.replace(items[0], columns=ACROSS[::-1].copy())  # type: ignore[type-var]
    assert pack(Plan(method="rd", tensors=plans), [other, *items[1:]]).digests["g"] != packed.digests["g"]
