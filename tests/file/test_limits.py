"""The format at its limits: the last value that is let through, and the first that is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from file_helpers import bytes_of, in_memory
from plans import kept, planned
from safetensors.torch import load

from opq.base.format_v1 import SMALL
from opq.coding import entropy, text
from opq.coding.stack import StackReader as Stack
from opq.coding.stack import StackWriter
from opq.errors import CorruptFileError, FileTooLargeError, MismatchError, OptionError
from opq.file import codebook, stored
from opq.file import writer as container
from opq.file.reader import Reader
from opq.file.stored import Grid, Product, Raw, Stored, Table
from opq.file.writer import Packed, pack
from opq.plan import Plan, TensorPlan


def packed(*tensors: tuple[TensorPlan, Stored]) -> Packed:
    return pack(Plan(method="rd", tensors=tuple(t for t, _ in tensors)), [item for _, item in tensors])


def raw(name: str, tensor: torch.Tensor) -> tuple[TensorPlan, Stored]:
    return kept(name, tensor), Raw(name, tensor)


def test_payloads_of_64_kilobytes_are_entries_of_their_own() -> None:
    most = container.OWN_ENTRY
    data = bytes_of(packed(raw("below", torch.ones(most - 1, dtype=torch.uint8)), raw("at", torch.ones(most).byte())))
    assert set(load(data)) == {"opq", "at"}


def test_entries_are_aligned_and_in_the_order_of_their_element_sizes() -> None:
    wide, number = torch.arange(1 << 16, dtype=torch.float64), 1 << 16
    codes = np.random.default_rng(0).integers(-3000, 3000, (1, number)).astype(np.int16)
    made = packed(
        (planned("codes", (1, number)), Grid("codes", codes)),
        raw("b.small", torch.arange(number).half()),
        raw("a.small", torch.arange(number).half()),
        raw("wide", wide),
    )
    data = bytes_of(made)
    header = int.from_bytes(data[:8], "little")
    assert header % 8 == 0
    with Reader(in_memory(data)) as opened:
        spans = sorted((start, name) for name, (start, _) in opened._spans.items())
        assert [name for _, name in spans] == ["wide", "a.small", "b.small", "codes"]
        assert [start % 8 for start, _ in spans] == [0, 0, 0, 0]
        assert torch.equal(opened.tensor("wide"), wide)
        assert np.array_equal(opened.codes("codes"), codes)


@pytest.mark.parametrize(
    ("value", "kind"), [(2**38 - 1, "scalar"), (1 - 2**38, "scalar"), (2**38, "raw"), (-(2**38), "raw")]
)
def test_one_integer_lies_in_the_index_where_it_is_below_2_to_the_38(value: int, kind: str) -> None:
    tensor = torch.tensor([[value]])
    with Reader(in_memory(bytes_of(packed(raw("n", tensor))))) as opened:
        assert opened.kind("n") == kind
        assert torch.equal(opened.tensor("n"), tensor)


def test_two_integers_and_one_float_are_no_scalar() -> None:
    with Reader(in_memory(bytes_of(packed(raw("two", torch.tensor([1, 2])), raw("one", torch.tensor(1.0)))))) as opened:
        assert [opened.kind(name) for name in opened.names] == ["raw", "raw"]


def test_a_tensor_has_at_most_32_axes() -> None:
    most = torch.ones((1,) * 32)
    with Reader(in_memory(bytes_of(packed(raw("t", most))))) as opened:
        assert opened.tensor("t").shape == most.shape
    with pytest.raises(MismatchError, match="too many axes: got 33, wanted at most 32"):
        packed(raw("t", torch.ones((1,) * 33)))


@pytest.mark.parametrize("entries", [1, 32767])
def test_a_codebook_has_1_to_32767_entries(entries: int) -> None:
    values = np.arange(entries, dtype=np.float32) / 7
    plan = planned("t", (2, 2), codebook="table", step=0.0, threshold=0.0)
    item = Table("t", values, np.array([[0, entries - 1], [0, 0]]))
    with Reader(in_memory(bytes_of(packed((plan, item))))) as opened:
        assert opened.tensor("t").tolist() == [[0.0, float(values[-1])], [0.0, 0.0]]


@pytest.mark.parametrize("values", [np.zeros(0), np.zeros(32768), np.array([np.nan]), np.array([1, np.inf])])
def test_another_codebook_is_refused(values: np.ndarray) -> None:
    plan = planned("t", (2, 2), codebook="table", step=0.0, threshold=0.0)
    with pytest.raises(MismatchError, match="'t': codebook"):
        packed((plan, Table("t", values.astype(np.float32), np.zeros((2, 2), np.int64))))


@pytest.mark.parametrize(("value", "width"), [(65504.0, 2), (65505.0, 4), (0.1, 4), (0.125, 2), (-65504.0, 2)])
def test_a_codebook_takes_two_bytes_a_number_where_these_hold_it(value: float, width: int) -> None:
    head = codebook.put(np.array([[value], [0.0]], np.float32))
    assert head[0] == width
    assert len(head) == 5 + 2 * width


def test_the_last_vector_may_be_cut() -> None:
    plan = planned("t", (3, 3), codebook="product", step=0.0, threshold=0.0)
    vectors = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    with Reader(in_memory(bytes_of(packed((plan, Product("t", vectors, np.array([0, 1, 1, 0, 1]))))))) as opened:
        assert opened.tensor("t").tolist() == [[1.0, 2.0, 3.0], [4.0, 3.0, 4.0], [1.0, 2.0, 3.0]]
    with pytest.raises(MismatchError, match="shape of the stored tensor"):
        packed((plan, Product("t", vectors, np.array([0, 1, 1, 0]))))


def test_the_dense_tensors_may_take_what_is_allowed_and_no_byte_more() -> None:
    for size in (SMALL // 4, SMALL // 4 + 1):
        zeros = Grid("w", np.zeros(size, np.int16))
        plan = planned("w", (size,), step=1.0)
        data, dense = bytes_of(pack(Plan(method="x", tensors=(plan,)), [zeros])), 4 * size
        if dense <= SMALL:
            Reader(in_memory(data), max_expansion=0).close()
        else:
            with pytest.raises(FileTooLargeError, match=f"got {dense} bytes, wanted at most {SMALL}"):
                Reader(in_memory(data), max_expansion=0)
        Reader(in_memory(data), max_expansion=dense / len(data)).close()


def test_codes_are_coded_by_chunks_from_a_size_on() -> None:
    assert not entropy.is_large((entropy.LARGE - 1,))
    assert entropy.is_large((entropy.LARGE,))
    assert entropy.is_large((2, entropy.LARGE // 2))


@pytest.mark.parametrize("shape", [(5, 1 << 21), (3, (1 << 22) + 1), (9, 3, 1 << 18)])
def test_chunks_are_whole_rows_and_fill_the_tensor(shape: tuple[int, ...]) -> None:
    found = entropy.chunks(shape)
    width = int(np.prod(shape[1:]))
    step = max(1, entropy.CHUNK // width)
    assert [rows for rows, _ in found] == [(k, min(k + step, shape[0])) for k in range(0, shape[0], step)]
    assert [(part.start, part.stop) for _, part in found] == [(a * width, b * width) for (a, b), _ in found]


@pytest.mark.parametrize("code", [-32767, 32767])
def test_the_largest_codes_come_back(code: int) -> None:
    codes = np.array([[code, 0, 1], [0, -1, code]])
    assert np.array_equal(entropy.decode(entropy.encode(codes), codes.shape), codes)
    with pytest.raises(OptionError, match="codes beyond 16 bits"):
        entropy.encode(codes + np.sign(code))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 15, 16, 17, 0xFEFF, 0xFFFF, 0x10000, 0x1FFFF])
def test_repeated_text_of_any_length_comes_back(length: int) -> None:
    for words in ("a" * length, "ab" * (length // 2), "x" * 20 + "layer.0" + "y" * length + "layer.0"):
        writer = StackWriter()
        text.put(writer, words)
        data = writer.finish()
        taken = Stack(data)
        assert text.take(taken, len(words)) == words
        taken.finish()
        with pytest.raises(CorruptFileError, match="longer than the file can hold"):
            text.take(Stack(data), len(words) - 1)


def test_a_longer_copy_is_preferred_and_a_remembered_distance_costs_less() -> None:
    def size(words: str) -> int:
        writer = StackWriter()
        text.put(writer, words)
        return len(writer.finish())

    names = [f"encoder.layers.{k}.attention.weight" for k in range(40)]
    assert size("\n".join(names)) < 40 * 3
    assert size("\n".join(names)) < size("\n".join(name[::-1] if k % 2 else name for k, name in enumerate(names)))


def test_a_kept_tensor_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(CorruptFileError, match="got 7 bytes, wanted 8"):
        stored.raw_tensor(memoryview(bytes(7)), (2,), torch.float32)
    assert stored.raw_tensor(memoryview(bytes(8)), (2,), torch.float32).tolist() == [0.0, 0.0]
