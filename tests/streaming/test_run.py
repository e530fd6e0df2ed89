"""The streamed path: the same bytes as the one-file path, whatever the threads, pieces and interruptions."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from limits import narrowed
from plans import planned
from safetensors.torch import load_file, save_file
from stream_helpers import SHARD, checkpoint, contents, decoder, interrupted, killed, small_llama, weights
from typer.testing import CliRunner

import opq
from opq.allocation.stats import TensorStats
from opq.base.dtypes import dtype_name
from opq.base.pool import pool
from opq.cli import app
from opq.coding import entropy
from opq.coding.tensor_model import Coding
from opq.compression.options import Options
from opq.errors import (
    BusyFolderError,
    CorruptFileError,
    CorruptSourceError,
    ForeignFileError,
    InfeasibleError,
    MissingFileError,
    MissingShardError,
    NonFiniteError,
    OccupiedFolderError,
    OptionError,
    TruncatedFileError,
    WriteError,
)
from opq.file import writer
from opq.file.folder_reader import INDEX, FolderReader
from opq.file.kept import keep
from opq.file.reader import Reader
from opq.file.stored import Grid, Trellis
from opq.plan import TensorPlan
from opq.quantizing.grid import dequantize, quantize
from opq.sources.base import TensorSpec
from opq.streaming import encode, first_pass
from opq.streaming.clock import Clock
from opq.streaming.dense import Rebuild, save_dense_folder
from opq.streaming.limits import Limits
from opq.streaming.measure import Counter, of_patterns
from opq.streaming.resume import sampled
from opq.streaming.rounds import Rounds
from opq.streaming.run import compress_folder, streamed
from opq.streaming.shards import finished, part_of, partition
from opq.streaming.work_folder import locked

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]


# --- pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_counting_in_pieces_is_counting_the_whole(dtype: torch.dtype) -> None:
    w = (20 * weights(300, 70, seed=0, dtype=torch.float32)).to(dtype)
    counter = Counter(TensorSpec("w", tuple(w.shape), dtype))
    for piece in w.reshape(-1).split(4001):
        counter.add(counter.count(piece.clone()))
    assert counter.stats() == TensorStats.of(w)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_said_with_its_name(bad: float) -> None:
    w = weights(64, seed=0)
    w[3] = bad
    counter = Counter(TensorSpec("blocks.3.w", (64,), torch.bfloat16))
    counter.add(counter.count(w))
    with pytest.raises(NonFiniteError, match=r"'blocks\.3\.w' is not finite: got 1 of 64 weights"):
        counter.stats()


def test_no_weights_have_no_statistics() -> None:
    assert of_patterns(np.zeros(1 << 16, np.int64), TensorSpec("w", (0,), torch.bfloat16)).size == 0


def on_grid(w: torch.Tensor, step: float) -> TensorPlan:
    return planned("w", tuple(w.shape), dtype_name(w.dtype), step=step, threshold=0.6 * step)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("step", [0.3, 0.002])
def test_quantizing_by_table_is_quantizing(dtype: torch.dtype, step: float) -> None:
    w = (20 * weights(50, 70, seed=0, dtype=torch.float32)).to(dtype)
    plan = on_grid(w, step)
    q = quantize(w, plan)
    assert np.array_equal(encode.Quantizer(plan)(w.reshape(-1)), q.numpy().reshape(-1))
    assert Rebuild(plan)(q.numpy().reshape(-1)) == dequantize(q, plan, dtype).view(torch.uint8).numpy().tobytes()


CASES: dict[str, Callable[[], tuple[torch.Tensor, float]]] = {
    "rows of many scales": lambda: (weights(1300, 1024, seed=3), 0.02),
    "all alike": lambda: (weights(1, 1_200_000, seed=3).reshape(1200, 1000), 0.02),
    "codes beyond a byte": lambda: (weights(1200, 1000, seed=4, dtype=torch.float32), 0.0004),
    "kernels": lambda: (weights(500, 300, 3, 3, seed=5), 0.02),
    "one axis": lambda: (weights(1_100_000, seed=6), 0.02),
    "sparse": lambda: (weights(1300, 1024, seed=7), 0.25),
    "all zero": lambda: (torch.zeros(1200, 1000), 0.02),
}


@pytest.mark.parametrize("case", CASES)
@narrowed(chunk=1 << 19)
def test_coding_in_pieces_is_coding_the_whole(case: str) -> None:
    w, step = CASES[case]()
    plan = on_grid(w, step)
    codes = quantize(w, plan).numpy()
    wanted = entropy.encode(codes)
    flat = w.reshape(-1)

    def read(start: int, stop: int) -> torch.Tensor:
        assert stop - start <= entropy.CHUNK
        return flat[start:stop]

    coded = encode.encode(plan, read, Clock())
    assert b"".join(coded.parts) == wanted
    assert (coded.length, coded.checksum) == (len(wanted), encode.Coded.of([wanted]).checksum)
    with pool(2) as threads:
        assert encode.encode(plan, read, Clock(), threads.ordered, cached=0) == coded
    large = entropy.Large.of(wanted, plan.shape)
    pieces = [large.codes(k) for k in reversed(range(len(large.chunks)))]
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate(pieces[::-1]), codes.reshape(-1))


@narrowed(chunk=1 << 19)
def test_a_coder_that_lies_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights(1300, 1024, seed=3)
    real = Coding.put_chunk
    monkeypatch.setattr(Coding, "put_chunk", lambda self, codes, rows: real(self, np.roll(codes, 1), rows))
    with pytest.raises(WriteError, match="tensor 'w' does not decode"):
        encode.encode(on_grid(w, 0.02), lambda a, b: w.reshape(-1)[a:b], Clock())


@narrowed(chunk=1 << 19)
def test_a_header_that_says_another_coding_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weights(1300, 1024, seed=3)
    real = Coding.put
    monkeypatch.setattr(Coding, "put", lambda self, writer: real(dataclasses.replace(self, low=self.low - 1), writer))
    monkeypatch.setattr(Coding, "same", lambda self, other: self == other)
    with pytest.raises(WriteError, match="tensor 'w' does not decode"):
        encode.encode(on_grid(w, 0.02), lambda a, b: w.reshape(-1)[a:b], Clock())


def test_tied_tensors_stand_where_their_holder_does() -> None:
    spec = TensorSpec("b", (100, 100), torch.float32)
    specs = [TensorSpec("a", (100, 100), torch.float32), spec, TensorSpec("c", (100, 100), torch.float32, like="a")]
    assert partition(specs, {"a", "b"}, 3.0, 5000) == [["a", "c"], ["b"]]
    assert partition(specs, {"a", "b"}, 3.0, 10_000) == [["a", "b", "c"]]


# --- the whole -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` on plain grids."""
    folder = tmp_path_factory.mktemp("plain") / "out"
    compress_folder(source, folder, bits=4, shard_size=SHARD, trellis=False)
    return folder


@pytest.mark.parametrize("codebook", ["grid", "trellis"])
def test_the_folder_is_what_packing_its_plan_gives(codebook: str, source: Path, request: pytest.FixtureRequest) -> None:
    whole: Path = request.getfixturevalue("whole" if codebook == "trellis" else "plain")
    opened, kinds = opq.open_source(source), {"grid": Grid, "trellis": Trellis}
    with FolderReader(whole) as reader:
        assert codebook == max(t.codebook for t in reader.plan.compressed)  # on paths of four rows nothing is gained
        assert reader.names == opened.names
        assert len(reader.shards) > 2
        for name, shard in reader.shards.items():
            part = part_of(reader.plan, shard.names)
            specs = tuple(s for s in opened.specs if s.name in shard.names)
            mine = dataclasses.replace(opened, specs=specs)
            coded = [kinds[t.codebook](t.name, quantize(opened.tensor(t.name), t).numpy()) for t in part.compressed]
            packed = writer.pack(part, [*coded, *keep(mine, part, {}, whole=reader.plan)])
            assert b"".join(packed.parts) == (whole / name).read_bytes()


def test_a_folder_has_the_error_of_one_file_of_its_size(source: Path, whole: Path, plain: Path) -> None:
    """Not quite: four headers and an index take bytes, too."""
    opened = opq.open_source(source)

    def error(state: dict[str, torch.Tensor]) -> float:
        parts = (opened.tensor(n).float() - state[n].float() for n in opened.names if state[n].dim() > 1)
        return sum(float(part.square().sum()) for part in parts)

    size = sum(path.stat().st_size for path in whole.glob("*.opq.safetensors*"))
    on_paths, on_grids = (error(opq.load_state_dict(folder)) for folder in (whole, plain))
    assert on_paths < 0.85 * on_grids
    result = opq.compress(source, size=size, probe=False)
    assert error(result.state_dict()) == pytest.approx(on_paths, rel=0.1)


def test_constraints_are_met_on_plain_grids(source: Path, tmp_path: Path) -> None:
    constraints = [opq.constraints.bits("layers*", min=3)]
    plan = compress_folder(source, tmp_path / "out", bits=4, constraints=constraints).plan
    assert {t.codebook for t in plan.compressed} == {"grid"}


def test_threads_do_not_change_a_byte(source: Path, whole: Path, tmp_path: Path) -> None:
    compress_folder(source, tmp_path / "out", bits=4, shard_size=SHARD, workers=1)
    assert contents(tmp_path / "out") == contents(whole)


def test_what_is_read_back_is_the_plan_applied(source: Path, whole: Path) -> None:
    opened, state = opq.open_source(source), opq.load_state_dict(whole)
    with FolderReader(whole) as reader:
        for tensor in reader.plan.compressed:
            w = opened.tensor(tensor.name)
            assert torch.equal(state[tensor.name], dequantize(quantize(w, tensor), tensor, w.dtype))
        assert torch.equal(reader.tensor("layers.0.experts"), state["layers.0.experts"])
        assert reader.kind("steps") == "scalar"
        assert reader.codes("layers.0.experts").shape == (4, 96, 64)
        assert sum(reader.sizes.values()) < reader.bytes
    assert state["head.weight"] is state["embed.weight"]
    assert int(state["steps"]) == 7


@pytest.mark.parametrize("budget", [{"bits": 4}, {"bits": 2.2}, {"ratio": 5}, {"size": 60_000}], ids=str)
def test_the_budget_is_of_all_files(budget: dict[str, float], source: Path, tmp_path: Path) -> None:
    result = compress_folder(source, tmp_path / "out", shard_size=SHARD, **budget)
    size = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.opq.safetensors*"))
    elements = 600 * 96 + 3 * (96 + 256 * 96 + 4 * 96 * 64)
    assert result.elements == elements
    (kind, value), *_ = budget.items()
    limit = {"bits": value * elements / 8, "ratio": (2 * elements + 8) / value, "size": value}[kind]
    assert size == result.bytes
    assert 0.995 * limit <= size <= limit
    assert result.plan.predicted_bytes == pytest.approx(size, rel=0.005)


def test_the_paper_s_method_streams_too(source: Path, tmp_path: Path) -> None:
    result = compress_folder(source, tmp_path / "out", bits=3, method="opq")
    assert result.plan.method == "opq"
    assert 2.985 <= result.bits <= 3
    assert repr(result).startswith("<opq.streaming.Streamed")
    assert len(result.report().plan) == 12


def test_a_shard_alone_is_an_ordinary_file(whole: Path) -> None:
    state = opq.load_state_dict(next(iter(sorted(whole.glob("model-*")))))
    assert torch.equal(state["embed.weight"], opq.load_state_dict(whole)["embed.weight"])


def test_a_module_streams_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(80, 90), torch.nn.BatchNorm1d(90), torch.nn.Linear(90, 20))
    compress_folder(model, tmp_path / "out", bits=5)
    loaded = opq.load(
        tmp_path / "out",
        torch.nn.Sequential(*(type(m)(*a) for m, a in zip(model, [(80, 90), (90,), (90, 20)], strict=True))),
    )
    x = torch.randn(50, 80)
    assert torch.nn.functional.mse_loss(loaded.eval()(x), model.eval()(x)) < 0.01 * model(x).var()


def test_a_pytorch_checkpoint_streams_as_well(tmp_path: Path) -> None:
    state = {"a.weight": weights(100, 80, seed=1), "b.weight": weights(100, 80, seed=2)}
    torch.save(state, tmp_path / "model.pt")
    compress_folder(tmp_path / "model.pt", tmp_path / "out", bits=5)
    assert torch.nn.functional.mse_loss(opq.load_state_dict(tmp_path / "out")["b.weight"], state["b.weight"]) < 1e-4


def test_scales_of_float8_weights_are_kept_and_weigh(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    state = {}
    for k, scale in enumerate([0.001, 0.004]):
        state[f"{k}.weight"] = (100 * torch.randn(256, 256, generator=g)).to(torch.float8_e4m3fn)
        state[f"{k}.weight_scale_inv"] = scale * (1 + torch.rand(16, 16, generator=g))
    folder = checkpoint(tmp_path / "model", [state])
    plan = compress_folder(folder, tmp_path / "out", bits=4).plan
    loaded = opq.load_state_dict(tmp_path / "out")
    assert torch.equal(loaded["0.weight_scale_inv"], state["0.weight_scale_inv"])
    assert plan["0.weight_scale_inv"].reason == "scales of float8 weights"
    assert loaded["0.weight"].dtype == torch.float8_e4m3fn
    assert plan["1.weight"].sensitivity == pytest.approx(plan["0.weight"].sensitivity, rel=0.02)  # relative errors
    paper = compress_folder(folder, tmp_path / "paper", bits=4, method="opq").plan
    mean_square = float(state["1.weight_scale_inv"].double().square().mean())
    assert paper["1.weight"].sensitivity == pytest.approx(mean_square, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2], ids=str)
def test_float8_does_not_overflow_to_nan(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    plan = TensorPlan(name="w", shape=(1,), dtype="F8_E4M3", action="compress", reason="", step=largest * 0.6)
    back = dequantize(torch.tensor([2, -2, 1]), plan, dtype).float()
    assert back.tolist()[:2] == [largest, -largest]
    assert 0 < back[2] < largest


def test_where_no_size_is_in_the_window_the_best_below_it_is_taken(tmp_path: Path) -> None:
    limits = Limits(window=1.0, rounds=5)
    w = torch.linspace(-448, 448, 64 * 64).reshape(64, 64).to(torch.float8_e4m3fn)
    result = streamed({"w": w}, tmp_path / "out", Options(size=1840), limits=limits)
    assert result.rounds == limits.rounds + 1
    assert 900 < result.bytes <= 1840
    assert result.bytes == sum(p.stat().st_size for p in (tmp_path / "out").iterdir())


def test_from_pretrained_accepts_what_comes_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = small_llama(tied=True)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    compress_folder(tmp_path / "model", tmp_path / "out", bits=6, shard_size=SHARD)
    size = save_dense_folder(tmp_path / "out", tmp_path / "dense")
    assert size == sum(p.stat().st_size for p in (tmp_path / "dense").glob("*.safetensors"))
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "dense").eval()
    state, tokens = opq.load_state_dict(tmp_path / "out"), torch.arange(40)[None]
    assert all(torch.equal(t, state[n]) for n, t in loaded.state_dict().items() if n in state)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    with torch.no_grad():
        assert (
            torch.nn.functional.mse_loss(loaded(tokens).logits, model(tokens).logits)
            < 0.01 * model(tokens).logits.var()
        )
    filled = opq.load(tmp_path / "out", transformers.LlamaForCausalLM(model.config))
    assert torch.equal(filled.model.norm.weight, state["model.norm.weight"])


def test_the_command_line(source: Path, whole: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        return dict(json.loads(result.stdout))

    out = str(tmp_path / "out")
    made = said("compress", str(source), "--bits", "4", "-o", out, "--shard-size", str(SHARD))
    assert contents(tmp_path / "out") == contents(whole)
    assert made["file_bytes"] == said("inspect", out)["file_bytes"]
    assert said("verify", out)["tensors"] == 12
    assert said("decompress", out, "-o", str(tmp_path / "dense"))["bytes"] > made["file_bytes"]
    assert (tmp_path / "dense" / "tokenizer.json").exists()
    plain = CliRunner().invoke(app, ["compress", str(source), "--bits", "4", "-o", str(tmp_path / "again")])
    assert "bits per weight" in plain.stdout


def test_side_files_come_along_and_weights_do_not(whole: Path) -> None:
    assert {p.name for p in whole.iterdir() if not p.name.startswith("model-")} == {
        "config.json",
        "tokenizer.json",
        INDEX,
    }


# --- interruptions ---------------------------------------------------------------------------


def stopped(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, stop: int, after: bool = True) -> bool:
    return interrupted(
        lambda: compress_folder(source, folder, bits=4, shard_size=SHARD), monkeypatch, stop=stop, after=after
    )


@pytest.mark.parametrize("after", [False, True])
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    after: bool, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = 1
    while stopped(source, folder := tmp_path / str(stop), monkeypatch, stop=stop, after=after):
        with pytest.raises((MissingFileError, CorruptFileError)) if not (folder / INDEX).exists() else open(os.devnull):
            FolderReader(folder)
        compress_folder(source, folder, bits=4, shard_size=SHARD)
        assert contents(folder) == contents(whole)
        stop += 1
    assert stop > 10


def test_interrupted_again_and_again(
    source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    while stopped(source, tmp_path / "out", monkeypatch, stop=4):
        pass
    assert contents(tmp_path / "out") == contents(whole)


def test_killed_it_goes_on_to_the_same_bytes(source: Path, whole: Path, tmp_path: Path) -> None:
    killed(source, tmp_path / "out", at="model-00002", bits=4, shard_size=SHARD)
    assert list((tmp_path / "out" / ".opq").glob(".*.part"))
    compress_folder(source, tmp_path / "out", bits=4, shard_size=SHARD)
    assert contents(tmp_path / "out") == contents(whole)


def test_statistics_are_not_taken_twice(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InfeasibleError):
        compress_folder(source, tmp_path / "out", bits=0.01)
    monkeypatch.setattr(first_pass, "measure", lambda *_: pytest.fail("measured again"))
    result = compress_folder(source, tmp_path / "out", bits=3)
    assert result.rounds == 1


def test_a_changed_source_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "model")
    assert stopped(folder, tmp_path / "out", monkeypatch, stop=4)
    shards = decoder()
    shards[0]["embed.weight"] = shards[0]["embed.weight"] * 3
    shutil.rmtree(folder)
    checkpoint(folder, shards)
    result = compress_folder(folder, tmp_path / "out", bits=4)
    assert (
        torch.nn.functional.mse_loss(opq.load_state_dict(tmp_path / "out")["embed.weight"], shards[0]["embed.weight"])
        < 1e-3
    )
    assert result.plan["head.weight"].action == "compress"


def swapped_in_place(path: Path) -> None:
    """Other bytes in a file, of which size and times stay."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-3000:] = bytes(b ^ 1 for b in data[-3000:])
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_source_that_changed_with_its_size_and_time_kept_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(tmp_path / "model")
    assert stopped(folder, tmp_path / "early", monkeypatch, stop=4)
    assert stopped(folder, tmp_path / "late", monkeypatch, stop=7)
    swapped_in_place(folder / "model-00002-of-00003.safetensors")
    compress_folder(folder, tmp_path / "early", bits=4, shard_size=SHARD)
    compress_folder(folder, tmp_path / "fresh", bits=4, shard_size=SHARD)
    assert contents(tmp_path / "early") == contents(tmp_path / "fresh")
    with pytest.raises(OccupiedFolderError, match="an unfinished compression of another source"):
        compress_folder(folder, tmp_path / "late", bits=4, shard_size=SHARD)


def test_of_a_large_source_file_some_bytes_everywhere_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(20_000))
    before = sampled(path, 20_000, whole=1000, piece=16)
    for at in (0, 9_996, 19_999):
        data = bytearray(20_000)
        for k in range(at - 320, at + 320):
            data[min(max(k, 0), 19_999)] = 1
        path.write_bytes(data)
        assert sampled(path, 20_000, whole=1000, piece=16) != before, at


@pytest.mark.parametrize("where", ["in a payload", "at the end", "cut short"])
def test_a_finished_shard_that_was_damaged_is_written_again(
    where: str, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert stopped(source, out, monkeypatch, stop=9)
    victim = next(iter(sorted(out.glob("model-*"))))
    data = bytearray(victim.read_bytes())
    if where == "cut short":
        del data[-10:]
    else:
        data[len(data) // 2 if where == "in a payload" else -1] ^= 255
    victim.write_bytes(data)
    compress_folder(source, out, bits=4, shard_size=SHARD)
    assert contents(out) == contents(whole)


def test_a_large_payload_that_was_damaged_is_found_out_by_its_checksum(tmp_path: Path) -> None:
    """Such payloads are entries of their own, which opening a file does not read."""
    compress_folder({"w": weights(700, 512, seed=0, dtype=torch.float32)}, tmp_path / "out", bits=4)
    path = next((tmp_path / "out").glob("model-*"))
    with Reader(path) as reader:
        plan = reader.plan
    assert finished(path, plan) == path.stat().st_size
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with Reader(path) as reader:
        assert reader.plan == plan
    assert finished(path, plan) is None


def test_a_second_round_corrects_a_wrong_prediction(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Rounds.foreseen

    def wrong(self: Rounds) -> tuple[float, float]:
        bits, predicted = real(self)
        return 1.05 * bits, predicted

    monkeypatch.setattr(Rounds, "foreseen", wrong)
    assert stopped(source, tmp_path / "out", monkeypatch, stop=11)
    result = compress_folder(source, tmp_path / "out", bits=4, shard_size=SHARD)
    assert result.rounds == 2
    assert 3.98 <= result.bits <= 4
    assert sorted(p.name for p in (tmp_path / "out").glob("model-*")) == sorted(result.shards)


# --- everything that can be wrong --------------------------------------------------------------


def test_two_runs_into_one_folder(source: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "out"), pytest.raises(BusyFolderError, match="another process writes into"):
        compress_folder(source, tmp_path / "out", bits=4)
    compress_folder(source, tmp_path / "out", bits=4)


def test_a_folder_that_holds_a_compression(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stopped(source, tmp_path / "half", monkeypatch, stop=7)
    before = contents(tmp_path / "half")
    with pytest.raises(OccupiedFolderError, match=r"an unfinished compression .* with other options"):
        compress_folder(source, tmp_path / "half", bits=5, shard_size=SHARD)
    assert contents(tmp_path / "half") == before
    compress_folder(source, tmp_path / "out", bits=4)
    with pytest.raises(OccupiedFolderError, match=r"holds a compression: got model.*Choose another folder"):
        compress_folder(source, tmp_path / "out", bits=4)
    assert not (tmp_path / "out" / ".opq").exists()


def test_the_source_s_own_folder(source: Path) -> None:
    before = contents(source)
    with pytest.raises(OptionError, match="the output is the input"):
        compress_folder(source, source, bits=4)
    assert contents(source) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": 3, "method": "lamp"}, "method='lamp' does not stream"),
        ({"bits": 3, "sparsity": 0.5, "method": "opq"}, "sparsity= does not go with a folder"),
        ({"bits": 3, "trellis": 8}, "trellis=: got 8"),
        ({"bits": 3, "trellis": True, "method": "opq"}, "trellis= goes with|does not take trellis="),
        ({"bits": 3, "shard_size": 100}, "shard_size= is out of range"),
        ({"bits": 3, "ratio": 3}, "the budget is not one option"),
        ({"bits": 3, "sensitivities": {"nobody": 1.0}}, "sensitivities= names no compressed tensor: got nobody"),
        ({"bits": 3, "overrides": {"nobody*": "keep"}}, r"pattern 'nobody\*' matches no tensor"),
    ],
)
def test_options_that_have_no_meaning(options: dict[str, Any], says: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=says):
        compress_folder(source, tmp_path / "out", **options)


def test_too_small_a_budget_says_what_can_be_had(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="wanted about") as caught:
        compress_folder(source, tmp_path / "out", bits=0.05)
    asked = re.fullmatch(r"a budget of (\d+) bytes", str(caught.value.got))
    found = re.fullmatch(r"about (\d+) bytes, that is bits=([\d.]+), or more", str(caught.value.wanted))
    assert asked is not None
    assert found is not None
    assert float(found[2]) == pytest.approx(0.05 * int(found[1]) / int(asked[1]), rel=2e-3)
    assert not list((tmp_path / "out").glob("model*"))


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingShardError, match="no model-00002-of-00003"):
        compress_folder(folder, tmp_path / "out", bits=4)
    assert not (tmp_path / "out").exists()


def test_a_truncated_shard(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    with open(folder / "model-00002-of-00003.safetensors", "r+b") as file:
        file.truncate(60_000)
    with pytest.raises(CorruptSourceError, match=r"model-00002-of-00003\.safetensors cannot be read"):
        compress_folder(folder, tmp_path / "out", bits=4)
    assert not (tmp_path / "out").exists()


def test_an_index_that_names_what_is_not_there(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["ghost.weight"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptSourceError, match=r"'ghost\.weight' in model-00001-of-00003"):
        compress_folder(folder, tmp_path / "out", bits=4)


@pytest.mark.parametrize("lost", [True, False])
def test_a_shard_that_goes_away_meanwhile(lost: bool, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    victim = folder / "model-00003-of-00003.safetensors"

    def spoil(stage: str, done: int, total: int) -> None:
        if stage == "shards" and done == 1:
            victim.unlink() if lost else os.truncate(victim, 20_000)

    with pytest.raises((MissingShardError, CorruptSourceError), match="model-00003"):
        compress_folder(folder, tmp_path / "out", bits=4, shard_size=SHARD, progress=spoil)
    assert not (tmp_path / "out" / INDEX).exists()
    assert not list((tmp_path / "out").glob(".*.part"))


def test_no_room_is_said_before_the_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(WriteError, match=r"no room in .*got 1,000 bytes free"):
        compress_folder(source, tmp_path / "out", bits=4)
    assert not list((tmp_path / "out").glob("model*"))


def test_a_disk_that_fills_up(source: Path, whole: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, before[1]))
    try:
        with pytest.raises(WriteError, match="cannot write"):
            compress_folder(source, tmp_path / "out", bits=4, shard_size=SHARD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "out" / INDEX).exists()
    assert not list((tmp_path / "out").glob(".*.part"))
    compress_folder(source, tmp_path / "out", bits=4, shard_size=SHARD)
    assert contents(tmp_path / "out") == contents(whole)


def test_a_place_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="cannot write into"):
        compress_folder(source, tmp_path / "file" / "out", bits=4)
    assert (tmp_path / "file").read_text() == "mine"
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(WriteError, match="Permission denied"):
            compress_folder(source, tmp_path / "closed" / "out", bits=4)


# --- folders that are not whole ------------------------------------------------------------------


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def named(name: str, file: str) -> Callable[[Path], object]:
    """Makes the index say that a file holds a tensor."""
    return lambda folder: edit(folder, lambda index: index["weight_map"].update({name: file}))


def shard(number: int) -> str:
    return f"model-0000{number}-of-00004.opq.safetensors"


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: edit(folder, lambda index: index["weight_map"].pop(name))


OTHERS = '{"metadata": {}, "weight_map": {"a": "b"}}'
BROKEN: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no index": (lambda f: (f / INDEX).unlink(), MissingFileError, "holds no model.opq.safetensors.index.json"),
    "index that is no JSON": (lambda f: (f / INDEX).write_text("{"), CorruptFileError, "is not JSON"),
    "index of others": (lambda f: (f / INDEX).write_text(OTHERS), ForeignFileError, "not written by opq"),
    "index without names": (lambda f: edit(f, lambda i: i.update(weight_map={})), CorruptFileError, "is no index"),
    "index that leads outside": (named("steps", "../x.opq.safetensors"), CorruptFileError, "outside its folder"),
    "tensor that no shard holds": (named("ghost", shard(1)), CorruptFileError, "'ghost'"),
    "tensor that the index leaves out": (without("steps"), CorruptFileError, "'steps'"),
    "no shard": (lambda f: (f / shard(1)).unlink(), MissingFileError, "model-00001"),
    "truncated shard": (lambda f: os.truncate(f / shard(2), 9000), TruncatedFileError, "model-00002"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_said(how: str, copy: Path) -> None:
    assert len(list(copy.glob("model-*"))) == 4
    spoil, kind, says = BROKEN[how]
    spoil(copy)
    with pytest.raises(kind, match=says):
        opq.load_state_dict(copy)


def test_shards_of_two_compressions(source: Path, copy: Path, tmp_path: Path) -> None:
    compress_folder(source, tmp_path / "other", bits=3.9, shard_size=SHARD)
    shutil.copy(tmp_path / "other" / "model-00003-of-00004.opq.safetensors", copy)
    with pytest.raises(CorruptFileError, match="the shards are not of one plan"):
        opq.load_state_dict(copy)


def test_a_dense_folder_is_not_written_over_its_source(whole: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the output is the input"):
        save_dense_folder(whole, whole)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="cannot write into"):
        save_dense_folder(whole, tmp_path / "file")


def test_large_tensors_come_back_in_pieces(tmp_path: Path) -> None:
    w = weights(1300, 1024, seed=3)
    save_file({"w": w, "kept": weights(2100, 2048, seed=4)}, tmp_path / "m.safetensors")
    compress_folder(tmp_path / "m.safetensors", tmp_path / "out", bits=13, overrides={"kept": "keep"})
    save_dense_folder(tmp_path / "out", tmp_path / "dense")
    (dense,) = (tmp_path / "dense").glob("*.safetensors")
    loaded, state = load_file(dense), opq.load_state_dict(tmp_path / "out")
    assert torch.equal(loaded["w"], state["w"])
    assert torch.equal(loaded["kept"], weights(2100, 2048, seed=4))
