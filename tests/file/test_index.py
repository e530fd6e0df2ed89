"""The index: what it may hold, and how far its bytes may expand."""

from __future__ import annotations

import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from file_helpers import bytes_of, in_memory, with_index
from hypothesis import given, settings

from opq.base import format_v1
from opq.coding import text
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError, FileTooLargeError, WriteError
from opq.file import index
from opq.file.index import Place
from opq.file.reader import Reader
from opq.file.stored import Raw
from opq.file.writer import pack
from opq.plan import Plan, TensorPlan


def empty(name: str, shape: tuple[int, ...] = (0,), reason: str = "r") -> TensorPlan:
    return TensorPlan(name=name, shape=shape, dtype="F32", action="keep", reason=reason)


def forged(number: int, steps: list[tuple[int, int]], filler: int) -> bytes:
    """An index of so many tensors whose text is a line feed and then steps: (0, 1) a line feed, (1, n) a copy of n.

    `filler` bytes of noise behind them make it as long as it says.
    """
    writer, models, kind = StackWriter(), text._Models(), 0
    writer.uint(number)
    writer.uint(1 + sum(length for _, length in steps))
    for step, length in [(0, 1), *steps]:
        models.kinds[kind].put(writer, step)
        kind = step
        if step:
            models.lengths.put(writer, length)
            models.distances.put(writer, 1)
        else:
            models.bytes.put(writer, ord("\n"))
    writer.put(np.random.default_rng(0).integers(0, 1 << 16, filler // 2).astype(np.int32), uniform(1 << 16))
    return writer.finish()


def test_a_text_of_many_short_lines_is_refused_before_it_is_cut() -> None:
    """4 MB of index and 16 million lines took gigabytes."""
    data = forged(900_000, [(1, 0xFFFF)] * 250, 4_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError, match="more reasons than tensors: got 16383752"):
            index.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 16 * len(data)
    finally:
        tracemalloc.stop()


def test_a_text_may_be_as_long_as_its_limit_and_no_longer() -> None:
    assert format_v1.most_text(0) == 1 << 20
    assert format_v1.most_text(1 << 30) == (1 << 24) - 1
    with pytest.raises(CorruptFileError, match="a text is longer"):
        index.decode(forged(5, [(1, 0xFFFF)] * 17, 0))
    with pytest.raises(CorruptFileError, match="more reasons than tensors"):
        index.decode(forged(5, [(1, 0xFFFF)] * 15, 0))


def test_symbols_that_cost_nothing_do_not_go_on_for_ever() -> None:
    """Each line feed is foreseen ever better: hundreds of thousands of them take a few bytes."""
    data = forged(5, [(0, 1)] * 100_000, 0)
    assert len(data) < 1000
    with pytest.raises(CorruptFileError, match="goes on for longer than its bytes can mean"):
        index.decode(data)


def test_a_stack_gives_as_many_symbols_as_it_may() -> None:
    writer = StackWriter()
    for _ in range(5):
        writer.put(1, uniform(3))
    data = writer.finish()
    assert [StackReader(data, most=5).take(uniform(3))] == [1]
    reader = StackReader(data, most=5)
    assert [reader.take(uniform(3)) for _ in range(5)] == [1] * 5
    with pytest.raises(CorruptFileError):
        reader.take(uniform(3))


@pytest.mark.parametrize("kind", ["shares", "matrices", "numbers", "unary"])
def test_the_densest_honest_index_is_far_within_the_limits(kind: str) -> None:
    def tensor(k: int) -> tuple[TensorPlan, Place]:
        if kind == "shares" and k:
            like = "layers.0.w"
            shared = TensorPlan(
                name=f"layers.{k}.w", shape=(64, 64), dtype="F32", action="share", reason="r", like=like
            )
            return shared, Place("share", 0)
        name = {"shares": "layers.0.w", "matrices": f"layers.{k // 64}.experts.{k % 64}.w", "numbers": f"{k}"}
        return empty(name.get(kind, "a" * k), (64, 64)), Place("raw", 16384)

    tensors, places = zip(*map(tensor, range(1000 if kind == "unary" else 4000)), strict=True)
    plan = Plan(method="x", tensors=tensors)
    stack = index._put(plan, places)
    size = len(stack.finish())
    assert len(stack) < 16 * size
    assert len(plan) < 1.5 * size
    assert index.decode(index.encode_whole(plan, places)) == (plan, list(places))


def test_a_name_of_a_hundred_thousand_letters_is_a_name() -> None:
    name = "a" * 100_000
    data = bytes_of(pack(Plan(method="x", tensors=(empty(name),)), [Raw(name, torch.empty(0))]))
    assert len(data) < 1000
    with Reader(in_memory(data)) as opened:
        assert opened.names == (name,)


@pytest.mark.parametrize(
    ("tensor", "fact"),
    [
        (empty("a\ud800b"), "a name that is no text"),
        (empty("w", (0, 1 << 50)), "tensor 'w': a shape that no file holds"),
        (empty("w", (0, 1 << 39, 1 << 39)), "tensor 'w': a shape that no file holds"),
        (empty("a" * (1 << 21)), "names of more bytes than an index can hold"),
    ],
    ids=["surrogate", "long axis", "large shape", "long name"],
)
def test_what_a_reader_would_refuse_is_not_written(tensor: TensorPlan, fact: str) -> None:
    """One error, of one line."""
    with pytest.raises(WriteError, match=fact) as raised:
        index.encode_whole(Plan(method="x", tensors=(tensor,)), [Place("raw", 0)])
    assert "\n" not in str(raised.value)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=3)), max_size=6, unique_by=lambda pair: pair[0]))
def test_what_is_written_is_read(named: list[tuple[str, str]]) -> None:
    plan = Plan(method="x", tensors=tuple(empty(name, reason=reason) for name, reason in named))
    places = [Place("raw", 0)] * len(named)
    try:
        data = index.encode_whole(plan, places)
    except WriteError:
        assert any("\ud800" <= letter <= "\udfff" for name, _ in named for letter in name)
        return
    assert index.decode(data) == (plan, places)


def test_tied_names_count_in_what_a_file_may_decode_to() -> None:
    """497 bytes whose 200 names are tied to one tensor of 64 MiB wrote 12.9 GB."""
    one = TensorPlan(name="w", shape=(1 << 24,), dtype="F32", action="keep", reason="r")
    tied = [TensorPlan(name=f"t{k}", shape=(1 << 24,), dtype="F32", action="share", reason="r", like="w")
            for k in range(200)]  # fmt: skip
    for plan, most in ((Plan(method="x", tensors=(one,)), True), (Plan(method="x", tensors=(one, *tied)), False)):
        places = [Place("fine", 0, number=1.0), *[Place("share", 0)] * (len(plan) - 1)]
        data = with_index(plan, places)
        assert len(data) < 1000
        if most:
            Reader(in_memory(data)).close()
            continue
        with pytest.raises(FileTooLargeError, match=f"got {201 << 26} bytes"):
            Reader(in_memory(data))
        Reader(in_memory(data), max_expansion=1e9).close()
