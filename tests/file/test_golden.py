"""Files written once are read bit by bit for ever, and the same arguments give the same bytes everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import fuzz
import pytest
from paths import GOLDEN

from opq.file.folder_reader import open_reader
from opq.file.header import VERSION
from opq.file.reader import Reader
from opq.file.stored import KINDS
from opq.file.writer import Packed, pack
from opq.methods import METHODS

sys.path.insert(0, str(GOLDEN))

import make
import plain

EXPECTED = [
    (version.name, name, held)
    for version in sorted(GOLDEN.glob("v*"))
    for name, held in json.loads((version / "expected.json").read_text()).items()
]


@pytest.mark.parametrize(("version", "name", "held"), EXPECTED, ids=[f"{v}/{n}" for v, n, _ in EXPECTED])
def test_a_golden_file_decodes_to_what_it_did(version: str, name: str, held: dict[str, str]) -> None:
    assert make.expected(GOLDEN / version / name) == held


def test_every_version_and_method_and_kind_has_one() -> None:
    assert sorted(path.name for path in GOLDEN.glob("v*")) == [f"v{k}" for k in range(1, VERSION + 1)]
    found, kinds, methods, types = set[str](), set[str](), set[str](), set[str]()
    for path in (GOLDEN / f"v{VERSION}").iterdir():
        if path.name == "expected.json":
            continue
        found.add(path.name)
        with open_reader(path) as reader:
            kinds |= {reader.kind(name) for name in reader.names}
            methods.add(reader.plan.method)
            types |= {tensor.dtype for tensor in reader.plan}
    assert {name for version, name, _ in EXPECTED if version == f"v{VERSION}"} == found
    assert kinds == set(KINDS)
    assert methods == set(METHODS)
    assert types >= {"BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "C64"}


@pytest.mark.parametrize("name", ["kinds", "classes"])
def test_the_writer_gives_the_bytes_in_plain_sight(name: str) -> None:
    plan, items = {"kinds": fuzz.every_kind, "classes": fuzz.classes}[name]()
    data = bytes.fromhex(getattr(plain, name.upper()))
    assert b"".join(pack(plan, items).parts) == data == (GOLDEN / f"v{VERSION}/{name}.opq.safetensors").read_bytes()
    with Reader(Packed((data,), {}, {})) as reader:
        assert reader.plan == plan


COMPRESS = """
import hashlib, sys, torch
sys.path[:0] = [{tests!r}, {golden!r}]
torch.set_num_threads(int(sys.argv[1]))
import make, opq
digest = hashlib.sha256()
digest.update(make.packed(opq.compress(make.network(), bits=4, input_size=(1, 8, 8))))
options = [("*0*", "keep"), ("7.*", {{"bits": 5}}), ("*3*", {{"min_bits": 2, "max_bits": 6}})]
order = reversed if sys.argv[2] == "back" else list
digest.update(make.packed(opq.compress(make.network().state_dict(), bits=8, overrides=dict(order(options)))))
print(digest.hexdigest())
"""


def test_bytes_do_not_depend_on_threads_hash_seed_or_the_order_of_options() -> None:
    source = COMPRESS.format(tests=str(GOLDEN.parent), golden=str(GOLDEN))
    runs = [("1", "fore", "0"), ("2", "back", "1"), ("4", "back", "12345")]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", source, threads, order], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
        )
        for threads, order, seed in runs
    ]  # fmt: skip
    digests = {child.communicate()[0] for child in children}
    assert all(child.returncode == 0 for child in children)
    assert len(digests) == 1


def test_golden_files_are_not_written_again_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make.py"])
    with pytest.raises(SystemExit):
        make.main()
    monkeypatch.setattr(sys, "argv", ["make.py", "--regenerate"])
    monkeypatch.setattr(make, "RELEASED", VERSION)
    with pytest.raises(SystemExit, match="stay as they are"):
        make.main()
