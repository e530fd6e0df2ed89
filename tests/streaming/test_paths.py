"""Codes on a trellis in pieces: those of the whole tensor, whatever its shape, the threads and where codes are held."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from plans import planned
from safetensors.torch import load_file, save_file
from stream_helpers import weights

import opq
from opq.base.dtypes import dtype_name
from opq.base.pool import pool
from opq.coding import entropy
from opq.compression.options import Options
from opq.errors import WriteError
from opq.plan import TensorPlan
from opq.quantizing import trellis
from opq.quantizing.grid import quantize
from opq.streaming import encode, paths
from opq.streaming.clock import Clock
from opq.streaming.dense import save_dense_folder
from opq.streaming.limits import Limits
from opq.streaming.run import compress_folder, streamed

SHAPES = [(1300, 400), (300, 2100), (1, 70_000), (130, 3, 5, 7), (5, 9000), (128, 129)]


def on_paths(w: torch.Tensor, step: float) -> TensorPlan:
    return planned("w", tuple(w.shape), dtype_name(w.dtype), codebook="trellis", step=step, threshold=step / 2)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 256 rows of 400 columns, or of 128 rows of 800 columns."""
    monkeypatch.setattr(paths, "PIECE", 128 * 800)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", [0.02, 0.0002], ids=["in a byte", "in two"])
def test_searching_pieces_is_searching_the_whole(shape: tuple[int, ...], step: float, tmp_path: Path) -> None:
    w = weights(*shape, seed=3)
    plan, flat = on_paths(w, step), w.reshape(-1)
    wanted = trellis.paths(quantize(w, plan).numpy()).reshape(-1)
    assert np.array_equal(paths.on_paths(w.reshape(shape[0], -1), plan).reshape(-1), wanted)
    for spool in (None, tmp_path):
        with (
            pool(2) as threads,
            paths.searched(plan, lambda a, b: flat[a:b], Clock(), threads.ordered, spool=spool) as k,
        ):
            assert np.array_equal(k[0 : w.numel()], wanted)
            assert np.array_equal(k[1:77], wanted[1:77])
            assert k[0:1].dtype == (np.int8 if step == 0.02 else np.int16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cached", [0, 1 << 27])
def test_coding_on_paths_in_pieces_is_coding_the_whole(
    cached: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entropy, "CHUNK", 1 << 18)
    w = weights(700, 1024, seed=3)
    plan, flat = on_paths(w, 0.02), w.reshape(-1)
    wanted = entropy.encode(trellis.paths(quantize(w, plan).numpy()))
    coded = encode.encode(plan, lambda a, b: flat[a:b], Clock(), cached=cached, spool=tmp_path)
    assert b"".join(coded.parts) == wanted


def test_codes_that_are_gone_from_the_disk_are_said() -> None:
    with tempfile.TemporaryFile() as file:
        held = paths._Spool(file, 8, np.int8)
        held.put(slice(0, 2), slice(0, 8), np.ones((2, 8), np.int8))
        assert held[8:16].tolist() == [1] * 8
        with pytest.raises(WriteError, match="codes on disk are gone: got 1 bytes, wanted 2"):
            held[15:17]


@pytest.mark.parametrize("split", [1, 100, 128, 333])
def test_rows_that_come_in_pieces_are_followed(split: int) -> None:
    k = np.random.default_rng(0).integers(-20, 20, (700, 13)).astype(np.int16)
    follow = trellis.Follower()
    found = np.concatenate([follow(k[start : start + split].copy()) for start in range(0, 700, split)])
    assert np.array_equal(found, trellis.numbers(k))


@pytest.mark.parametrize("shape", [(1300, 512), (90, 6000)], ids=["whole runs", "chunks shorter than a run"])
def test_a_large_tensor_on_paths_comes_back_in_pieces(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entropy, "CHUNK", 1 << 17)
    save_file({"w": weights(*shape, seed=3)}, tmp_path / "m.safetensors")
    result = streamed(tmp_path / "m.safetensors", tmp_path / "out", Options(bits=3), limits=Limits(cached=0, alone=0))
    assert result.plan["w"].codebook == "trellis"
    save_dense_folder(tmp_path / "out", tmp_path / "dense")
    (dense,) = (tmp_path / "dense").glob("*.safetensors")
    assert torch.equal(load_file(dense)["w"], opq.load_state_dict(tmp_path / "out")["w"])


@pytest.mark.parametrize("bits", [1.3, 1.7, 2.5, 5.0])
def test_budgets_are_met_on_paths(bits: float, tmp_path: Path) -> None:
    state = {f"{k}.weight": (k + 1) * weights(300, 400, seed=k) for k in range(4)}
    result = compress_folder(state, tmp_path / "out", bits=bits, shard_size=1 << 16)
    assert 0.995 * bits <= result.bits <= bits
    assert "trellis" in {t.codebook for t in result.plan.compressed}
