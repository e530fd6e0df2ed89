"""Updates made wrong on purpose: refused by one error of the package, never half applied, in bounded memory."""

from __future__ import annotations

import dataclasses
import itertools
import random
import resource
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from file_helpers import bytes_of
from fuzz import every_kind, laplace
from limits import narrowed
from plans import planned
from safetensors.torch import save

import opq
from opq.errors import CorruptFileError, FileFormatError, TruncatedFileError, WrongBaseError
from opq.file.stored import Grid
from opq.file.writer import pack
from opq.updates import applying, contents, differences, envelope, patterns
from opq.updates.anatomy import Bytes
from opq.updates.contents import Contents

CASES = 700


def dense(seed: int) -> bytes:
    g = torch.Generator().manual_seed(0)
    state = {"a": torch.randn(40, 30, generator=g), "b": torch.randn(9, generator=g).half(), "c": torch.arange(50)}
    state["a"][seed::2] += 0.01 * seed
    state["b"] = state["b"].float() if seed else state["b"]
    state["noise"] = torch.randint(-(2**62), 2**62, (30,), generator=torch.Generator().manual_seed(seed))
    state |= {"new": torch.randn(20, 20, generator=g)} if seed else {}
    return save(state, {"step": str(seed)})


def compressed(seed: int) -> bytes:
    plan, items = every_kind()
    moved, pages = (laplace(n, 40, scale=1.5, seed=9) for n in (12, 48))
    moved[seed], pages[::7, ::5] = seed, pages[::7, ::5] + seed
    plan = plan.replace(tensors=(*plan.tensors, planned("m", (12, 40)), planned("p", (48, 40))))
    return bytes_of(pack(plan, [*items, Grid("m", moved), Grid("p", pages)]))


@dataclasses.dataclass(frozen=True)
class Original:
    old: Path
    new: bytes
    update: bytes
    said: Contents
    payloads: bytes


@pytest.fixture
def originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Original]]:
    """Of dense files and of opq files, with every way to hold a tensor between them."""
    monkeypatch.setattr(differences, "CHUNK", 1 << 9)
    monkeypatch.setattr(applying, "SMALL", 1 << 16)
    with narrowed(large=1 << 10, chunk=1 << 9):
        found = []
        for k, make in enumerate((dense, compressed)):
            old, new = tmp_path / f"{k}.old.safetensors", tmp_path / f"{k}.new.safetensors"
            old.write_bytes(make(0))
            new.write_bytes(make(1))
            opq.delta(old, new, tmp_path / "update")
            with Bytes(tmp_path / "update") as file:
                said, base = envelope.opened(file)
                payloads = file.read(base, base + sum(sum(n.lengths) for n in said.new))
            found.append(Original(old, new.read_bytes(), (tmp_path / "update").read_bytes(), said, payloads))
        yield found


def signed(path: Path, said: Contents, payloads: bytes) -> bytes | None:
    """An update of any contents; None where there is no way to say this."""
    with open(path, "wb") as out:
        envelope.reserve(out)
        out.write(payloads)
        try:
            envelope.complete(out, said, len(payloads), zlib.crc32(payloads))
        except (ValueError, OverflowError, IndexError, TypeError):
            return None
    return path.read_bytes()


def damage(one: Original, rng: random.Random) -> Iterator[bytes]:
    """Bytes changed, put in, left out; nothing signed."""
    while True:
        data = bytearray(one.update)
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            del data[at:]
        yield bytes(data)


def forged(one: Original, rng: random.Random, path: Path) -> Iterator[bytes]:
    """Payloads and fields changed, and signed as a forger would."""
    while True:
        said, payloads = one.said, bytearray(one.payloads)
        new = said.new[0]
        if rng.randrange(2):
            for _ in range(rng.choice([1, 1, 3])):
                payloads[rng.randrange(len(payloads))] = rng.choice([0, 255, rng.randrange(256)])
        else:
            rows, k = list(new.rows), rng.randrange(len(new.rows))
            row = rows[k]
            change: dict[str, Any] = rng.choice(
                [
                    {"method": rng.choice(contents.METHODS)},
                    {"old": rng.choice([0, row.old + 1, 1 << 30])},
                    {"length": max(0, row.length + rng.choice([-1, 1, 1 << 20]))},
                ]
            )
            rows[k] = dataclasses.replace(row, **change)
            rows = rng.choice([rows, rows[1:], rows + rows[:1]]) if rng.randrange(3) == 0 else rows
            head = dataclasses.replace(new.head, method=rng.choice(contents.HEADS))
            size = rng.choice([new.file.size + 1, 0, (1 << 40) - 1])
            file = dataclasses.replace(new.file, size=size)
            other = rng.choice([{"rows": tuple(rows)}, {"rows": tuple(rows)}, {"head": head}, {"file": file}])
            said = dataclasses.replace(said, new=(dataclasses.replace(new, **other),))
            wanted = sum(sum(n.lengths) for n in said.new)
            payloads = (payloads + bytes(max(wanted - len(payloads), 0)))[:wanted] if wanted < 1 << 22 else payloads
        if (made := signed(path, said, bytes(payloads))) is not None:
            yield made


def test_no_wrong_update_passes(originals: list[Original], tmp_path: Path) -> None:
    """Refused by its own error, or the very same file; and nothing is left behind."""
    rng = random.Random(0)
    ways = [way for one in originals for way in ((one, damage(one, rng)), (one, forged(one, rng, tmp_path / "made")))]
    outcomes: Counter[str] = Counter()
    folder = tmp_path / "out"
    folder.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for one, way in itertools.islice(itertools.cycle(ways), CASES):
        (tmp_path / "case").write_bytes(next(way))
        try:
            opq.apply(one.old, tmp_path / "case", folder / "again")
        except (FileFormatError, WrongBaseError) as error:
            outcomes[type(error).__name__ if "\n" not in str(error) else "no line"] += 1
        else:
            outcomes["read"] += 1
            assert (folder / "again").read_bytes() == one.new
            (folder / "again").unlink()
        assert not list(folder.iterdir())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    assert outcomes["read"] < CASES / 10
    assert "no line" not in outcomes
    assert {"CorruptFileError", "TruncatedFileError", "ForeignFileError", "FileTooLargeError"} <= set(outcomes)


def test_every_way_to_hold_a_tensor_is_among_them(originals: list[Original]) -> None:
    used = {row.method for one in originals for row in one.said.new[0].rows}
    assert used >= {"same", "raw", "alone", "old", "cast", "codes"}


def test_an_update_may_end_nowhere_but_at_its_end(originals: list[Original], tmp_path: Path) -> None:
    for one in originals:
        for stop in (*range(0, len(one.update), 97), len(one.update) - 1):
            (tmp_path / "case").write_bytes(one.update[:stop])
            with pytest.raises(TruncatedFileError):
                opq.apply(one.old, tmp_path / "case", tmp_path / "again")
        (tmp_path / "case").write_bytes(one.update + b"\0")
        with pytest.raises(CorruptFileError, match="after its end"):
            opq.apply(one.old, tmp_path / "case", tmp_path / "again")


@pytest.mark.parametrize("name", ["../up", "/abs", "a//b", ".hidden", "a\\b", "c:", "a/../b", "", "a\n"])
def test_no_update_names_a_file_outside_its_folder(name: str, originals: list[Original], tmp_path: Path) -> None:
    said = originals[0].said
    new = dataclasses.replace(said.new[0], file=dataclasses.replace(said.new[0].file, name=name))
    said = dataclasses.replace(said, folders=(False, True), new=(new,))
    signed(tmp_path / "case", said, originals[0].payloads)
    with pytest.raises(CorruptFileError, match="names"):
        opq.apply(originals[0].old, tmp_path / "case", tmp_path / "again")


def test_differences_of_any_integers_come_back() -> None:
    rng = np.random.default_rng(0)
    for dtype in ("F32", "F16", "BF16", "I64", "U8", "F8_E4M3"):
        kind = differences.Element(**dataclasses.asdict(patterns.element(dtype)))
        info = np.iinfo(kind.dtype)
        for spread in (0, 1, 40, info.max):
            reference = rng.integers(info.min, info.max, 20_000, dtype=kind.dtype, endpoint=True)
            new = reference + rng.integers(-spread, spread, 20_000, dtype=kind.dtype, endpoint=True)
            new[:3000] = reference[:3000]
            data = differences.encode(new, reference, kind, 64)
            assert np.array_equal(differences.decode(memoryview(data), reference, kind, 64), new)
            with pytest.raises(CorruptFileError):
                differences.decode(memoryview(data + b"\1"), reference, kind, 64)
