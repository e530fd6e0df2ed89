"""The index of a folder of shards: nothing that it says is believed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import fuzz
import pytest
from file_helpers import codes_in

from opq.base.format_v1 import LARGEST_FOLDER_INDEX
from opq.errors import (
    ClosedReaderError,
    CorruptFileError,
    FileFormatError,
    ForeignFileError,
    MismatchError,
    MissingFileError,
    NewerFormatError,
    TruncatedFileError,
)
from opq.file.folder_reader import INDEX, FolderReader, index_bytes, open_reader
from opq.file.writer import pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, their tensors interleaved in the index."""
    plan, items = fuzz.every_kind()
    shards = {"one.opq.safetensors": plan.tensors[:5], "two.opq.safetensors": plan.tensors[5:]}
    for file, tensors in shards.items():
        own = {t.name for t in tensors if t.like is None}
        packed = pack(plan.replace(tensors=tensors), [item for item in items if item.name in own])
        (tmp_path / file).write_bytes(b"".join(packed.parts))
    where = {t.name: file for file, tensors in shards.items() for t in tensors}
    (tmp_path / INDEX).write_bytes(index_bytes(dict(sorted(where.items())), sum(t.size for t in plan.own)))
    return tmp_path


def test_it_is_read_like_one_file(folder: Path) -> None:
    plan, items = fuzz.every_kind()
    with open_reader(folder) as reader, open_reader(folder / INDEX) as same:
        assert list(reader.names) == sorted(t.name for t in plan)
        assert reader.plan == same.plan
        assert reader.bytes == sum(path.stat().st_size for path in folder.iterdir())
        assert reader.kind("steps") == "scalar"
        assert (reader.codes("shared") == codes_in(items[0])).all()
        with pytest.raises(MismatchError, match="no tensor 'nothing'"):
            reader.tensor("nothing")
        state = reader.state_dict()
        assert list(state) == list(reader.names)
        assert state["shared"] is state["grid"]
        assert all(bool((reader.tensor(name) == state[name]).all()) for name in state)
    with pytest.raises(ClosedReaderError):
        reader.tensor("grid")


def changed(folder: Path, change: Any) -> Path:
    """The folder with its index as JSON changed; what is given in place of a function is the new text."""
    text = (folder / INDEX).read_text()
    if callable(change):
        content = json.loads(text)
        change(content)
        text = json.dumps(content)
    else:
        text = change
    (folder / INDEX).write_text(text)
    return folder


BIG = '{"metadata": {"opq": "1"}, "weight_map": {"grid": "one.opq.safetensors", "grid": "two.opq.safetensors"}}'
WRONG: dict[str, tuple[Any, type[FileFormatError], str]] = {
    "no JSON": ("{", CorruptFileError, "is not JSON"),
    "deep": ("[" * 100_000, CorruptFileError, "is not JSON"),
    "a list": ("[]", ForeignFileError, "not written by opq"),
    "another's": (lambda c: c.update(metadata={"total_size": 3}), ForeignFileError, "not written by opq"),
    "no metadata": (lambda c: c.pop("metadata"), ForeignFileError, "not written by opq"),
    "newer": (lambda c: c.update(metadata={"opq": "2"}), NewerFormatError, "of a newer format"),
    "odd version": (lambda c: c.update(metadata={"opq": 1}), CorruptFileError, "has no version"),
    "no map": (lambda c: c.pop("weight_map"), CorruptFileError, "is no index"),
    "empty map": (lambda c: c.update(weight_map={}), CorruptFileError, "is no index"),
    "numbers": (lambda c: c["weight_map"].update(grid=3), CorruptFileError, "is no index"),
    "named twice": (BIG, CorruptFileError, "stands twice"),
    "no shard": (lambda c: c["weight_map"].update(grid="three"), MissingFileError, "cannot open .*three"),
    "long name": (lambda c: c["weight_map"].update(grid="x" * 5000), MissingFileError, "cannot open"),
    "another shard": (
        lambda c: c["weight_map"].update(grid="two.opq.safetensors"), CorruptFileError, "does not place there",
    ),
    "left out": (lambda c: c["weight_map"].pop("grid"), CorruptFileError, "does not place there"),
    "a ghost": (lambda c: c["weight_map"].update(ghost="one.opq.safetensors"), CorruptFileError, "does not hold it"),
    **{
        f"outside by {name!r}": (lambda c, name=name: c["weight_map"].update(grid=name), CorruptFileError, "outside")
        for name in ("../m", "/etc/passwd", "..", ".", "", ".hidden", "a/b", "a\\b", "C:x", "a\0b", "\ud800", "a\nb")
    },
}  # fmt: skip


@pytest.mark.parametrize("how", WRONG)
def test_each_way_to_be_wrong_has_its_error(how: str, folder: Path) -> None:
    change, error, fact = WRONG[how]
    with pytest.raises(FileFormatError, match=fact) as raised:
        FolderReader(changed(folder, change))
    assert type(raised.value) is error
    str(raised.value).encode()


def test_no_index_and_one_too_large(folder: Path) -> None:
    os.truncate(folder / INDEX, LARGEST_FOLDER_INDEX + 1)  # a hole, which takes no room on the disk
    with pytest.raises(CorruptFileError, match="too large for an index"):
        FolderReader(folder)
    (folder / INDEX).unlink()
    with pytest.raises(MissingFileError, match=r"holds no model\.opq\..*Finish the compression"):
        FolderReader(folder)
    (folder / INDEX).mkdir()
    with pytest.raises(MissingFileError, match="cannot open"):
        FolderReader(folder)


def test_a_damaged_shard_is_named(folder: Path) -> None:
    path = folder / "two.opq.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruncatedFileError, match=r"two\.opq\.safetensors"):
        FolderReader(folder)


def test_shards_of_two_compressions(folder: Path) -> None:
    plan, items = fuzz.every_kind()
    half = plan.replace(tensors=plan.tensors[5:], predicted_bytes=1)
    names = {t.name for t in half}
    (folder / "two.opq.safetensors").write_bytes(b"".join(pack(half, [i for i in items if i.name in names]).parts))
    with pytest.raises(CorruptFileError, match="not of one plan"):
        FolderReader(folder)


def test_any_damage_to_an_index_is_refused_or_without_effect(folder: Path) -> None:
    rng, good = random.Random(0), bytearray((folder / INDEX).read_bytes())
    with FolderReader(folder) as reader:
        names = set(reader.names)
    for k in range(3000):
        bad = bytearray(good[: rng.randrange(len(good))] if k % 10 == 0 else good)
        for _ in range(k % 3 if bad else 0):
            fuzz.spliced(bad, rng)
        (folder / INDEX).write_bytes(bad)
        try:
            with FolderReader(folder) as reader:
                assert set(reader.names) == names
        except FileFormatError as error:
            str(error).encode()
