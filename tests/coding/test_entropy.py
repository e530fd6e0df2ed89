"""Integer codes to bytes and back: exact for every input, close to the entropy, the same bytes for ever."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from limits import narrowed
from safetensors.torch import load_file

from opq.base import compiled
from opq.coding import classes as contexts
from opq.coding import entropy, tables
from opq.coding.entropy import coded_size, decode, encode
from opq.coding.stack import TOTAL, StackReader, StackWriter, categorical, uniform
from opq.coding.symbols import BASE, BEHIND, LAST, SYMBOL
from opq.coding.tensor_model import Coding
from opq.errors import CorruptFileError, OptionError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=12)
CODES = hnp.arrays(
    np.int16,
    SHAPES,
    elements=st.one_of(st.integers(-3, 3), st.integers(-40, 40), st.integers(-32767, 32767)),
    fill=st.integers(-2, 2),
)


def laplacian(shape: tuple[int, ...], scale: float, seed: int = 0) -> np.ndarray:
    """Rounded Laplacian numbers within 16 bits."""
    values = np.random.default_rng(seed).laplace(size=shape) * scale
    return np.clip(np.rint(values), -32767, 32767).astype(np.int16)


def structured(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Codes whose scale is a product of one for the row and one for the column; some of both are dead."""
    rng = np.random.default_rng(seed)
    r, c = np.exp(rng.normal(size=rows)), np.exp(rng.normal(size=columns))
    r[: rows // 8], c[-columns // 6 :] = 0, 0
    return np.rint(rng.laplace(size=(rows, columns)) * np.outer(r, c)).astype(np.int16)


def entropy_bytes(codes: np.ndarray) -> float:
    """The empirical entropy of all codes together, in bytes: the slow second opinion."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum() / 8)


def assert_round_trip(codes: np.ndarray, most: float = 1.01) -> bytes:
    """`most`: of the size foretold over the real one, which is less where codes have a structure of their own."""
    payload = encode(codes)
    back = decode(payload, codes.shape)
    assert back.dtype == np.int16
    assert back.shape == codes.shape
    np.testing.assert_array_equal(back, codes)
    assert encode(codes) == payload
    if codes.size < entropy.LARGE:
        assert abs(coded_size(codes) - len(payload)) <= 4 + len(payload) // 2000
    else:
        assert 0.995 * len(payload) - 4 <= coded_size(codes) <= most * len(payload) + 4
    return payload


@settings(deadline=None, max_examples=200)
@given(CODES)
def test_any_codes_come_back(codes: np.ndarray) -> None:
    assert_round_trip(codes)


@pytest.mark.parametrize("scale", [0.02, 0.3, 1, 4, 60, 4000])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (300,), (40, 50), (16, 8, 3, 3), (1, 9000), (9000, 1)])
def test_every_shape_and_scale_comes_back(shape: tuple[int, ...], scale: float) -> None:
    assert_round_trip(laplacian(shape, scale))


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((30, 40), np.int16),
        np.full((5, 5), -7, np.int16),
        np.array(32767, np.int16),
        np.array([-32767, 32767], np.int16),
        np.arange(-32767, 32768, dtype=np.int16),
        np.eye(100, dtype=np.int16) * 32767,
        np.zeros((0, 5), np.int16),
        np.zeros((4, 0, 3), np.int16),
        laplacian((40, 50), 3).T,
        laplacian((40, 50), 3)[::2, ::-3],
        np.arange(12, dtype=np.int64).reshape(3, 4),
    ],
    ids=["zero", "equal", "scalar", "extremes", "all", "outliers", "empty", "hollow", "transposed", "strided", "int64"],
)
def test_odd_inputs_come_back(codes: np.ndarray) -> None:
    assert_round_trip(codes)


@pytest.mark.parametrize(
    ("scale", "kind", "over"), [(0.12, "tables", 1.001), (1.5, "pages", 1.002), (60, "pages", 1.003)]
)
@narrowed(chunk=1 << 20)
def test_several_chunks_come_back_and_cost_little(scale: float, kind: str, over: float) -> None:
    """Large tensors are coded by pages, which decode fast, unless they are so sparse that pages cost too much."""
    codes = laplacian((3000, 1100), scale)
    payload = assert_round_trip(codes)
    assert entropy.draft(codes).coding.kind == kind
    assert len(entropy.Large.of(payload, codes.shape).chunks) == 4
    assert len(payload) < entropy_bytes(codes) * over


@pytest.mark.parametrize("scale", [1, 300])
def test_pages_have_classes_too(scale: int) -> None:
    codes = np.clip(structured(1000, 900).astype(int) * scale, -32767, 32767).astype(np.int16)
    draft = entropy.draft(codes)
    assert draft.coding.kind == "pages"
    assert draft.coding.contexts is not None
    assert len(assert_round_trip(codes, most=3)) < 0.85 * entropy_bytes(codes)


def test_all_zero_costs_nothing() -> None:
    assert assert_round_trip(np.zeros((100, 100), np.int16)) == b""
    assert len(assert_round_trip(np.zeros((1000, 1000), np.int16))) == 4
    assert len(assert_round_trip(np.full((3000, 1000), 9, np.int16))) < 16


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 3.0, 12.0])
def test_plain_codes_are_within_half_a_percent_of_their_entropy(scale: float) -> None:
    codes = laplacian((300, 1000), scale)
    assert len(encode(codes)) < entropy_bytes(codes) * 1.005 + 12


def test_classes_of_rows_and_columns_save_what_one_table_cannot() -> None:
    codes = structured(200, 300)
    payload = assert_round_trip(codes)
    assert entropy.draft(codes).coding.contexts is not None
    assert len(payload) < 0.85 * entropy_bytes(codes)


def test_dead_columns_of_a_sparse_layer_are_nearly_free() -> None:
    rng = np.random.default_rng(1)
    codes = ((rng.random((300, 784)) < 0.03) * rng.choice([-1, 1], (300, 784))).astype(np.int16)
    alive = codes.copy()
    codes[:, rng.random(784) < 0.5] = 0
    assert len(assert_round_trip(codes)) < 0.54 * len(assert_round_trip(alive)) + 120


def test_neighbours_alike_cost_less_than_neighbours_in_any_order() -> None:
    rng = np.random.default_rng(2)
    scale = np.repeat(np.exp(rng.normal(size=20)), 60)
    codes = np.rint(rng.laplace(size=(40, 1200)) * scale).astype(np.int16)
    shuffled = codes[:, rng.permutation(1200)]
    assert len(assert_round_trip(codes)) < len(assert_round_trip(shuffled)) - 100


@pytest.mark.parametrize(("bits", "saved"), [(0.7, 0.008), (0.2, 0.004)])
def test_real_weights_take_less_than_their_entropy(bits: float, saved: float, shared: Path) -> None:
    """MobileNet, one step for all: what one table a tensor could not do, header included."""
    state = load_file(shared / "weights" / "mobilenet_v1_075_imagenet.safetensors")
    weights = [w for w in state.values() if w.ndim > 1]
    step = bits * float(sum(w.square().sum() for w in weights) / sum(w.numel() for w in weights)) ** 0.5
    codes = [torch.round(w / step).to(torch.int16).numpy() for w in weights]
    coded = sum(len(encode(q)) for q in codes)
    assert coded < (1 - saved) * sum(map(entropy_bytes, codes))


@pytest.mark.parametrize("codes", [(-29046, -28887), (100, 101), (32767, 32766), (-32767, -32766)])
def test_large_codes_that_share_a_symbol_come_back(codes: tuple[int, ...]) -> None:
    """A model has two symbols or more, also where one would do."""
    given = np.array(codes, np.int16)
    assert np.array_equal(decode(encode(given), given.shape), given)


def test_few_codes_need_no_table() -> None:
    codes = laplacian((16,), 40) + 900
    assert len(assert_round_trip(codes)) <= 24


def test_codes_beyond_16_bits_are_refused() -> None:
    with pytest.raises(OptionError, match="16 bits"):
        encode(np.array([40000]))
    with pytest.raises(OptionError, match="16 bits"):
        encode(np.array([-32768], np.int16))


GOLDEN = {
    "tables": (np.array([[0, 1, 0, -1] * 8, [0, 0, 2, 0] * 8], np.int16), "3a5dc27783786581fe8271b54eb48018b4f603"),
    "geometric": (np.array([100, 96, 103, 99, 60], np.int16), "2b248c9ede61b3fc1f"),
    "constant": (np.full((3, 3), 5, np.int16), "60891a28"),
    "wide": (
        np.array([0, 33, -70, 1000, 0, 0, -32767, 5] * 4, np.int16),
        "00e043f7fff0a3ffc678844d66505394cd2baa7338779f236b317d99b29476dbc7d4b6015f3e51a80601",
    ),
}
"""Bytes that no later version may change; `python tests/coding/test_entropy.py` prints them anew."""


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes(name: str) -> None:
    codes, golden = GOLDEN[name]
    assert encode(codes).hex() == golden
    np.testing.assert_array_equal(decode(bytes.fromhex(golden), codes.shape), codes)


def test_golden_bytes_with_classes() -> None:
    payload = encode(structured(64, 96, seed=5))
    assert len(payload) == 1537
    assert payload[:16].hex() == "00001023b319747ca2a9118d73e7595b"


# --- damage ------------------------------------------------------------------------------------


def test_a_payload_of_another_shape_is_refused_or_has_that_shape() -> None:
    payload = encode(laplacian((40, 50), 2))
    for shape in [(39, 50), (50, 50), (2000,), (1, 1)]:
        try:
            assert decode(payload, shape).shape == shape
        except CorruptFileError:
            continue


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=60), st.sampled_from([(), (1,), (3,), (40,), (5, 6), (30, 20), (2, 3, 4), (0, 2)]))
def test_any_bytes_are_codes_or_corrupt(data: bytes, shape: tuple[int, ...]) -> None:
    try:
        codes = decode(data, shape)
    except CorruptFileError:
        return
    assert codes.shape == shape
    assert not codes.size or np.abs(codes.astype(int)).max() <= 32767


def forged(*steps: tuple[int, int]) -> bytes:
    """A stack of (symbol, size of its uniform alphabet)."""
    writer = StackWriter()
    for symbol, size in steps:
        writer.put(symbol, uniform(size))
    return writer.finish()


KIND_TABLES, KIND_GEOMETRIC, KIND_PAGES = (1, 4), (2, 4), (3, 4)


@pytest.mark.parametrize(
    ("payload", "fact"),
    [
        (b"\x01\x00", "zero byte"),
        (b"\x01" * 400, "longer|range|classes|table"),
        (forged((0, 4), (17, 41), (1, 1 << 16)), "beyond 16 bits"),
        (forged(KIND_TABLES, (5, 256), (9, 256)), "range of symbols"),
        (forged(KIND_TABLES, (128, 256), (0, 256)), "range of symbols"),
        (forged(KIND_TABLES, (128, 256), (120, 256)), "range of symbols"),
        (forged(KIND_TABLES, (127, 256), (2, 256), (40, 47), (40, 47)), "more classes"),
        (forged(KIND_TABLES, (127, 256), (2, 256)), "table is empty"),
        (forged(KIND_PAGES), "small tensor in pages"),
    ],
)
def test_damage_is_named(payload: bytes, fact: str) -> None:
    with pytest.raises(CorruptFileError, match=fact):
        decode(payload, (3, 3))


WIDE = laplacian((1024, 600), 40)
NARROW = laplacian((1024, 600), 2)


@pytest.mark.parametrize(
    ("chunk", "fact"),
    [
        (b"", "ends inside a page"),
        (b"\x10\x00\x00", "ends inside a page"),
        (b"\xff\xff\xff\xffpco!", "ends inside a page"),
        (b"\x05\x00\x00\x00hello", "integers are damaged"),
        (b"\x00\x00\x00\x00", "integers are damaged"),
        (Coding("pages", -9, 19).put_chunk(NARROW.reshape(-1)[1:], (0, 1024)), "too many or too few"),
        (Coding("pages", -9, 19).put_chunk(np.tile(NARROW.reshape(-1), 2), (0, 1024)), "too many or too few"),
        (Coding("pages", -9, 19).put_chunk(NARROW.reshape(-1), (0, 1024)) + b"\x00", "goes on after its pages"),
        (Coding("pages", -99, 199).put_chunk(WIDE.reshape(-1), (0, 1024)), "integers are damaged"),
    ],
    ids=["none", "cut", "huge", "foreign", "empty", "few", "many", "more", "wide"],
)
def test_damaged_pages_are_named(chunk: bytes, fact: str) -> None:
    """Eight bits a code are announced; sixteen are as wrong as any."""
    header = forged(KIND_PAGES, (0, 2), (0, 47))
    with pytest.raises(CorruptFileError, match=fact):
        decode(len(header).to_bytes(4, "little") + header + chunk, NARROW.shape)


def test_a_code_beyond_16_bits_in_a_page_is_refused() -> None:
    codes = np.full(WIDE.size, -(2**15), np.int16)
    header = forged(KIND_PAGES, (1, 2), (0, 47))
    chunk = Coding("pages", -99, 199).put_chunk(codes, (0, 1024))
    with pytest.raises(CorruptFileError, match="beyond 16 bits"):
        decode(len(header).to_bytes(4, "little") + header + chunk, WIDE.shape)


def test_a_large_tensor_has_tables_or_pages() -> None:
    header = forged(KIND_GEOMETRIC, (1, 41), (3, 28))
    with pytest.raises(CorruptFileError, match="geometric"):
        decode(len(header).to_bytes(4, "little") + header, (1024, 600))
    with pytest.raises(CorruptFileError, match="bytes of their own"):
        decode(bytes(4) + b"\x01", (1024, 600))


def test_a_long_axis_cannot_keep_the_reader_busy() -> None:
    payload = forged(KIND_TABLES, (127, 256), (1, 256), (2, 47), (0, 47), (1, 16), (1, 2))
    with pytest.raises(CorruptFileError, match="long axis"):
        decode(payload, (1 << 17, 2))


def test_an_empty_tensor_has_no_bytes() -> None:
    with pytest.raises(CorruptFileError, match="without elements"):
        decode(b"\x01", (0, 3))


def test_chunks_longer_than_the_payload_are_refused() -> None:
    shape = (3, 1 << 22)
    with pytest.raises(CorruptFileError, match="lengths"):
        decode(b"\x01\x00\x00", shape)
    with pytest.raises(CorruptFileError, match="shorter than its chunks"):
        decode(b"\xff\xff\xff\x7f" * 3 + b"\x01", shape)


# --- the parts ---------------------------------------------------------------------------------


def test_every_code_is_a_symbol_and_the_bits_behind_it() -> None:
    codes = np.arange(-32767, 32768)
    symbol, bits = SYMBOL[codes + 2**15].astype(int), BEHIND[codes + 2**15].astype(int)
    behind = np.abs(codes) & ((1 << bits) - 1)
    magnitude = BASE[symbol + 128] + np.where(np.abs(symbol) < 32, 0, behind)
    np.testing.assert_array_equal(np.where(symbol < 0, -magnitude, magnitude), codes)
    assert np.abs(symbol).max() == LAST
    assert (np.diff(symbol) >= 0).all()


def test_constriction_uses_the_integer_frequencies_exactly() -> None:
    """ANS on the frequencies themselves, in Python integers, gives constriction's words."""
    frequencies = np.array([3, TOTAL - 1003, 1, 999])
    symbols = np.array([1, 1, 0, 3, 2, 1, 1, 3, 0, 0, 1, 2, 1] * 9, np.int32)
    writer = StackWriter()
    writer.put(symbols, categorical(frequencies))
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    state, words = 0, []
    for s in reversed(symbols.tolist()):
        frequency, start = int(frequencies[s]), int(starts[s])
        if state >> 40 >= frequency:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = ((state // frequency) << 24) + start + state % frequency
    while state:
        words.append(state & 0xFFFFFFFF)
        state >>= 32
    by_hand = np.array(words, "<u4").tobytes().rstrip(b"\0")
    assert writer.finish() == by_hand


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 2**40 - 1), max_size=20), st.lists(st.integers(-(2**39), 2**39 - 1), max_size=20))
def test_numbers_come_back(unsigned: list[int], signed: list[int]) -> None:
    writer = StackWriter()
    for value in unsigned:
        writer.uint(value)
    for value in signed:
        writer.sint(value)
    writer.put(4, uniform(7))
    reader = StackReader(writer.finish())
    assert [reader.uint() for _ in unsigned] == unsigned
    assert [reader.sint() for _ in signed] == signed
    assert reader.take(uniform(7)) == 4
    reader.finish()


def test_what_is_left_on_the_stack_is_an_error() -> None:
    writer = StackWriter()
    writer.number(12345, 16)
    reader = StackReader(writer.finish())
    reader.number(8)
    with pytest.raises(CorruptFileError, match="longer"):
        reader.finish()


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.one_of(st.just(0), st.integers(0, 40), st.integers(0, 10**9)), min_size=2, max_size=200),
    st.integers(-111, 20),
)
def test_tables_come_back(counts: list[int], first: int) -> None:
    u = tables.roots(np.array(counts) + (not any(counts)))
    writer = StackWriter()
    tables.put(writer, u, first)
    reader = StackReader(writer.finish())
    np.testing.assert_array_equal(tables.take(reader, first, len(u)), u)
    frequencies = tables.frequencies(u)
    assert frequencies.sum() == TOTAL
    assert frequencies.min() >= 1


@given(st.integers(-128, 127).flatmap(lambda low: st.tuples(st.just(low), st.integers(1, 60))), st.data())
def test_predictions_at_once_are_those_one_by_one(place: tuple[int, int], data: st.DataObject) -> None:
    first, size = place
    u = np.array(data.draw(st.lists(st.integers(0, 5000), min_size=size, max_size=size)), np.int64)
    known: dict[int, int] = {}
    for symbol in tables._order(first, size):
        assert tables._predictions(u, first)[symbol - first] == tables._predict(known, symbol)
        known[symbol] = int(u[symbol - first])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_symbols_are_counted_alike_in_machine_code_and_in_numpy(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4)))
    alphabet, seed = data.draw(st.integers(2, 9)), data.draw(st.integers(0, 99))
    g = np.random.default_rng(seed)
    symbols = g.integers(0, alphabet, shape).astype(np.int16)
    r, c, d = (g.integers(0, 4, n).astype(np.uint8) for n in shape)
    first = data.draw(st.integers(0, 3))
    chosen = contexts.Contexts((r, c, d), first, data.draw(st.integers(1, 7)))
    low, high = sorted(data.draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0]))))

    def counted() -> list[np.ndarray]:
        part = np.repeat(symbols[low:high], 2)[::2]  # neither lies in memory as the machine code wants it
        turned = np.asfortranarray(symbols, np.int64)
        widths = [int(c.max()) + int(d.max()), int(r.max()) + int(d.max()), int(r.max()) + int(c.max())]
        by_index = [contexts._by_index(turned, [r, c, d], k, (w + 1, alphabet)) for k, w in enumerate(widths)]
        return [contexts.by_class(part, chosen, (low, high), alphabet), *by_index]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "LOOPS", compiled.Loops("opq.coding.loops", little=0.0))
        found = counted()
        patch.setattr(contexts, "LOOPS", lambda seconds: None)
        for one, other in zip(found, counted(), strict=True):
            assert np.array_equal(one, other)
            assert one.dtype == other.dtype
    of = np.clip(r[low:high, None, None] + c[:, None].astype(int) + d - first, 0, chosen.number - 1)
    for k, s in np.ndindex(chosen.number, alphabet):
        assert found[0][k, s] == ((of == k) & (symbols[low:high] == s)).sum()


def cheapest(symbols: np.ndarray, axes: list[np.ndarray], axis: int, alphabet: int) -> list[int]:
    """The class of each index of an axis that costs the fewest bits, its name included: weight by weight."""
    found = np.zeros((sum(int(a.max()) for a in axes) + 1, alphabet), np.int64)
    for place, symbol in np.ndenumerate(symbols):
        found[sum(int(a[i]) for a, i in zip(axes, place, strict=True)), symbol] += 1
    bits, names = contexts._lengths(found), contexts._lengths(np.bincount(axes[axis])[None])[0]
    costs = np.tile(names, (len(axes[axis]), 1))
    for place, symbol in np.ndenumerate(symbols):
        others = sum(int(a[i]) for k, (a, i) in enumerate(zip(axes, place, strict=True)) if k != axis)
        for own in range(len(names)):
            costs[place[axis], own] += bits[own + others, symbol]
    best = costs.argmin(1)
    return [int(k - best.min()) for k in best]


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)), st.integers(2, 5), st.integers(0, 999))
def test_every_index_moves_to_the_class_that_costs_the_fewest_bits(
    shape: tuple[int, int, int], alphabet: int, seed: int
) -> None:
    g = np.random.default_rng(seed)
    axes = [(k - k.min()).astype(np.uint8) for k in (g.integers(0, 4, n) for n in shape)]
    scale = sum(np.expand_dims(a, tuple({0, 1, 2} - {k})) for k, a in enumerate(axes))
    symbols = np.minimum(g.geometric(1 / (1 + scale)) - 1, alphabet - 1).astype(np.int16)
    for axis in range(3):
        assert contexts._reassigned(symbols, axes, axis, alphabet).tolist() == cheapest(symbols, axes, axis, alphabet)


def test_symbols_of_small_networks_are_counted_by_numpy_and_refined_classes_need_more_time() -> None:
    assert contexts.numpy_seconds([100_000] * 10) < compiled.LITTLE <= contexts.numpy_seconds([10**8])
    most = contexts._MOST
    assert contexts.numpy_seconds([most]) > 10 * contexts.numpy_seconds([most + 1])
    assert contexts.numpy_seconds([most, most + 1]) == contexts.numpy_seconds([most]) + contexts.numpy_seconds(
        [most + 1]
    )


def test_log2_is_close_and_never_too_large() -> None:
    values = np.unique(np.geomspace(1, 2**52, 4000).astype(np.int64))
    error = np.log2(values.astype(float)) * 65536 - tables.log2(values)
    assert error.min() > -0.6
    assert error.max() < 2.1


def test_geometric_frequencies_add_up_and_fall() -> None:
    from opq.coding.symbols import EDGES

    for table in tables.geometric(EDGES):
        assert table.sum() == TOTAL
        assert np.abs(table - table[::-1]).max() <= 256
        assert (np.diff(table[LAST : LAST + 32]) <= 0).all()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_blocks_split_as_the_definition_says_and_join_back(data: st.DataObject) -> None:
    axis = st.integers(1, 7).flatmap(lambda n: hnp.arrays(np.uint8, n, elements=st.integers(0, 4)))
    r, c, d = (data.draw(axis) for _ in range(3))
    first, number = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 6))
    chosen = contexts.Contexts((r, c, d), first, number)
    values = np.arange(r.size * c.size * d.size, dtype=np.int16)
    classes = (r[:, None, None].astype(int) + c[None, :, None] + d).reshape(-1)
    classes = np.clip(classes, first, first + number - 1) - first
    blocks = chosen.blocks(0, len(r))
    parts = list(blocks.split(values))
    assert [len(p) for p in parts] == blocks.amounts() == np.bincount(classes, minlength=number).tolist()
    for k, part in enumerate(parts):
        assert set(part.tolist()) == set(values[classes == k].tolist())
    back = np.empty_like(values)
    blocks.join(parts, back)
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((), (1, 1, 1)), ((5,), (5, 1, 1)), ((4, 6), (4, 6, 1)), ((4, 6, 3, 3), (4, 6, 9)), ((1, 8), (8, 1, 1)),
     ((1, 4, 6, 2), (4, 6, 2)), ((0, 3), (0, 3, 1))],
)  # fmt: skip
def test_three_axes_of_any_shape(shape: tuple[int, ...], axes: tuple[int, int, int]) -> None:
    assert contexts.view(shape) == axes


if __name__ == "__main__":
    for name, (codes, _) in GOLDEN.items():
        print(name, encode(codes).hex())
    classes = encode(structured(64, 96, seed=5))
    print(len(classes), classes[:16].hex())


def test_codings_are_the_same_if_their_headers_are() -> None:
    one = Coding("pages", -9, 19)
    assert one.same(Coding("pages", -9, 19))
    assert not one.same(Coding("pages", -99, 199))
