"""The tokenizer of the page of sentences, in Node: the ids that the one in Python gives."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import node
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import ROOT
from small_networks import VOCABULARY

pytestmark = pytest.mark.skipif(node.missing() is not None, reason=str(node.missing()))
tokenizers = pytest.importorskip("tokenizers")

MODULE = ROOT / "examples" / "web" / "wordpiece.js"
CODE = """
import { readFileSync } from "node:fs";
const { Tokenizer } = await import(process.argv[1]);
const [vocabulary, texts, most] = JSON.parse(readFileSync(0, "utf8"));
const tokenizer = new Tokenizer(vocabulary);
console.log(JSON.stringify(texts.map((text) => tokenizer.encode(text, most))));
"""
RANGES = [
    (0, 0x24F), (0x300, 0x36F), (0x370, 0x4FF), (0x2000, 0x206F), (0x3040, 0x30FF), (0x4E00, 0x4E40), (0xAC00, 0xAC20),
    (0x1F600, 0x1F640), (0x20000, 0x20010),
]  # fmt: skip
"""Scripts whose characters are of the same categories in every version of Unicode."""
letters = st.one_of(
    *(st.characters(min_codepoint=a, max_codepoint=b, exclude_categories=["Cs", "Cn"]) for a, b in RANGES)
)
words = st.sampled_from(["small", "files", "downloaded", "W7", "w8\u0301", "a" * 101, "isis", "\ufffd", "\0", "[SEP]"])


def in_javascript(texts: Sequence[str], most: int = 128) -> list[list[int]]:
    told = json.dumps(["\n".join(VOCABULARY), list(texts), most])
    command = ["node", "--input-type=module", "-e", CODE, MODULE.as_uri()]
    done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [list(ids) for ids in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY))
    found = tokenizers.BertWordPieceTokenizer(str(path), lowercase=True)
    found.enable_truncation(128)
    found._tokenizer.encode_special_tokens = True  # in the page "[SEP]" is five letters and marks, as it is written
    return found


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(letters | words | st.just(" "), max_size=30).map("".join), min_size=60, max_size=120))
def test_ids_are_those_of_python(python: Any, texts: list[str]) -> None:
    assert in_javascript(texts) == [python.encode(text).ids for text in texts]


def test_long_texts_end_where_python_ends_them(python: Any) -> None:
    text = "small files " * 80
    (ids,) = in_javascript([text])
    assert ids == python.encode(text).ids
    assert len(ids) == 128
    assert in_javascript([text], 5) == [[2, 6, 7, 8, 3]]
