"""The new checkpoint comes back byte for byte from the old one and the update; or nothing is written."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from file_helpers import bytes_of
from fuzz import every_kind, laplace
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import narrowed
from plans import planned
from safetensors.torch import save, save_file

import opq
from opq.coding import tables
from opq.coding.stack import StackWriter, categorical
from opq.errors import (
    CorruptFileError,
    FileTooLargeError,
    ForeignFileError,
    MissingExtraError,
    MissingFileError,
    NewerFormatError,
    OptionError,
    WriteError,
    WrongBaseError,
)
from opq.file.stored import Grid
from opq.file.writer import pack
from opq.updates import applying, checkpoint
from opq.updates.recoded import Recoded

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OTHERS = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int32)
CHANGES = ("none", "little", "some rows", "new", "removed", "longer", "reshaped", "other type", "special")


def round_trip(old: Path, new: Path, **options: bool) -> int:
    """Bytes of the update, which was seen to work."""
    with tempfile.TemporaryDirectory() as folder:
        update, again = Path(folder, "update"), Path(folder, "again")
        size = opq.delta(old, new, update, **options)
        assert size == update.stat().st_size
        opq.apply(old, update, again)
        assert contents(again) == contents(new)
        assert sorted(p.name for p in Path(folder).iterdir()) == ["again", "update"]
    return size


def contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def drawn(dtype: torch.dtype, shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=g).to(dtype)
    return torch.randint(0, 2, shape, generator=g).to(dtype)


def changed(tensor: torch.Tensor, change: str, g: torch.Generator) -> torch.Tensor | None:
    """The tensor in the new checkpoint, None where it is not there."""
    noise = torch.randn(tensor.shape, generator=g)
    wide = tensor.to(torch.complex64 if tensor.is_complex() else torch.float64)
    if change == "little":
        return (wide * (1 + 1e-3 * noise)).to(tensor.dtype)
    if change == "some rows" and tensor.dim():
        wide[::3] += noise[::3]
        return wide.to(tensor.dtype)
    if change == "longer" and tensor.dim():
        return torch.cat([tensor, drawn(tensor.dtype, (2, *tensor.shape[1:]), g)])
    if change == "other type":
        return (wide.real + 1e-4 * noise).to(FLOATS[int(torch.randint(4, (), generator=g))])
    if change == "special" and tensor.dtype in FLOATS and tensor.numel() > 5:
        odd = tensor.clone()
        odd.view(-1)[:5] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-40]).to(tensor.dtype)
        return odd
    if change in ("none", "reshaped"):
        return tensor.reshape(-1) if change == "reshaped" else tensor
    return None if change == "removed" else drawn(tensor.dtype, tuple(tensor.shape), g)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    picks=st.lists(
        st.tuples(
            st.sampled_from(FLOATS + OTHERS),
            st.sampled_from([(), (0, 3), (7,), (40, 24), (3, 300), (9, 4, 3, 3)]),
            st.sampled_from(CHANGES),
        ),
        min_size=1,
        max_size=6,
    ),
    notes=st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2),
)
def test_any_checkpoint_comes_back(
    seed: int, picks: list[tuple[torch.dtype, tuple[int, ...], str]], notes: dict[str, str]
) -> None:
    g = torch.Generator().manual_seed(seed)
    old = {f"layer.{k}.weight": drawn(dtype, shape, g) for k, (dtype, shape, _) in enumerate(picks)}
    pairs = zip(old.items(), picks, strict=True)
    new = {name: made for (name, t), (*_, change) in pairs if (made := changed(t, change, g)) is not None}
    with tempfile.TemporaryDirectory() as folder:
        save_file(old, f"{folder}/old.safetensors")
        save_file(new, f"{folder}/new.safetensors", notes or None)  # of {} beside no tensor it makes no JSON
        round_trip(Path(folder, "old.safetensors"), Path(folder, "new.safetensors"))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two checkpoints of one network: a matrix moved, a vector too, a matrix as it was."""
    g = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(128, 96, generator=g), torch.randn(96, generator=g), torch.randn(64, 64, generator=g)
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_file({"a": a, "b": b, "c": c}, old)
    save_file({"a": a + 1e-4 * torch.randn(128, 96, generator=g), "b": b * 1.01, "c": c}, new)
    return old, new


def test_what_is_equal_costs_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    assert round_trip(old, old) < 400
    state = {f"{k}.weight": torch.randn(50, 50) for k in range(40)}
    save_file(state, tmp_path / "one.safetensors")
    save_file({**state, "7.weight": state["7.weight"] + 1}, tmp_path / "two.safetensors")
    assert round_trip(tmp_path / "one.safetensors", tmp_path / "two.safetensors") < 10_000 + 600
    assert round_trip(old, new) < 0.55 * new.stat().st_size


def test_another_type_costs_little(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The same numbers rounded to bfloat16, or float16, and back to float32."""
    state = opq.open_source(pair[0]).state_dict()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        save_file({n: t.to(dtype) for n, t in state.items()}, tmp_path / "cast.safetensors")
        assert round_trip(pair[0], tmp_path / "cast.safetensors") < 700
    save_file({n: t.to(torch.bfloat16).float() for n, t in state.items()}, tmp_path / "back.safetensors")
    save_file({n: t.to(torch.bfloat16) for n, t in state.items()}, tmp_path / "cast.safetensors")
    assert round_trip(tmp_path / "cast.safetensors", tmp_path / "back.safetensors") < 700


def test_rows_that_are_added_leave_the_others_alone(tmp_path: Path) -> None:
    """A vocabulary that grew."""
    w = torch.randn(1000, 64)
    save_file({"w": w}, tmp_path / "old.safetensors")
    save_file({"w": torch.cat([w, torch.randn(8, 64)])}, tmp_path / "new.safetensors")
    assert round_trip(tmp_path / "old.safetensors", tmp_path / "new.safetensors") < 8 * 64 * 4 + 500


def opq_file(path: Path, *, seed: int, flips: float = 0.0) -> Path:
    """A file with every kind of tensor and a matrix of whose codes some moved."""
    plan, items = every_kind()
    rng = np.random.default_rng(seed)
    codes = laplace(96, 96, scale=1.5, seed=9)
    codes = np.where(rng.random(codes.shape) < flips, codes + rng.choice([-1, 1], codes.shape), codes).astype(np.int16)
    large = laplace(300, 400, scale=1.5, seed=8)
    large = np.where(rng.random(large.shape) < flips, large + 1, large).astype(np.int16)
    plan = plan.replace(tensors=(*plan.tensors, planned("moved", (96, 96)), planned("pages", (300, 400))))
    path.write_bytes(bytes_of(pack(plan, [*items, Grid("moved", codes), Grid("pages", large)])))
    return path


@pytest.mark.parametrize("portable", [False, True])
@narrowed(large=1 << 14, chunk=1 << 13)
def test_codes_that_moved_cost_their_moves(portable: bool, tmp_path: Path) -> None:
    """Of small tensors, and of large ones in pages."""
    old, new = (opq_file(tmp_path / f"{k}.opq.safetensors", seed=k, flips=0.02 * k) for k in (0, 1))
    size = round_trip(old, new, portable=portable)
    with opq.Reader(new) as reader:
        pages = reader.sizes["pages"]
    assert (size > pages) is portable
    assert size < (pages + 6000 if portable else 0.4 * new.stat().st_size)


@narrowed(large=1 << 14)
def test_another_pcodec_is_asked_for_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (opq_file(tmp_path / f"{k}.opq.safetensors", seed=k, flips=0.02 * k) for k in (0, 1))
    opq.delta(old, new, tmp_path / "update")
    monkeypatch.setattr(Recoded, "payload", lambda self: bytes(2 * self.codes.size))
    with pytest.raises(CorruptFileError, match="has another length"):
        opq.apply(old, tmp_path / "update", tmp_path / "again")
    monkeypatch.undo()
    whole = Recoded.payload
    monkeypatch.setattr(Recoded, "payload", lambda self: whole(self)[:-1] + b"?")
    monkeypatch.setattr(applying.importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(MissingExtraError, match=r"got pcodec 0\.0\.1, wanted pcodec .*portable=True"):
        opq.apply(old, tmp_path / "update", tmp_path / "again")
    assert not (tmp_path / "again").exists()


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Shards that are cut otherwise, a configuration that changed, one that did not, a folder within."""
    g = torch.Generator().manual_seed(1)
    state = {f"{k}.weight": torch.randn(40, 30, generator=g) for k in range(6)}
    names = list(state)
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, cut in ((old, 3), (new, 2)):
        (folder / "1_Pooling").mkdir(parents=True)
        save_file({n: state[n] for n in names[:cut]}, folder / "model-00001-of-00002.safetensors")
        save_file({n: state[n] for n in names[cut:]}, folder / "model-00002-of-00002.safetensors")
        (folder / "config.json").write_text(json.dumps({"layers": 6, "cut": cut}))
        (folder / "1_Pooling" / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text(json.dumps([str(k) for k in range(5000)]))
        (folder / ".hidden").write_text("not sent")
        state["5.weight"] = state["5.weight"] + 1e-3
    (new / "large.bin").write_bytes(bytes(checkpoint.LARGEST_WHOLE + 1))
    (new / "empty.txt").write_bytes(b"")
    return old, new


def test_a_folder_comes_back_whole(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    assert opq.delta(old, new, tmp_path / "update") < 8000
    opq.apply(old, tmp_path / "update", tmp_path / "again")
    there = contents(tmp_path / "again")
    assert there == {name: data for name, data in contents(new).items() if name != ".hidden"}


def test_a_folder_of_shards_of_opq_comes_back(whole: Path, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    opq.compress_folder(source, other, bits=3.5, shard_size=1 << 16)
    assert round_trip(whole, other) < sum(map(len, contents(other).values()))


def test_a_folder_that_lacks_a_file_or_has_another_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    opq.delta(old, new, tmp_path / "update")
    other = shutil.copytree(old, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"layers": 7, "cut": 3}))
    with pytest.raises(WrongBaseError, match=r"config\.json is not what .* SHA-256"):
        opq.apply(other, tmp_path / "update", tmp_path / "again")
    (other / "config.json").unlink()
    with pytest.raises(WrongBaseError, match=r"got no config\.json"):
        opq.apply(other, tmp_path / "update", tmp_path / "again")
    with pytest.raises(WrongBaseError, match="got a file, wanted a folder"):
        opq.apply(old / "config.json", tmp_path / "update", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_failure_leaves_neither_files_nor_folders(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = folders
    opq.delta(old, new, tmp_path / "update")
    prove = applying._prove

    def last(new: applying.NewFile, *rest: object) -> None:
        if new.file.name == "tokenizer.json":
            raise CorruptFileError("the last one")
        prove(new, *rest)

    monkeypatch.setattr(applying, "_prove", last)
    with pytest.raises(CorruptFileError, match="the last one"):
        opq.apply(old, tmp_path / "update", tmp_path / "deep" / "again")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old", "update"]


def test_a_folder_with_a_pipe_or_an_odd_name_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = folders
    (new / "a\nb").write_text("")
    with pytest.raises(OptionError, match="holds what no update can"):
        opq.delta(old, new, tmp_path / "update")
    assert not (tmp_path / "update").exists()


# --- bad input ---------------------------------------------------------------------------------


def test_the_wrong_old_file_is_refused_before_anything_is_written(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    update, again = tmp_path / "update", tmp_path / "again"
    opq.delta(old, new, update)
    again.write_text("mine")
    with pytest.raises(WrongBaseError, match="is not what the update was made against: got SHA-256"):
        opq.apply(new, update, again)
    save_file({"a": torch.ones(3)}, tmp_path / "third.safetensors")
    with pytest.raises(WrongBaseError, match=r"bytes, wanted [\d]+ bytes"):
        opq.apply(tmp_path / "third.safetensors", update, again)
    assert again.read_text() == "mine"
    opq.apply(old, update, again)
    assert again.read_bytes() == new.read_bytes()


def test_the_old_file_may_be_called_otherwise(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """As in a cache, where names are digests."""
    old, new = pair
    opq.delta(old, new, tmp_path / "update")
    opq.apply(old.rename(tmp_path / "0a1b2c"), tmp_path / "update", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == new.read_bytes()


def test_outputs_are_neither_inputs_nor_folders(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    for output in (old, new):
        with pytest.raises(OptionError, match="the output is the input"):
            opq.delta(old, new, output)
    opq.delta(old, new, tmp_path / "update")
    for output in (old, tmp_path / "update"):
        with pytest.raises(OptionError, match="the output is the input"):
            opq.apply(old, tmp_path / "update", output)
    (tmp_path / "there").mkdir()
    with pytest.raises(WriteError, match="got a folder"):
        opq.apply(old, tmp_path / "update", tmp_path / "there")


def test_what_is_no_checkpoint_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    (tmp_path / "cut.safetensors").write_bytes(new.read_bytes()[:-1])
    (tmp_path / "foreign.safetensors").write_bytes(b"hello, world")
    for bad, error in (("cut", "of another size"), ("foreign", "no safetensors file")):
        with pytest.raises(CorruptFileError, match=error):
            opq.delta(old, tmp_path / f"{bad}.safetensors", tmp_path / "update")
    with pytest.raises(MissingFileError):
        opq.delta(old, tmp_path / "none.safetensors", tmp_path / "update")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="is empty"):
        opq.delta(old, tmp_path / "empty", tmp_path / "update")
    assert not (tmp_path / "update").exists()


def test_an_update_is_no_network_and_a_network_no_update(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    opq.delta(old, new, tmp_path / "update")
    with pytest.raises(ForeignFileError, match="is an update, not a network"):
        opq.Reader(tmp_path / "update")
    with pytest.raises(ForeignFileError, match="is no update"):
        opq.apply(old, new, tmp_path / "again")
    newer = (tmp_path / "update").read_bytes().replace(b'"opq_update":"1"', b'"opq_update":"2"')
    (tmp_path / "newer").write_bytes(newer)
    with pytest.raises(NewerFormatError):
        opq.apply(old, tmp_path / "newer", tmp_path / "again")


def test_an_update_makes_no_more_than_it_may(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.safetensors").write_bytes(save({"w": torch.zeros(4)}))
    (tmp_path / "zeros.safetensors").write_bytes(save({"w": torch.zeros(1 << 17)}))
    opq.delta(tmp_path / "small.safetensors", tmp_path / "zeros.safetensors", tmp_path / "update")
    monkeypatch.setattr(applying, "SMALL", 1 << 16)
    with pytest.raises(FileTooLargeError):
        opq.apply(tmp_path / "small.safetensors", tmp_path / "update", tmp_path / "again", max_expansion=10)
    opq.apply(tmp_path / "small.safetensors", tmp_path / "update", tmp_path / "again", max_expansion=float("inf"))


def test_the_same_files_give_the_same_update(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        opq.delta(*pair, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_stack_is_put_as_the_page_says() -> None:
    """docs/format.md, "Codes against codes", in plain integers."""
    rng = np.random.default_rng(0)
    weights = np.array([5, 900, 1, 70, 3000])
    f = tables.shares(weights)
    c = np.concatenate([[0], np.cumsum(f)]).tolist()
    for amount in (0, 1, 2, 700):
        symbols = rng.choice(5, amount, p=weights / weights.sum()).astype(np.int32)
        writer = StackWriter()
        writer.put(symbols, categorical(f))
        words, x = [], 0
        for s in reversed(symbols.tolist()):
            while x >= int(f[s]) << 40:
                words.append(x & (1 << 32) - 1)
                x >>= 32
            x = (x // int(f[s]) << 24) + c[s] + x % int(f[s])
        words += [x & (1 << 32) - 1, x >> 32]
        assert np.array(words, "<u4").tobytes().rstrip(b"\0") == writer.finish()
