"""A folder against a base: the differences are streamed, and every shard names the one base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stream_helpers import SHARD, checkpoint, contents, decoder, small_llama
from typer.testing import CliRunner

import opq
from opq.cli import app
from opq.errors import CorruptFileError, OptionError, WrongBaseError
from opq.file.folder_reader import FolderReader
from opq.file.reader import Reader
from opq.streaming import compress_folder, save_dense_folder

State = dict[str, torch.Tensor]


def moved(shards: list[State]) -> list[State]:
    """The checkpoint some steps later; one layer was frozen, the output matrix is still the embedding."""
    g = torch.Generator().manual_seed(5)
    later: list[State] = []
    for state in shards:
        noise = {n: 1e-3 * torch.randn(t.shape, generator=g) for n, t in state.items() if t.is_floating_point()}
        later.append({n: (t.float() + noise[n]).to(t.dtype) if n in noise else t + 1 for n, t in state.items()})
    later[1] |= {n: t for n, t in shards[1].items() if n.startswith("layers.0.")}
    later[-1]["head.weight"] = later[0]["embed.weight"].clone()
    return later


def folders(tmp_path: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    """Of an old and a new checkpoint."""
    old = decoder(2, dtype=dtype)
    return checkpoint(tmp_path / "old", old), checkpoint(tmp_path / "new", moved(old))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return folders(tmp_path, torch.bfloat16)


def state(folder: Path) -> State:
    return {n: t for p in sorted(folder.glob("*.safetensors")) for n, t in load_file(p).items()}


def squared(found: State, wanted: State, name: str) -> float:
    return float((found[name].double() - wanted[name].double()).square().mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_differences_go_into_shards_and_come_back_with_their_base(dtype: torch.dtype, tmp_path: Path) -> None:
    old, new = folders(tmp_path, dtype)
    out, wanted, before = tmp_path / "out", state(new), state(old)
    result = compress_folder(new, out, base=old, bits=1.0, shard_size=SHARD // 4)
    assert len(result.shards) > 1
    assert result.bits <= 1
    found = opq.load_state_dict(out, base=old)
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in wanted.items()}
    for name in ("embed.weight", "layers.1.up.weight", "layers.1.experts"):
        assert squared(found, wanted, name) < 0.7 * squared(before, wanted, name), name
    for name in ("layers.0.up.weight", "layers.0.experts", "steps"):
        assert torch.equal(found[name], wanted[name]), name
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert not torch.equal(found["layers.1.up.weight"], before["layers.1.up.weight"])


def test_a_folder_holds_what_one_file_would(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The same codes where the same plan is applied: by the same steps."""
    old, new = pair
    compress_folder(new, tmp_path / "out", base=old, bits=2.0)
    whole = opq.load_state_dict(tmp_path / "out", base=old)
    with FolderReader(tmp_path / "out") as folder:
        plan, wanted, before = folder.plan, state(new), state(old)
        name = "layers.1.up.weight"
        step = plan[name].step
        codes = torch.from_numpy(folder.codes(name))
        assert torch.equal(whole[name], (before[name].double() + step * codes.double()).float().to(before[name].dtype))
        change = wanted[name].double() - before[name].double()
        assert float((change - step * codes).abs().max()) <= step


def test_every_shard_names_the_base_and_another_one_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    out = tmp_path / "out"
    compress_folder(new, out, base=old, bits=1.0, shard_size=SHARD // 4)
    names = set()
    for path in out.glob("*.opq.safetensors"):
        with Reader(path) as shard:
            names.add(shard.base)
    assert len(names) == 1
    with pytest.raises(WrongBaseError, match="got no base, wanted"):
        opq.load_state_dict(out)
    with pytest.raises(WrongBaseError, match="is not the base of"):
        opq.load_state_dict(out, base=new)
    for base, text in ((None, "got no base"), (new, "is not the base of")):
        with pytest.raises(WrongBaseError, match=text):
            save_dense_folder(out, tmp_path / "dense", base=base)
    assert not (tmp_path / "dense").exists()
    compress_folder(new, tmp_path / "plain", bits=4.0)
    with pytest.raises(WrongBaseError, match="has no base"):
        opq.load_state_dict(tmp_path / "plain", base=old)


def test_shards_of_two_bases_are_no_folder(tmp_path: Path) -> None:
    old = decoder()
    new, one, other = checkpoint(tmp_path / "new", moved(old)), tmp_path / "one", tmp_path / "other"
    for name, out in (("old", one), ("older", other)):
        base = checkpoint(tmp_path / name, old)
        compress_folder(new, out, base=base, bits=1.0, shard_size=SHARD // 4)
        old = [{n: t - 1 if n == "steps" else t for n, t in state.items()} for state in old]
    first = sorted(one.glob("*.opq.safetensors"))[0]
    first.write_bytes((other / first.name).read_bytes())
    with pytest.raises(CorruptFileError, match="shards of different bases"):
        FolderReader(one)


def test_the_command_line_takes_a_base_for_folders(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    out, dense = tmp_path / "out", tmp_path / "dense"
    call = CliRunner().invoke
    made = call(app, ["compress", str(new), "-o", str(out), "--base", str(old), "--bits", "1", "--no-probe"])
    assert made.exit_code == 0, made.output
    assert f"opq decompress {out} --base {old}" in made.output.replace("\n", "")
    assert call(app, ["decompress", str(out), "-o", str(dense)]).exit_code != 0
    assert call(app, ["decompress", str(out), "-o", str(dense), "--base", str(new)]).exit_code != 0
    assert not dense.exists()
    assert call(app, ["decompress", str(out), "-o", str(dense), "--base", str(old)]).exit_code == 0
    found, wanted = state(dense), opq.load_state_dict(out, base=old)
    assert all(torch.equal(t, wanted[n]) for n, t in found.items())
    refused = call(app, ["compress", str(new), "-o", str(tmp_path / "x"), "--like", str(out), "--bits", "1"])
    assert "does not go with a folder as output" in str(refused.exception)


def test_no_output_replaces_its_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    before = contents(old)
    with pytest.raises(OptionError, match="the output is the input"):
        compress_folder(new, old, base=old, bits=1.0)
    single = str(next(iter(old.glob("*.safetensors"))))
    made = CliRunner().invoke(app, ["compress", str(new), "-o", single, "--base", single, "--bits", "1", "--force"])
    assert isinstance(made.exception, OptionError)
    assert contents(old) == before


def test_the_base_may_be_a_folder_of_opq_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    compress_folder(old, tmp_path / "first", bits=5.0)
    compress_folder(new, tmp_path / "second", base=tmp_path / "first", bits=2.0)
    found, wanted = opq.load_state_dict(tmp_path / "second", base=tmp_path / "first"), state(new)
    first = opq.load_state_dict(tmp_path / "first")
    assert squared(found, wanted, "layers.1.up.weight") < 0.5 * squared(first, wanted, "layers.1.up.weight")


def test_threads_and_an_interruption_change_no_byte(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair
    options = {"base": old, "bits": 1.0, "shard_size": SHARD // 4}
    compress_folder(new, tmp_path / "one", workers=1, **options)
    calls = []

    def progress(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if stage == "shards" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_folder(new, tmp_path / "two", workers=2, progress=progress, **options)
    compress_folder(new, tmp_path / "two", workers=2, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_model_in_blocks_is_probed_as_it_is_and_not_as_its_differences(tmp_path: Path) -> None:
    model = small_llama()
    model.save_pretrained(tmp_path / "old")
    with torch.no_grad():
        for p in model.parameters():
            p += 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    model.save_pretrained(tmp_path / "new")
    result = compress_folder(tmp_path / "new", tmp_path / "out", base=tmp_path / "old", bits=2.0)
    assert "block by block" in result.basis
    found, wanted = opq.load_state_dict(tmp_path / "out", base=tmp_path / "old"), model.state_dict()
    before = state(tmp_path / "old")
    assert squared(found, wanted, "lm_head.weight") < 0.1 * squared(before, wanted, "lm_head.weight")
    matters = {t.name: t.sensitivity for t in result.plan.compressed}
    assert matters["model.layers.0.self_attn.v_proj.weight"] > 10 * matters["model.layers.0.self_attn.q_proj.weight"]
