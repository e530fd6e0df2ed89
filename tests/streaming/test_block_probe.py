"""The probe block by block: what it gives is what the whole model gives, and one block is in memory at a time."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stream_helpers import SMALL, checkpoint, contents, interrupted, killed, small_llama
from torch import nn
from typer.testing import CliRunner

import opq
from opq.base.pool import pool
from opq.cli import app
from opq.compression import by_outputs
from opq.compression.by_outputs import ByOutputs
from opq.compression.options import Options
from opq.compression.roles import assign
from opq.errors import ProbeError, ProbeWarning, WriteError
from opq.file.folder_reader import FolderReader
from opq.models.batch import Batch
from opq.probing import usage
from opq.probing.moments import Moments
from opq.probing.texts import TEMPERATURES
from opq.quantizing.feedback import feedback
from opq.quantizing.grid import quantize
from opq.quantizing.moment import Layout
from opq.quantizing.rows import divided
from opq.report.inspection import examine
from opq.streaming import block_gradients, block_texts
from opq.streaming.block_probe import PROBED, Carried
from opq.streaming.block_texts import DRAWN
from opq.streaming.chunks import Tensors, tensors_of
from opq.streaming.clock import Clock
from opq.streaming.dense import save_dense_folder
from opq.streaming.limits import Limits
from opq.streaming.model_blocks import PART, Blocks, open_blocks
from opq.streaming.run import compress_folder, streamed
from opq.streaming.team import Team
from opq.streaming.work_folder import Work

transformers = pytest.importorskip("transformers")

KINDS: dict[str, Callable[[], Any]] = {
    "llama": small_llama,
    "qwen2": lambda: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SMALL, num_hidden_layers=2, tie_word_embeddings=True)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=300, n_embd=48, n_layer=2, n_head=4, n_positions=64,
                                bos_token_id=1, eos_token_id=1)
    ),
}  # fmt: skip
SHARD = 12_000
"""Bytes: a few output shards at 3 bits."""


def saved(kind: str, folder: Path) -> Any:
    """A model with random weights of about the spread that trained ones have, saved in several shards."""
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1 + torch.rand(len(parameter), 1))
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return model


@pytest.fixture(scope="module", params=list(KINDS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("source") / "model"
    return saved(request.param, folder), folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "model"
    saved("llama", folder)
    return folder


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run writes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    compress_folder(llama, folder, bits=3, shard_size=SHARD)
    return folder


@pytest.fixture
def carried(case: tuple[Any, Path], tmp_path: Path) -> Iterator[Carried]:
    source = opq.open_source(case[1])
    with pool(2) as threads:
        yield carried_of(open_blocks(source, Tensors(source), 0), tmp_path / "out", threads)


def carried_of(blocks: Blocks, folder: Path, threads: Any) -> Carried:
    work = Work(folder, "digest")
    work.inner.mkdir(parents=True, exist_ok=True)
    return Carried(blocks, "key", 0, work, Team(), threads, Clock(), lambda *_: None)


def batch(ids: torch.Tensor) -> Batch:
    return Batch((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def gradients(model: nn.Module, carried: Carried) -> dict[str, torch.Tensor]:
    """`(d v'f / d w)^2`, its mean over texts, by automatic differentiation through the whole model, `v` as the probe
    draws it."""
    names = dict(model.named_parameters())
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in names.items()}
    for part in range(PROBED):
        generator = torch.Generator().manual_seed(7919 * (part + 1))
        ids = carried.blocks.ids[PART * part : PART * (part + 1)]
        v = torch.randn((*ids.shape, 300), generator=generator)
        for text, direction in zip(ids, v, strict=True):
            logits = batch(text[None])(model).logits
            found = torch.autograd.grad(logits, list(names.values()), direction[None], allow_unused=True)
            for name, g in zip(names, found, strict=True):
                total[name] += 0.0 if g is None else g.double().square() / (PART * PROBED)
    return total


def test_of_tied_names_sensitivities_are_added() -> None:
    """The weight feels what every one of its uses does, and each of its rows; use is that of who holds the table."""
    ties = {"a": None, "head": "a", "b": None, "c": None, "table": "a"}
    source: Any = SimpleNamespace(by_name={n: SimpleNamespace(name=n, like=like) for n, like in ties.items()})
    felt = {"a": [1.0], "head": [6.0, 10.0], "b": [4.0], "c": [1.0, 3.0, 5.0]}
    squares = {name: torch.tensor(square, dtype=torch.float64) for name, square in felt.items()}
    measured: Any = SimpleNamespace(
        sensitivities=lambda: squares,
        _usage=lambda: {"table": np.ones(2), "b": np.ones(1)},
        layouts={},
        costs=lambda: {"head": np.ones(3), "c": np.ones(1)},
        blocks=SimpleNamespace(fed_head="head"),
    )
    found = Carried.found(measured, source)
    assert found.columns(["a", "b"]).keys() == {"a"}
    assert found.layout("a") == Layout()
    assert found.sensitivity == {"a": 9.0, "b": 4.0, "c": 3.0}
    assert {name: rows.tolist() for name, rows in found.rows.items()} == {"a": [7.0, 11.0], "c": [1.0, 3.0, 5.0]}
    assert [*found.usage] == ["a", "b"]


def test_sensitivities_are_those_of_the_whole_model(case: tuple[Any, Path], carried: Carried) -> None:
    model, felt = case[0], carried.sensitivities()
    squares, layouts = gradients(model, carried), carried.layouts
    wanted = {name: float(square.mean()) for name, square in squares.items()}
    found = {name: float(square.mean()) for name, square in felt.items()}
    inside = [n for n, p in model.named_parameters() if p.dim() > 1 and (".layers." in n or ".h." in n)]
    assert len(inside) in (14, 8)
    for name in inside:
        assert found[name] == pytest.approx(wanted[name], rel=1e-3), name
        by_output = squares[name].mean(0 if layouts[name].transposed else 1)
        torch.testing.assert_close(felt[name], by_output, rtol=1e-2, atol=1e-3 * wanted[name], msg=name)
    positions = [n for n in found if n.endswith("wpe.weight")]
    for name in positions:  # of the embeddings the cross terms of texts of one part are noise
        assert found[name] == pytest.approx(wanted[name], rel=0.3)
    tied = model.get_input_embeddings().weight is model.lm_head.weight
    embedding = next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    if not tied:
        assert found[embedding] == pytest.approx(wanted[embedding], rel=0.05)
        assert found["lm_head.weight"] == pytest.approx(wanted["lm_head.weight"], rel=0.05)
    else:
        assert found[embedding] == pytest.approx(wanted[embedding], rel=0.2)


def test_words_are_expected_as_often_as_by_the_whole_model(case: tuple[Any, Path], carried: Carried) -> None:
    """The mean of its predicted distributions, over the texts of which sensitivities are measured."""
    carried.sensitivities()
    ids = carried.blocks.ids[: PART * PROBED]
    with torch.no_grad():
        likely = batch(ids)(case[0]).logits.double().softmax(-1).flatten(0, 1).sum(0)
    found, source = carried.found(opq.open_source(case[1])).usage, opq.open_source(case[1])
    used = (carried.blocks.table, str(carried.blocks.head))
    assert set(found) == {source.by_name[name].like or name for name in used}
    for counts in found.values():
        np.testing.assert_allclose(counts, likely.numpy() ** usage.POWER, rtol=1e-4)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns of small models are scaled, too."""
    monkeypatch.setattr(by_outputs, "COLUMNS_FELT", 8)


def test_rows_that_count_more_have_smaller_steps(narrow: None, llama: Path, tmp_path: Path) -> None:
    """The folder's codes are of rows and columns that are scaled as in a single file by what the probe tells."""
    result = compress_folder(llama, tmp_path / "out", bits=4)
    source = opq.open_source(llama)
    with pool(2) as threads:
        told = carried_of(open_blocks(source, Tensors(source), 0), tmp_path / "probe", threads).found(source)
        by_rows = ByOutputs.of(source, assign(source.specs), told, turning=False)
    assert isinstance(by_rows, ByOutputs)
    assert len(by_rows.exponents) >= 2
    with FolderReader(tmp_path / "out") as reader:
        for tensor in result.plan.compressed:
            own, scaled = reader.exponents(tensor.name), tensor.name in by_rows.exponents
            assert scaled == tensor.by_row == (own is not None)
            assert tensor.by_column == (tensor.name in by_rows.across)
            assert reader.plan[tensor.name].codebook == tensor.codebook
            if own is not None:
                np.testing.assert_array_equal(own, by_rows.exponents[tensor.name])
            if tensor.by_column:
                np.testing.assert_array_equal(reader.columns(tensor.name), by_rows.across[tensor.name])
    assert any(np.ptp(e) > 0 for e in by_rows.exponents.values())
    assert any(np.ptp(f) > 0 for f in by_rows.across.values())


def test_columns_cost_what_the_whole_model_says(case: tuple[Any, Path], carried: Carried) -> None:
    """Also in the output matrix, whichever name it has; a second time nothing is measured."""
    source = opq.open_source(case[1])
    told = carried.found(source)
    moments = Moments(case[0], batch(carried.blocks.ids))
    found = told.columns(list(source.names))
    wanted = moments.costs([name for name in found if name in moments])
    assert len(wanted) >= 8
    for name, cost in wanted.items():
        np.testing.assert_allclose(found[name], cost, rtol=1e-2)
    assert source.by_name[str(carried.blocks.head)].like in (None, *found)
    assert carried.blocks.fed_head in found
    files = {path: path.stat().st_mtime_ns for path in carried.work.inner.glob("*-costs-*")}
    assert len(files) == len(carried.blocks) + 1
    assert told.columns(list(source.names)).keys() == found.keys()
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_of_a_model_without_an_output_matrix_only_its_layers_are_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_hidden_layers=1)
    transformers.LlamaModel(config).save_pretrained(tmp_path / "model")
    source = opq.open_source(tmp_path / "model")
    with pool(2) as threads:
        told = carried_of(open_blocks(source, Tensors(source), 0), tmp_path / "probe", threads).found(source)
        inside = {name for name in source.names if ".layers." in f".{name}" and len(source.by_name[name].shape) == 2}
        assert len(inside) == 7
        assert set(told.layouts) == set(told.columns(list(source.names))) == inside
        assert set(told.sensitivity) == {*inside, "embed_tokens.weight"}
        assert told.usage == {}


def test_scaled_rows_are_read_from_anywhere_to_anywhere(llama: Path) -> None:
    source = opq.open_source(llama)
    spec = next(spec for spec in source.specs if len(spec.shape) == 2)
    e = np.arange(spec.shape[0], dtype=np.int16) % 7 - 3
    f = np.arange(spec.shape[1], dtype=np.int16) % 5 - 2
    own: dict[str, Any] = {"exponents": {spec.name: e}, "across": {spec.name: f}, "importance": {}, "costs": {}}
    scaled = ByOutputs.over(source, whole=source, turns={}, **own)
    tensors, wanted = tensors_of(scaled), divided(source.tensor(spec.name), e, f).reshape(-1)
    width = spec.shape[1]
    for start, stop in ((0, spec.size), (0, 1), (5, width), (width - 1, width + 1), (width, 3 * width), (7, 7)):
        assert torch.equal(tensors.read(spec.name, start, stop), wanted[start:stop])
    assert tensors.dtype(spec.name) == torch.float32
    assert torch.equal(tensors.whole.read(spec.name, 0, 9), source.tensor(spec.name).reshape(-1)[:9])


def test_moments_are_those_of_the_whole_model(case: tuple[Any, Path], carried: Carried) -> None:
    model = case[0]
    carried.sensitivities()
    wanted, seen = Moments(model, batch(carried.blocks.ids)), 0
    for k in range(len(carried.blocks)):
        inputs = carried.inputs(k)
        assert len({id(i) for i in inputs.values()}) == 4
        for name, given in inputs.items():
            for a, b in zip(given.moment(Clock()).blocks, wanted[name].blocks, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
            seen += 1
    assert seen == len(carried.blocks) * (7 if len(inputs) == 7 else 4)


def test_one_block_has_its_weights_at_a_time(carried: Carried, monkeypatch: pytest.MonkeyPatch) -> None:
    held, real = [], Blocks.run

    def counted(self: Blocks, k: int, hidden: torch.Tensor) -> torch.Tensor:
        held.append([j for j, block in enumerate(self.blocks) if any(not p.is_meta for p in block.parameters())])
        assert held[-1] == [k]
        return real(self, k, hidden)

    monkeypatch.setattr(Blocks, "run", counted)
    carried.sensitivities()
    carried.inputs(1)
    assert len(held) == 2 * (8 * (DRAWN + 1) + PROBED) + 8
    assert all(p.is_meta for block in carried.blocks.blocks for p in block.parameters())


def test_texts_are_drawn_from_what_stands_before_every_word(case: tuple[Any, Path], tmp_path: Path) -> None:
    """Twice, all places at once: by the whole model, with the noise that the probe draws."""
    model, folder = case
    source = opq.open_source(folder)
    with pool(2) as threads:
        probe = carried_of(open_blocks(source, Tensors(source), 0), tmp_path / "out", threads)
        random = probe.blocks.ids
        block_texts.write(probe)
        again = carried_of(open_blocks(source, Tensors(source), 0), tmp_path / "out", threads)
        block_texts.write(again)  # from the files of the first
    assert torch.equal(probe.blocks.ids, again.blocks.ids)
    special = probe.blocks.special
    heat = torch.tensor(TEMPERATURES).repeat(PART // 2)[:, None, None]
    ids = random[PART : 2 * PART]
    for _ in range(DRAWN):
        with torch.no_grad():
            scores = batch(ids)(model).logits / heat
        noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(2 * 104729))
        scores = scores - torch.log(-torch.log(noise))
        scores[..., special] = -torch.inf
        ids = torch.cat([ids[:, :1], scores.argmax(-1)[:, :-1]], 1)
    found = probe.blocks.ids[PART : 2 * PART]
    assert (found != ids).float().mean() < 0.02  # scores differ in the last bits
    assert (found != random[PART : 2 * PART])[:, 1:].float().mean() > 0.9
    assert not torch.isin(probe.blocks.ids[:, 1:], torch.tensor(special)).any()


def test_codes_are_those_of_feedback_on_the_whole_matrix(narrow: None, case: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = case
    result = compress_folder(folder, tmp_path / "out", bits=3, shard_size=SHARD)
    assert len(result.shards) > 1
    assert result.basis == "sensitivities and error feedback block by block, 128 synthetic texts"
    assert examine(tmp_path / "out").basis == "a probe of the model on synthetic inputs: sensitivities, error feedback"
    source = opq.open_source(folder)
    with pool(2) as threads:
        probe = carried_of(open_blocks(source, Tensors(source), 0), tmp_path / "again", threads)
        block_texts.write(probe)
        told = carried_of(probe.blocks, tmp_path / "again", threads).found(source)
        scaled = ByOutputs.of(source, assign(source.specs), told, turning=False)
    assert isinstance(scaled, ByOutputs)
    moments = Moments(model, batch(probe.blocks.ids))
    fed = differing = weights = 0
    assert scaled.across
    with FolderReader(tmp_path / "out") as reader:
        for tensor in reader.plan.compressed:
            codes, w = reader.codes(tensor.name), scaled.tensor(tensor.name)
            codebook, _, by_row = tensor.codebook.partition("-")
            assert by_row in ("", "rows", "columns")
            tensor = dataclasses.replace(tensor, codebook=codebook)
            if tensor.name in moments:
                w = w.reshape(tensor.shape)
                wanted = feedback(w, tensor, moments[tensor.name], f=scaled.across.get(tensor.name)).numpy()
                fed, weights = fed + 1, weights + w.numel()
                differing += int((codes != wanted).sum())  # moments differ in the last bits
                assert tensor.rate < 1 or (codes != quantize(w, tensor).numpy()).mean() > 0.02
            else:
                assert np.array_equal(codes, quantize(w, tensor).numpy())
            transposed = tensor.name in moments and moments[tensor.name].layout.transposed
            assert tensor.codebook == ("grid" if transposed or tensor.rate < 1.3 else "trellis")
    assert fed in (15, 9)
    assert differing < 0.01 * weights


def test_feedback_moves_the_outputs_less(case: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = case
    compress_folder(folder, tmp_path / "fed", bits=3)
    compress_folder(folder, tmp_path / "plain", bits=3, probe=False)
    ids = torch.randint(300, (64, 20), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        dense = batch(ids)(model).logits
        errors = {}
        for kind in ("fed", "plain"):
            save_dense_folder(tmp_path / kind, tmp_path / f"dense-{kind}")
            loaded = type(model).from_pretrained(tmp_path / f"dense-{kind}").eval()
            errors[kind] = float((batch(ids)(loaded).logits - dense).square().mean())
    assert errors["fed"] < 0.9 * errors["plain"]


@pytest.mark.parametrize("bits", [2.0, 3.0, 4.0])
def test_the_budget_holds_with_what_feedback_adds(bits: float, llama: Path, tmp_path: Path) -> None:
    result = compress_folder(llama, tmp_path / "out", bits=bits, shard_size=SHARD)
    assert 0.995 * bits <= result.bits <= bits
    assert result.rounds == 1 if bits >= 3 else result.rounds <= 2
    assert result.bytes == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.opq.safetensors*"))
    assert {"probe", "moments", "feedback"} <= set(result.cpu_seconds)


def test_blocks_that_are_not_sampled_are_foreseen_by_others(llama: Path, tmp_path: Path) -> None:
    result = streamed(llama, tmp_path / "out", Options(bits=3), limits=Limits(fed_blocks=1))
    assert 2.985 <= result.bits <= 3


def test_threads_do_not_change_a_byte(llama: Path, whole: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        compress_folder(llama, tmp_path / "out", bits=3, shard_size=SHARD, workers=1)
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "out") == contents(whole)
    assert not (tmp_path / "out" / ".opq").exists()


def test_slabs_give_what_the_whole_gives(llama: Path, whole: Path, tmp_path: Path) -> None:
    streamed(llama, tmp_path / "out", Options(bits=3), shard_size=SHARD, limits=Limits(slab=1000, alone=3000))
    other, same = opq.load_state_dict(tmp_path / "out"), opq.load_state_dict(whole)
    assert all((other[n] != same[n]).float().mean() < 0.01 for n in same)


# --- interruptions ---------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [6, 20, 32, 38, 43])
def test_interrupted_it_goes_on_to_the_same_bytes(
    stop: int, llama: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        compress_folder(llama, tmp_path / "out", bits=3, shard_size=SHARD)

    assert interrupted(work, monkeypatch, stop=stop)
    work()
    assert contents(tmp_path / "out") == contents(whole)


def test_what_the_probe_has_done_is_not_done_again(
    llama: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", Carried.sensitivities

    def stopped(self: Carried) -> dict[str, float]:
        real(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Carried, "sensitivities", stopped)
    with pytest.raises(KeyboardInterrupt):
        compress_folder(llama, out, bits=3, shard_size=SHARD)
    monkeypatch.setattr(Carried, "sensitivities", real)
    monkeypatch.setattr(Carried, "_onwards", lambda *_: pytest.fail("carried again"))
    monkeypatch.setattr(block_gradients, "_back", lambda *_: pytest.fail("carried back again"))
    compress_folder(llama, out, bits=3, shard_size=SHARD)
    assert contents(out) == contents(whole)


def test_killed_in_the_probe(llama: Path, whole: Path, tmp_path: Path) -> None:
    killed(llama, tmp_path / "out", at="squares-00001", bits=3, shard_size=SHARD)
    compress_folder(llama, tmp_path / "out", bits=3, shard_size=SHARD)
    assert contents(tmp_path / "out") == contents(whole)


# --- what cannot be probed -----------------------------------------------------------------------


def test_a_folder_without_a_model_is_compressed_by_its_weights(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    result = compress_folder(folder, tmp_path / "out", bits=4)
    assert result.basis.startswith("the weights alone: transformers does not know the model in")
    assert {t.name: t.sensitivity for t in result.plan.compressed} == {
        t.name: t.sensitivity for t in compress_folder(folder, tmp_path / "bare", bits=4, probe=False).plan.compressed
    }


def test_a_model_that_is_no_stack_is_said(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=300, d_model=48, d_ff=96, num_layers=2, num_heads=4, d_kv=12)
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    with pytest.warns(ProbeWarning, match="the weights alone: the model has two stacks of blocks"):
        result = compress_folder(tmp_path / "model", tmp_path / "out", bits=4)
    assert result.basis.startswith("the weights alone: the model has two stacks of blocks")
    again = compress_folder(tmp_path / "model", tmp_path / "again", bits=4, probe=False)
    assert again.basis == "the weights alone: no probe was asked for"
    assert examine(tmp_path / "again").basis == "the weights alone, or training"
    with pytest.warns(ProbeWarning, match="no error feedback: the model has two stacks"):
        whole = compress_folder(tmp_path / "model", tmp_path / "whole", bits=4, probe=True)
    assert whole.basis.startswith("sensitivities by the probe of the whole model, no error feedback: the model has")
    assert examine(tmp_path / "whole").basis == "a probe of the model on synthetic inputs: sensitivities"
    assert len({t.sensitivity for t in whole.plan.compressed}) > 5


def test_a_decoder_is_not_run_without_its_encoder(tmp_path: Path) -> None:
    """Its own forward takes no sounds, so that what reads them would count for nothing."""
    sizes = {"d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 20, "vocab_size": 300}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(**sizes, **heads, **ids, max_source_positions=100, suppress_tokens=None)
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    with pytest.warns(ProbeWarning, match="two stacks of blocks: got model.*layers and model.*layers"):
        result = compress_folder(tmp_path / "model", tmp_path / "out", bits=4)
    assert result.basis.startswith("the weights alone: the model has two stacks of blocks")


def test_plain_weights_are_probed_though_the_config_names_a_quantizer(tmp_path: Path) -> None:
    """transformers leaves the name of the quantizer in the config of a model that it has read from a GGUF file."""
    saved("llama", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gguf", "gguf_file": "model.gguf", "dequantize": False}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    result = compress_folder(tmp_path / "model", tmp_path / "out", bits=4)
    assert result.basis.startswith("sensitivities and error feedback block by block")


def test_a_checkpoint_that_lacks_a_tensor_is_said(tmp_path: Path) -> None:
    saved("llama", tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    from safetensors.torch import load_file, save_file

    state = {n: t for p in (tmp_path / "model").glob("*.safetensors") for n, t in load_file(p).items()}
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.unlink()
    index.unlink()
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(ProbeWarning, match=r"lacks a tensor of the model: got no 'layers\.1\.mlp\.up_proj\.weight'"):
        compress_folder(tmp_path / "model", tmp_path / "out", bits=4)


def test_a_block_that_overflows_is_said(tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "model")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e38)
        model.model.layers[1].mlp.up_proj.weight.mul_(1e30)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    with pytest.raises(ProbeError, match="block 1 of the model gives NaN or infinity"):
        compress_folder(tmp_path / "model", tmp_path / "out", bits=4)


def test_a_gradient_that_overflows_is_said(tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "model")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e25)
        model.model.norm.weight.mul_(1e15)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    with pytest.raises(ProbeError, match=r"the gradient of model.layers.1.* is NaN or infinite on synthetic texts"):
        compress_folder(tmp_path / "model", tmp_path / "out", bits=4)


def test_no_room_for_the_probe_is_said(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opq.streaming.work_folder.shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and _Free())
    with pytest.raises(WriteError, match="no room in"):
        compress_folder(llama, tmp_path / "out", bits=4)


class _Free:
    free = 1_000_000


def test_the_command_says_what_it_did(llama: Path, tmp_path: Path) -> None:
    on = CliRunner().invoke(app, ["compress", str(llama), "--bits", "3", "-o", str(tmp_path / "on")])
    assert "block by block, 128 synthetic texts" in on.stdout.replace("\n", " ")
    off = CliRunner().invoke(app, ["compress", str(llama), "--bits", "3", "--no-probe", "-o", str(tmp_path / "off")])
    assert "the weights alone: no probe was asked for" in off.stdout.replace("\n", " ")
    assert contents(tmp_path / "on") != contents(tmp_path / "off")


def test_rows_of_the_output_matrix_in_pieces(llama: Path, tmp_path: Path) -> None:
    source = opq.open_source(llama)
    weight = source.tensor("lm_head.weight").float()
    h = torch.randn(16, 24, 48, generator=torch.Generator().manual_seed(1))
    with pool(1) as threads:
        carried = carried_of(open_blocks(source, Tensors(source), 0), tmp_path / "out", threads)
        carried = dataclasses.replace(carried, rows=70)
        made = [block_gradients.at_head(carried, h, torch.Generator().manual_seed(k)) for k in range(20)]
    c = torch.cat([cotangent.flatten(0, 1) for cotangent, _ in made])
    wanted = weight.t() @ weight  # the second moment of W'v
    assert float((c.t() @ c / len(c) - wanted).norm() / wanted.norm()) < 0.08
    assert made[0][1]["lm_head.weight"] == pytest.approx(float(h.square().sum()) / 48, rel=1e-5)
