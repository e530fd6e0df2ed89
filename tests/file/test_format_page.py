"""docs/format.md: the numbers on the page are those of the code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from paths import DOCS

from opq.base import format_v1
from opq.base.dtypes import DTYPES
from opq.coding import adaptive, class_tables, classes, entropy, numbers, symbols, tables, text
from opq.coding.stack import StackWriter
from opq.file import index_rows
from opq.plan import COLUMNS, TensorPlan
from opq.quantizing import trellis

PAGE = (DOCS / "format.md").read_text()
PROSE = " ".join(PAGE.split())
"""Without breaks of lines."""


def rows(title: str) -> list[list[str]]:
    """The cells of the rows of the table whose head begins with `title`, the head itself first."""
    lines = PAGE[PAGE.index(f"| {title} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def written(put: Callable[[StackWriter], object]) -> str:
    writer = StackWriter()
    put(writer)
    return writer.finish().hex(" ")


def after_one(weights: Sequence[int], symbol: int) -> list[int]:
    """The frequencies of an adaptive model after one symbol."""
    model = adaptive.Adaptive(weights)
    model.put(StackWriter(), symbol)
    return [int(f) for f in tables.shares(model._weights)]


CODES = np.array([[0, 1, -1, 0], [40, -3, 0, 1], [0, 0, -100, 2]], np.int16)
ROOTS = np.array([1, 4, 9, 3, 1])
TEXT = "layer.0.weight\nlayer.1.weight\nlayer.2.bias"
CLASSES = classes.Contexts(
    (np.array([0, 1, 1, 0], np.uint8), np.array([0, 2, 0], np.uint8), np.zeros(1, np.uint8)), 1, 2
)


def checks() -> list[tuple[str, str]]:
    """What a decoder can be tested by, and its value: the table at the end of the page."""
    g = tables.geometric(symbols.EDGES)
    k = np.array([1, 0, -1, 2, 3, 0, 0, -2, 1, 0, 0, 5], np.int16)[:, None]
    geometric = [
        (f"geometric, scale {s}: frequencies of 0, 1, 31, 32, 110, 111", listed(g[s][111 + t] for t in TS))
        for s in (0, 13, 27)
    ]
    return [
        ("`shares(1, 1, 1)`", listed(tables.shares(np.ones(3, np.int64)))),
        ("`shares` of `kinds[0]` of a text", listed(tables.shares(np.array([40, 20, 10, 8, 6, 6])))),
        ("the same after one symbol 1", listed(after_one([40, 20, 10, 8, 6, 6], 1))),
        ("stack of the uint 1000", code(written(lambda w: w.uint(1000)))),
        ("stack of the sint -70000", code(written(lambda w: w.sint(-70000)))),
        ("stack of `floats(2)`: 0.5, 3", code(written(lambda w: numbers.put(w, [0.5, 3.0])))),
        ("stack of `floats(1)`: 0.1", code(written(lambda w: numbers.put(w, [0.1])))),
        ("stack of the text `layer.0.weight`, `layer.1.weight`, `layer.2.bias`, line feeds between",
         code(written(lambda w: text.put(w, TEXT)))),
        ("stack of the table of -2 to 2 with `u` = 1, 4, 9, 3, 1", code(written(lambda w: tables.put(w, ROOTS, -2)))),
        ("its frequencies", listed(tables.frequencies(ROOTS))),
        ("stack of the classes of rows 0, 1, 1, 0 and columns 0, 2, 0, `first` 1, number 2",
         code(written(lambda w: class_tables.put(w, CLASSES)))),
        ("their order of a row-major matrix 0, ..., 11", listed(
            np.concatenate(list(CLASSES.blocks(0, 4).split(np.arange(12)))))),
        *geometric,
        ("codes (3, 4): 0, 1, -1, 0, 40, -3, 0, 1, 0, 0, -100, 2", code(entropy.encode(CODES).hex(" "))),
        ("all codes -7", code(entropy.encode(np.full((2, 2), -7, np.int16)).hex(" "))),
        ("trellis, one column, `k` = 1, 0, -1, 2, 3, 0, 0, -2, 1, 0, 0, 5: `n`", listed(trellis.numbers(k).ravel())),
    ]  # fmt: skip


TS = (0, 1, 31, 32, 110, 111)


def listed(values: object) -> str:
    return ", ".join(str(int(v)) for v in values)  # type: ignore[attr-defined]


def code(digits: str) -> str:
    return f"`{digits}`"


@pytest.mark.parametrize(("what", "value"), checks())
def test_a_number_to_check_a_decoder_by_is_on_the_page(what: str, value: str) -> None:
    assert f"| {what} | {value} |" in PAGE


def test_the_weights_of_the_frequency_tables_are_on_the_page() -> None:
    assert [tuple(map(int, row[1:])) for row in rows("`W`")[1:]] == list(format_v1.TABLE_WEIGHTS)
    assert len(format_v1.TABLE_WEIGHTS) == 10
    assert f"No `u` is above {format_v1.LARGEST_ROOT}" in PAGE


def test_the_element_types_and_kinds_are_on_the_page() -> None:
    body = rows("number")[1:]
    by_number = {row[k]: row[k + 1 : k + 3] for row in body for k in (0, 5)}
    for number, name in enumerate(format_v1.DTYPE_NAMES):
        assert by_number[str(number)] == [f"`{name}`", str(DTYPES[name].itemsize)]
    assert [f"`{name}`" for name in format_v1.KIND_NAMES] == rows("kind")[1][1 : 1 + len(format_v1.KIND_NAMES)]
    assert all(f"| {k} `{name}` |" in PAGE for k, name in enumerate(format_v1.KIND_NAMES))
    (coded,) = re.findall(r"Kinds 0 to 4 and 8 to 15 stand for (.*?) only\.", PROSE)
    assert re.findall(r"[BF]\w+", coded) == list(format_v1.CODED_TYPES)


def test_the_models_of_rows_and_texts_are_on_the_page() -> None:
    of = index_rows.Rows((), {})
    said = {row[0]: row[1] for row in rows("model")[1:]}  # the first such table: of texts
    models = text._Models()
    assert said["`kinds[0]`"] == listed(models.kinds[0]._weights)
    assert said["`kinds[1]` to `kinds[5]`, one each"] == listed(models.kinds[5]._weights)
    assert [list(m._weights) for m in models.kinds[1:]] == [list(models.kinds[5]._weights)] * 5
    lengths, distances = list(models.lengths._lengths._weights), list(models.distances._lengths._weights)
    assert said["`lengths`, adaptive number"].startswith(listed(lengths[:8]) + ", then 17 times 1")
    assert lengths[8:] == [1] * 17
    assert said["`distances`, adaptive number"].startswith(listed(distances[:17]) + ", then 8 times 1")
    assert distances[17:] == [1] * 8
    weights = list(models.bytes._weights)
    often, seldom = b"einortasgblwhmcd", b"ukvpfyxqzj._0123456789\n"
    assert often.decode() in said["`bytes`, 256 symbols"]
    assert weights == [24 if b in often else 12 if b in seldom else 2 if 32 <= b <= 126 else 1 for b in range(256)]
    table = PAGE[PAGE.index("Models of all rows together") :]
    for name, model, count, weight in (
        ("`kinds[0]` to `kinds[15]`", of.kinds[15], 16, 8), ("`types`", of.dtypes, 32, 4), ("`ranks`", of.ranks, 33, 4),
        ("`wide`, adaptive number", of.wide._lengths, 41, 4), ("`small`, adaptive number", of.small._lengths, 25, 4),
    ):  # fmt: skip
        assert f"| {name} | {count} times {weight}" in table
        assert list(model._weights) == [weight] * count
    assert f"| `same` | {listed(of.same._weights)} |" in table
    assert f"| `own` | {listed(of.own._weights)} |" in table
    assert f"grows by {format_v1.LEARNING}." in PROSE


def test_the_columns_are_on_the_page() -> None:
    head, defaults = rows("column")
    assert tuple(head[1:]) == COLUMNS
    plan = TensorPlan(name="", shape=(), dtype="F32", action="keep", reason="")
    assert [float(d) for d in defaults[1:]] == [getattr(plan, name) for name in COLUMNS]


def test_limits_and_lengths_are_on_the_page() -> None:
    assert "`N < 2^19 = 524288`" in PROSE
    assert format_v1.LARGE == 1 << 19
    assert "`max(1, 2^22 // (C K))` rows" in PROSE
    assert format_v1.CHUNK == 1 << 22
    assert f"paths of {format_v1.RUN} rows" in PROSE
    assert f"within +-{format_v1.LARGEST_PATH}" in PROSE
    assert f"an exponent beyond +-{format_v1.FARTHEST_ROW}" in PROSE
    assert f"Q = 1, {', '.join(map(repr, format_v1.QUARTERS[1:]))}" in PROSE
    assert f"at most {format_v1.MOST_AXES} axes" in PROSE
    assert f"`first + number` is at most {format_v1.MOST_CLASSES}" in PROSE
    assert f"axes of at most {format_v1.LONGEST_CHAIN}." in PROSE
    assert f"{format_v1.LARGEST_HEADER:,}" in PROSE
    expansion = f"{format_v1.MAX_EXPANSION:,} bytes for each byte of the file, or {format_v1.SMALL >> 20} MiB"
    assert f"at most {expansion}" in PROSE
    assert f"all within +-{symbols.LAST}" in PROSE
    n = 1000
    assert "at most `min(64 + 2 n, 2^20)` tensors" in PROSE
    assert format_v1.most_tensors(n) == 64 + 2 * n
    assert format_v1.most_tensors(1 << 30) == 1 << 20
    assert "a text of at most `min(2^20 + 64 n, 2^24 - 1)` bytes" in PROSE
    assert format_v1.most_text(n) == (1 << 20) + 64 * n
    assert format_v1.most_text(1 << 30) == (1 << 24) - 1
    assert "at most `min(2^16 + 32 n, 2^22)` symbols" in PROSE
    assert format_v1.most_symbols(n) == (1 << 16) + 32 * n
    assert format_v1.most_symbols(1 << 30) == 1 << 22
    for size in (28, 41, 47, 256):
        assert f"`uniform({size})`" in PROSE
    assert format_v1.SCALES == 28


if __name__ == "__main__":
    for what, value in checks():
        print(f"| {what} | {value} |")
