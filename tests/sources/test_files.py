"""Checkpoints and folders: lazily read, never unpickled, and every damaged one named."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from source_helpers import assert_holds, small
from torch import nn

from opq.errors import CorruptSourceError, EmptyModelError, MissingShardError, SourceError, UnsafeCheckpointError
from opq.sources import files, open_source

# --- PyTorch checkpoints ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_either_format_is_read(tmp_path: Path, suffix: str, zipped: bool) -> None:
    state = small().state_dict()
    path = tmp_path / f"m{suffix}"
    torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    source = open_source(path)
    assert_holds(source, state)
    assert (source.origin, source.label, source.model) == ("file", path.name, None)
    assert set(source.files.values()) == {path}


def test_ties_and_views_in_a_checkpoint_are_told_apart(tmp_path: Path) -> None:
    table = torch.randn(6, 3)
    torch.save({"in": table, "out": table, "top": table[:2]}, tmp_path / "m.pt")
    source = open_source(tmp_path / "m.pt")
    assert {s.name: s.like for s in source} == {"in": None, "out": "in", "top": None}
    assert_holds(source, {"in": table, "out": table, "top": table[:2]})


def test_a_checkpoint_is_mapped_anew_after_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"w{i}": torch.full((100,), float(i)) for i in range(6)}
    torch.save(state, tmp_path / "m.pt")
    source = open_source(tmp_path / "m.pt")
    loads: list[Path] = []
    real = files.load_checkpoint

    def counted(path: Path) -> Any:
        loads.append(path)
        return real(path)

    monkeypatch.setattr(files, "load_checkpoint", counted)
    monkeypatch.setattr(files, "MAPPED_BYTES", 1000)
    assert_holds(source, state)
    assert len(loads) == 2


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (os.environ["OPQ_HOSTILE"],))


@pytest.mark.parametrize("kind", ["module", "legacy", "pickle", "hostile", "script", "numpy"])
def test_a_pickle_of_more_than_tensors_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, trace = tmp_path / "m.pt", tmp_path / "trace"
    monkeypatch.setenv("OPQ_HOSTILE", str(trace))
    if kind in ("module", "legacy"):
        torch.save(small(), path, _use_new_zipfile_serialization=kind == "module")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(small()))
    elif kind == "numpy":
        torch.save({"w": torch.ones(3), "loss": np.float64(3)}, path)
    elif kind == "script":
        shutil.copy(_script(tmp_path), path)
    else:
        torch.save({"w": torch.ones(3), "x": Hostile()}, path)
    with pytest.raises(UnsafeCheckpointError, match=r"m\.pt is not a state dict: got a pickle .*Save the state dict"):
        open_source(path)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def _script(folder: Path) -> Path:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(folder / "script.zip")
    return folder / "script.zip"


def test_what_a_module_pickle_asks_for_is_named(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"asks for torch\.nn\.modules\.container\.Sequential"):
        open_source(tmp_path / "m.pt")


@pytest.mark.parametrize("zipped", [True, False])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_a_source_error_or_reads(tmp_path: Path, zipped: bool, data: st.DataObject) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "m.pt"
    torch.manual_seed(0)
    torch.save(small().state_dict(), whole, _use_new_zipfile_serialization=zipped)
    content = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0 if len(content) < whole.stat().st_size else 1, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with contextlib.suppress(SourceError):  # any other error fails the test
        source = open_source(path)
        assert all(source.tensor(spec.name).shape == spec.shape for spec in source)


def test_a_list_of_tensors_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.ones(3)], tmp_path / "m.pt")
    with pytest.raises(SourceError, match="no state dict: got list"):
        open_source(tmp_path / "m.pt")


def test_a_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"unknown kind: got '\.gguf', wanted one of \.safetensors"):
        open_source(tmp_path / "m.gguf")


# --- folders ---------------------------------------------------------------------------------


def shards(folder: Path, *, index: bool) -> dict[str, torch.Tensor]:
    """Three safetensors shards of two tensors each."""
    torch.manual_seed(0)
    state = {f"layers.{i}.weight": torch.randn(4, 3) for i in range(6)}
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    where = {name: names[i // 2] for i, name in enumerate(state)}
    for file in names:
        save_file({n: t for n, t in state.items() if where[n] == file}, folder / file)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return state


@pytest.mark.parametrize("index", [True, False])
def test_a_sharded_folder_is_one_source_shard_by_shard(tmp_path: Path, index: bool) -> None:
    state = shards(tmp_path, index=index)
    source = open_source(tmp_path)
    assert_holds(source, state)
    assert (source.origin, source.label, source.folder) == ("folder", tmp_path.name, None)
    assert [path.name[6:11] for path in source.files.values()] == ["00001"] * 2 + ["00002"] * 2 + ["00003"] * 2
    assert not source.buildable
    with pytest.raises(SourceError, match=r"no model can be built .*bare weights"):
        source.build()


def test_a_folder_of_pytorch_shards(tmp_path: Path) -> None:
    state = {"a": torch.randn(3), "b": torch.randn(4)}
    for i, (name, value) in enumerate(state.items(), 1):
        torch.save({name: value}, tmp_path / f"pytorch_model-{i:05}-of-00002.bin")
    assert_holds(open_source(tmp_path), state)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(MissingShardError, match=r"no pytorch_model-00002-of-00002\.bin"):
        open_source(tmp_path)


def test_safetensors_are_preferred_and_compressed_files_left_out(tmp_path: Path) -> None:
    state = {"w": torch.ones(3)}
    save_file(state, tmp_path / "model.safetensors")
    save_file({"w": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file({"w": torch.zeros(3)}, tmp_path / "x.opq.safetensors", metadata={"format": "opq"})
    torch.save({"w": torch.zeros(3)}, tmp_path / "pytorch_model.bin")
    assert_holds(open_source(tmp_path), state)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path, index=True)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingShardError, match=r"no model-00002-of-00003\.safetensors"):
        open_source(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(MissingShardError, match=r"asks for .*no model-00002-of-00003\.safetensors"):
        open_source(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path, index=True)
    path = tmp_path / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptSourceError, match=r"model-00003-of-00003\.safetensors cannot be read"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("index", "fact"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read: got list"),
        ("{}", "is no index"),
        ('{"weight_map": {"w": 3}}', "is no index"),
        ('{"weight_map": {"w": "../model-00001-of-00003.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"w": "model-00001-of-00003.safetensors"}}', "names tensor 'w' in model-00001"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, index: str, fact: str) -> None:
    shards(tmp_path, index=False)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CorruptSourceError, match=fact):
        open_source(tmp_path)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": torch.ones(3)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CorruptSourceError, match=r"'w' stands in two files: got a\.safetensors and b\.safetensors"):
        open_source(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(SourceError, match="no checkpoint in folder"):
        open_source(tmp_path)
    save_file({"n": torch.arange(3)}, tmp_path / "m.safetensors")
    with pytest.raises(EmptyModelError):
        open_source(tmp_path)


def test_two_different_checkpoints_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("first", "last"):
        torch.save({"w": torch.ones(3)}, tmp_path / f"{name}.pt")
    with pytest.raises(SourceError, match="got 2 PyTorch checkpoints"):
        open_source(tmp_path)


# --- paths -----------------------------------------------------------------------------------


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not there: got no such file or folder"):
        open_source(tmp_path / "nothing.safetensors")
    with pytest.raises(SourceError, match=r"write hf:org/name"):
        open_source("org/name")
    with pytest.raises(SourceError, match="not understood: got ''"):
        open_source("")


def _file_pages() -> int:
    """Kilobytes of mapped files in memory."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssFile"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_reading_a_file_does_not_keep_it_in_memory(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAPPED_BYTES", 1 << 22)
    state = {f"w{i}": torch.ones(1 << 20) for i in range(16)}  # 64 MB
    (save_file if suffix == ".safetensors" else torch.save)(state, tmp_path / f"m{suffix}")
    source = open_source(tmp_path / f"m{suffix}")
    assert source.tensor("w0").sum() == 1 << 20
    before, most = _file_pages(), 0
    for name in source.names:
        assert source.tensor(name).sum() == 1 << 20
        most = max(most, _file_pages() - before)
    assert most < 24_000
