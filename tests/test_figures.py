"""Every table and figure of README and of the pages with figures is what the benchmarks measured."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

import figures
import pytest
from figures import SOURCES, WITHOUT, Row, Table, same, tables
from paths import ROOT

TABLES = [table for page in figures.checked_pages() for table in tables(page)]


NOTES = figures.rows("notes")
"""Figures that were read off on the way."""


def reason(table: Table) -> str | None:
    """Why a table comes from no row."""
    return next((why for (page, word), why in WITHOUT.items() if page == table.page and word in table.header), None)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t.page}: {', '.join(t.header[:3])}")
def test_a_table_is_what_was_measured(table: Table) -> None:
    source = SOURCES.get((table.page, table.header))
    if held := [row["cells"] for row in NOTES if (row["page"], tuple(row["header"])) == (table.page, table.header)]:
        assert [cells for cells in map(list, table.rows) if cells not in held] == [], "python examples/bench/notes.py"
    elif source is None:
        assert reason(table), f"{table.page}: tests/helpers/figures.py does not know where {table.header} comes from"
    else:
        assert not source.wrong(table), f"no row of {source.results}.json gives these rows of {table.page}"


def test_every_note_is_of_a_table_that_is_there() -> None:
    there = {(table.page, table.header, cells) for table in TABLES for cells in table.rows}
    gone = [row for row in NOTES if (row["page"], tuple(row["header"]), tuple(row["cells"])) not in there]
    assert not gone, "python examples/bench/notes.py"
    assert all({"commit", "date"} <= set(row["stamp"]) for row in NOTES)


def test_every_entry_of_the_helper_is_of_a_table_that_is_there() -> None:
    assert set(SOURCES) <= {(table.page, table.header) for table in TABLES}
    there = {(table.page, word) for table in TABLES for word in table.header}
    assert set(WITHOUT) <= there


def test_a_figure_that_is_not_a_row_s_is_found() -> None:
    """The comparison itself: one digit changed in any numeric cell of a table is noticed."""
    for (page, header), source in SOURCES.items():
        table = next(t for t in TABLES if (t.page, t.header) == (page, header))
        column = next(c for c in source.numbers if c != header[0])
        place = header.index(column)
        first = next(
            cells for cells in table.rows if all(told(cells[header.index(c)]) for c, told in source.words.items())
        )
        shown = figures.NUMBER.findall(first[place])[0]
        other = first[place].replace(shown, shown[:-1] + str((int(shown[-1]) + 3) % 10), 1)
        changed = Table(page, header, ((*first[:place], other, *first[place + 1 :]),), table.before)
        assert source.wrong(changed), (page, column, other)


# --- README ----------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()


def readme_table() -> Table:
    return next(table for table in tables("README.md") if "others" in table.header)


def one(results: str, **wanted: object) -> Row:
    """The row of a benchmark with these fields; the last where there are several."""
    found = [row for row in figures.rows(results) if all(row.get(k) == v for k, v in wanted.items())]
    assert found, f"no row of {results}.json has {wanted}"
    return found[-1]


def score(shown: str, row: Row) -> bool:
    """Per cent, or of embeddings a correlation."""
    return same(shown, row["top1"] / 100 if row["model"] == "minilm" else row["top1"])


def test_the_readme_s_table_is_what_was_measured() -> None:
    table, network = readme_table(), ""
    for cells in table.rows:
        named = dict(zip(table.header, cells, strict=True))
        network = network if named["network"].startswith("the same") else figures.model(named["network"])["model"]
        method = "rd" if "trellis=False" in named["network"] else "rd, trellis"
        for column in (name for name in table.header if name.endswith("bits")):
            row = one("datafree", model=network, method=method, budget=float(column.split()[0]))
            shown = figures.NUMBER.findall(named[column])
            assert score(shown[0], row), (network, method, column, named[column])
            if len(shown) > 1:
                unit = 1e6 if "MB" in named[column] else 1e3
                assert same(shown[1], row["file_bytes"] / unit), (network, method, column, named[column])
        if named["dense"]:
            assert same(
                figures.NUMBER.findall(named["dense"])[0], row["top1_dense"] / (100 if network == "minilm" else 1)
            )
        _others(named["others"], network, method)


def _others(cell: str, network: str, method: str) -> None:
    """`NNCodec 2, 4.1 bits: 38.8 %; at 1.8 bits: 79.5 %`: a tool, or opq itself, at so many bits."""
    tool = ""
    for text in filter(None, cell.split(";")):
        found = re.fullmatch(r"\s*(?:(.*?),?\s+)?([\d.]+) bits: ([\d.]+)(?: %)?(?: \(([\d.]+) kB\))?\s*", text)
        assert found, f"not understood: {text!r}"
        tool = (found[1] or tool).split()[0].lower()
        start = method if tool == "at" else tool
        rows = [r for r in figures.rows("datafree") if r["model"] == network and r["method"].startswith(start)]
        rows = [r for r in rows if tool != "at" or r["method"] == method]
        match = [r for r in rows if same(found[2], r["bits"]) and score(found[3], r)]
        assert match, f"no row of datafree.json gives {text!r} of {network}"
        assert found[4] is None or same(found[4], match[0]["file_bytes"] / 1e3), text


def finetuned(model: str, ratio: float, field: str) -> Callable[[], float]:
    return lambda: one("finetune", model=model, wanted_ratio=ratio)[field]


def fewer_bytes(model: str, method: str = "rd, trellis") -> Callable[[], float]:
    """Per cent of bytes that opq needs less than NNCodec at its mean squared error; more, if it needs more."""

    def of() -> float:
        own = one("codec", model=model, method=f"{method}, at that error")["file_bytes"]
        return abs(100 * (1 - own / one("codec", model=model, method=NNCODEC)["file_bytes"]))

    return of


def steps(field: str) -> list[float]:
    return [100 * (row[field] - 1) for row in figures.rows("finetune") if row.get("batch")]


def of_codec(model: str, method: str, field: str, unit: float = 1.0) -> Callable[[], float]:
    return lambda: one("codec", model=model, method=method)[field] / unit


NNCODEC, AT_ITS_ERROR = "nncodec qp=-26", "rd, trellis, at that error"
MOBILENET, RANDOM = "mobilenet-v1-0.75", "resnet-50 shapes"
SAID: dict[str, Callable[[], float | list[float]]] = {
    "156x": finetuned("lenet-300-100", 150, "ratio"),
    "1.34 %": finetuned("lenet-300-100", 150, "error"),
    "295x": finetuned("lenet-300-100", 300, "ratio"),
    "1.94 %": finetuned("lenet-300-100", 300, "error"),
    "1.21 %": finetuned("lenet-300-100", 300, "error_dense"),
    "377x": finetuned("lenet-5", 298, "ratio"),
    "0.70 %": finetuned("lenet-5", 298, "error"),
    "467x": finetuned("lenet-5", 400, "ratio"),
    "0.76 %": finetuned("lenet-5", 400, "error"),
    "0.59 %": finetuned("lenet-5", 400, "error_dense"),
    "20.3x": finetuned("resnet-20", 20, "ratio"),
    "11.5 %": finetuned("resnet-20", 20, "error"),
    "11.6 %": finetuned("resnet-20", 20, "error_dense"),
    "11.3 %": lambda: statistics.mean(
        row["error"] for row in figures.rows("finetune") if row["method"] == "dense, the same recipe"
    ),
    "7.5 %": lambda: one("language", model="piper", method="rd, weights only", budget=3.4)["errors"],
    "8.2 %": lambda: one("language", model="piper", method="rd, weights only", budget=3.4)["errors_dense"],
    "13 %": lambda: max(steps("native")),
    "26 %": lambda: max(steps("top1")),
    "4.8 %": fewer_bytes("resnet-20"),
    "6.5 %": fewer_bytes(MOBILENET),
    "3.1 %": fewer_bytes("minilm"),
    "3.6 %": fewer_bytes(RANDOM),
    "1.6 %": fewer_bytes(MOBILENET, "rd"),
    "1.8 %": fewer_bytes(RANDOM, "rd"),
    "80.95 %": of_codec("resnet-20", AT_ITS_ERROR, "top1"),
    "81.04 %": of_codec("resnet-20", NNCODEC, "top1"),
    "24.5 %": of_codec(MOBILENET, AT_ITS_ERROR, "top1"),
    "32.0 %": of_codec(MOBILENET, NNCODEC, "top1"),
    "2.6 s": lambda: one("speed", model="digits", method="rd, trellis")["seconds"],
    "12.0 s": lambda: one("speed", model="minilm", method="rd, trellis")["seconds"],
    "13.7 s": lambda: one("speed", model="mobilenet-v1-0.75", method="rd, trellis")["seconds"],
    "3.9 s": of_codec(RANDOM, AT_ITS_ERROR, "cpu_seconds"),
    "7.7 s": of_codec(RANDOM, NNCODEC, "cpu_seconds"),
    "0.27 s": of_codec(RANDOM, AT_ITS_ERROR, "decode_cpu_seconds"),
    "1.14 s": of_codec(RANDOM, NNCODEC, "decode_cpu_seconds"),
}
"""Figures in README's sentences, and where each comes from."""
NOT_MEASURED = {
    "0.5 %": "how near the budget a file is, which the tests of the budget hold",
    "25.6 M": "weights in ResNet-50's shapes",
    "16 %": "a step of MiniLM with 256 tokens, told in docs/finetune.md outside its table",
    "36 %": "the same without the kernel",
    "27 kB": "opq.js compressed, which tests/web/test_package.py bounds",
    "10x": "an example of `--ratio`",
}
"""Other numbers with a unit in README's sentences."""


def sentences() -> str:
    """README without code and tables."""
    text = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"\s+", " ", re.sub(r"`[^`]*`", "", text))


def test_every_figure_in_the_readme_s_sentences_is_what_was_measured() -> None:
    found = {
        re.sub(r"\s+", " ", one[0]) for one in re.finditer(r"\d[\d,.]*(?: ?%|x\b| s\b| M\b| MB\b| kB\b)", sentences())
    }
    unknown = found - set(SAID) - set(NOT_MEASURED)
    assert not unknown, f"say in tests/test_figures.py where these come from: {sorted(unknown)}"
    for shown in sorted(found & set(SAID)):
        measured = SAID[shown]()
        for value in measured if isinstance(measured, list) else [measured]:
            assert same(figures.NUMBER.findall(shown)[0], value), (shown, value)
    assert set(SAID) <= found, f"README no longer says: {sorted(set(SAID) - found)}"


def test_what_the_readme_says_of_a_language_model_was_measured() -> None:
    own, small, q3, q2 = (
        one("language", model="smollm2-135m", **wanted)
        for wanted in (
            *({"method": "rd", "budget": bits} for bits in (4.0, 2.5)),
            *({"method": f"llama.cpp {kind}"} for kind in ("Q3_K_M", "Q2_K")),
        )
    )
    said = (
        f"(perplexity {own['perplexity_dense']:.1f}), {own['bits']:.1f} bits leave a perplexity of "
        f"{own['perplexity']:.1f} and a divergence of {own['divergence']:.3f} nats a token, {small['bits']:.1f} bits "
        f"{small['perplexity']:.1f} and {small['divergence']:.3f}; llama.cpp's Q3_K_M has "
        f"{q3['perplexity']:.1f} and {q3['divergence']:.3f} at {q3['bits']:.1f} bits, its "
        f"Q2_K {q2['perplexity']:.1f} and {q2['divergence']:.3f} at {q2['bits']:.1f}"
    )
    assert said in sentences()
    streamed = one("language", model="smollm2-135m", method="rd, streamed", budget=4.0)
    said = (
        f"({streamed['memory'] / 1e3:.1f} GB), {streamed['bits']:.1f} bits leave {streamed['perplexity']:.1f} and "
        f"{streamed['divergence']:.3f}"
    )
    assert said in sentences()
    voice = one("language", model="piper", method="rd, weights only", budget=3.4)
    said = (
        f"at {voice['bits']:.1f} bits as well as before ({voice['errors']:.1f} % of the words misheard; "
        f"{voice['errors_dense']:.1f} %)"
    )
    assert said in sentences()
