"""Files written once are read bit by bit for ever, and the same arguments give the same bytes everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_helpers import uncounted
from paths import GOLDEN

from opq.base.format_v1 import DTYPE_NAMES, KIND_NAMES
from opq.coding import classes, entropy
from opq.coding.stack import StackReader
from opq.coding.symbols import DIRECT
from opq.coding.tensor_model import Coding
from opq.file import stored
from opq.file.folder_reader import open_reader
from opq.file.header import VERSION
from opq.file.payload import Coded
from opq.file.reader import Reader
from opq.file.writer import Packed, pack
from opq.methods import METHODS
from opq.plan import TensorPlan
from opq.quantizing import trellis

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


def test_differences_to_a_base_decode_to_what_they_did() -> None:
    assert make.expected_of_differences() == json.loads((make.BASED / "expected.json").read_text())
    assert make.based() == (make.BASED / "new.opq.safetensors").read_bytes()


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
    assert kinds == set(KIND_NAMES)
    assert methods >= set(METHODS)
    assert types == set(DTYPE_NAMES)


def test_all_ways_to_code_a_tensor_are_in_the_golden_files() -> None:
    """Every kind of model with all that may go with it, of one chunk and of several, and paths of several runs."""
    found = set[str]()
    for path in (GOLDEN / f"v{VERSION}").glob("*.safetensors"):
        with Reader(path) as reader:
            for tensor in reader.plan:
                found |= set(ways(reader, tensor))
    assert found == {
        "constant", "geometric", "tables", "pages", "tables by class",
        "constant in chunks", "pages in chunks", "pages of 16 bits in chunks", "tables by class in chunks",
        "pages by class in chunks", "pages by class of 16 bits in chunks", "tables, bits behind",
        "geometric, bits behind", "tables by class, bits behind", "tables by class in chunks, bits behind",
        "runs of a trellis",
    }  # fmt: skip


def ways(reader: Reader, plan: TensorPlan) -> Iterator[str]:
    """How a tensor is coded, in words."""
    kind = reader.kind(plan.name)
    if plan.like is not None or kind in ("raw", "scalar", "share") or not plan.size:
        return
    payload = reader._payload(plan.name)
    coded = stored.PAYLOADS[kind]
    assert issubclass(coded, Coded)
    position, shape = coded.behind(payload, plan)
    parts, codes = len(entropy.chunks(shape)), entropy.decode(payload[position:], shape)
    head = payload[position:]
    head = entropy._streams(head, 1 + parts)[0] if entropy.is_large(shape) else head
    coding = Coding.take(StackReader(head), classes.view(shape))
    way = coding.kind + " by class" * (coding.contexts is not None)
    way += " of 16 bits" * (coding.kind == "pages" and coding.item is np.int16) + " in chunks" * (parts > 1)
    yield way
    if coding.kind in ("tables", "geometric") and np.abs(codes).max() >= DIRECT:
        yield f"{way}, bits behind"
    if kind.startswith("trellis") and plan.shape and plan.shape[0] > trellis.RUN:
        yield "runs of a trellis"


PAGED = ("pages", "paged")
"""Files of tensors that pcodec encodes: another version of it may give other bytes, which decode to the same."""


@pytest.mark.parametrize("name", [name for name in make.WRITTEN if name not in PAGED])
def test_the_writer_gives_the_same_bytes_again(name: str) -> None:
    held = (GOLDEN / f"v{VERSION}/{name}.opq.safetensors").read_bytes()
    data = make.written(make.WRITTEN[name])
    assert held == (data if counted(held) else uncounted(data))


def counted(data: bytes) -> bool:
    """Whether a file says how many weights there are; the oldest golden files do not."""
    return b"total_parameters" in data[: 8 + int.from_bytes(data[:8], "little")]


def test_golden_files_with_and_without_the_number_of_weights_are_there() -> None:
    assert {counted((GOLDEN / f"v1/{name}.opq.safetensors").read_bytes()) for name in ("kinds", "counted")} == {0, 1}


@pytest.mark.parametrize("name", PAGED)
def test_the_writer_gives_pages_that_decode_to_the_same_again(name: str, tmp_path: Path) -> None:
    (path := tmp_path / "again.opq.safetensors").write_bytes(make.written(make.WRITTEN[name]))
    assert make.expected(path) == make.expected(GOLDEN / f"v{VERSION}/{name}.opq.safetensors")


@pytest.mark.parametrize("name", make.branches.CRAFTED)
def test_what_is_put_together_by_hand_gives_the_same_bytes_again(name: str) -> None:
    assert make.by_hand(make.branches.CRAFTED[name]) == (GOLDEN / f"v{VERSION}/{name}.opq.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["kinds", "classes"])
def test_the_writer_gives_the_bytes_in_plain_sight(name: str) -> None:
    plan, items = make.WRITTEN[name]()
    data = bytes.fromhex(getattr(plain, name.upper()))
    assert (
        uncounted(b"".join(pack(plan, items).parts))
        == data
        == (GOLDEN / f"v{VERSION}/{name}.opq.safetensors").read_bytes()
    )
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
    monkeypatch.setattr(make, "RELEASED", VERSION)
    for option in ("--regenerate", "--add"):
        monkeypatch.setattr(sys, "argv", ["make.py", option])
        with pytest.raises(SystemExit, match="stay as they are"):
            make.main()
