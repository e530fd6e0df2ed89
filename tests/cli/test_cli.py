"""The command line as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file

import opq
from opq import cli
from opq.cli import compressing, printing
from opq.cli.options import METHODS
from opq.cli.outputs import unused
from opq.errors import OptionError
from opq.file.stored import Grid, Raw, Stored
from opq.file.writer import Packed, pack

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `opq ARGS` in this process: exit code, standard output, standard error."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["opq", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capfd.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    path = tmp_path / "net.safetensors"
    save_file({"a.weight": torch.randn(64, 128, generator=g), "a.bias": torch.randn(64, generator=g)}, path)
    return path


def test_a_quick_probe_is_one_without_texts_of_the_model_s_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    whole = opq.compress

    def compress(*given: Any, **options: Any) -> Any:
        asked.append(options["probe"])
        return whole(*given, **{**options, "probe": False})

    monkeypatch.setattr(opq, "compress", compress)
    for number, flags in enumerate((["--quick-probe"], ["--quick-probe", "--probe"], ["--probe"], [])):
        assert run("compress", "demo:digits", "--bits", 4, *flags, "-o", tmp_path / f"{number}.safetensors")[0] == 0
    assert asked == ["quick", "quick", True, None]
    code, _, err = run("compress", "demo:digits", "--bits", 4, "--quick-probe", "--no-probe")
    assert code == 1
    assert "--quick-probe and --no-probe contradict each other. Give one of them." in err


def test_compress_inspect_verify_decompress(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    file, dense = tmp_path / "net.opq.safetensors", tmp_path / "dense.safetensors"
    code, out, err = run("compress", checkpoint, "--bits", 4, "-o", file)
    assert (code, err) == (0, "")
    assert f"{file.stat().st_size:,} bytes" in out
    assert "a.weight" not in out
    assert "Verified" in out
    assert "By the weights alone" in out
    assert "The paper's count, positions free: " in out
    assert f"Next: opq inspect {file}" in out
    assert len(out.splitlines()) <= 7
    assert 8 * file.stat().st_size / 8256 <= 4

    code, out, _ = run("inspect", file)
    assert code == 0
    assert "a.bias" in out
    assert "zeroth-order entropy" in out
    assert run("verify", file)[:2] == (0, f"{file}: whole, 2 tensors decoded\n")

    assert run("decompress", file, "-o", dense)[0] == 0
    state = opq.load_state_dict(file)
    written = load_file(dense)
    assert list(written) == list(state)
    assert all(torch.equal(written[n], t) for n, t in state.items())


def test_a_trellis_by_its_flag(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    files = [tmp_path / "grid.opq.safetensors", tmp_path / "trellis.opq.safetensors"]
    for file, flags in zip(files, (["--no-trellis"], ["--trellis"]), strict=True):
        assert run("compress", checkpoint, "--bits", 4, "-o", file, *flags)[0] == 0
        assert run("verify", file)[0] == 0
    dense = load_file(checkpoint)
    errors = [sum(float((opq.load_state_dict(f)[n] - w).square().sum()) for n, w in dense.items()) for f in files]
    assert errors[1] < 0.9 * errors[0]


def test_json_for_scripts(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.opq.safetensors"
    code, out, err = run("compress", checkpoint, "--ratio", 8, "-o", file, "--json")
    figures = json.loads(out)
    assert (code, err) == (0, "")
    assert (figures["file"], figures["file_bytes"]) == (str(file), file.stat().st_size)
    assert 8 <= figures["ratio"] <= 8.05
    inspected = json.loads(run("inspect", file, "--json")[1])
    assert inspected["file_bytes"] == figures["file_bytes"]
    assert [t["name"] for t in inspected["tensors"]] == list(load_file(checkpoint))
    assert json.loads(run("verify", file, "--json")[1]) == {"file": str(file), "tensors": 2, "whole": True}
    dense = json.loads(run("decompress", file, "-o", tmp_path / "d", "--json")[1])
    assert dense["bytes"] == (tmp_path / "d").stat().st_size


def test_dry_run_writes_nothing(run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, out, _ = run("compress", checkpoint, "--bits", 4, "--dry-run")
    assert code == 0
    assert "predicted:" in out
    assert "\nBy the weights alone: " in out
    plan = opq.Plan.from_json(run("compress", checkpoint, "--bits", 4, "--dry-run", "--json")[1])
    assert plan == opq.solve(checkpoint, bits=4, trellis=True)
    assert sorted(tmp_path.iterdir()) == before


def test_default_output_name(run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("compress", checkpoint, "--bits", 4)[0] == 0
    assert (tmp_path / "net.opq.safetensors").exists()
    assert run("decompress", "net.opq.safetensors")[0] == 0
    assert (tmp_path / "net.dense.safetensors").exists()


def test_overrides(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "f"
    code, _, _ = run("compress", checkpoint, "--bits", 8, "--override", "a.w*:bits=5", "--keep", "*.bias", "-o", file)
    assert code == 0
    with opq.Reader(file) as reader:
        assert reader.plan["a.weight"].rate == pytest.approx(5)
        assert reader.plan["a.bias"].reason == "override '*.bias'"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--bits", 3, "--size", 100], "BudgetError: the budget is not one option: got --bits 3.0, --size 100"),
        ([], "BudgetError: the budget is not one option: got none of them"),
        (["--bits", 3, "--keep", "zzz"], "PatternError: overrides: pattern 'zzz' matches no tensor"),
        (["--bits", 3, "--override", "a.weight"], "--override is not understood: got 'a.weight'"),
        (["--bits", 3, "--input-size", "3,x"], "--input-size is not a shape: got '3,x'"),
        (["--bits", 3, "--input-size", "y=3 x=3,a"], "--input-size is not a shape: got '3,a'"),
        (["--size", "2XB"], "BudgetError: --size is not a size: got '2XB'"),
        (["--bits", 3, "--trellis", "--method", "opq"], "--method opq does not take --trellis: wanted --method rd"),
        (["--bits", 3, "--sparsity", 0.5], "--sparsity goes with --method opq: got --method rd"),
        (["--size", 10], "InfeasibleError: no file of net.safetensors is that small"),
        (["--bits", 3, "-o", "/nowhere/f"], "WriteError: cannot write /nowhere/f: got no folder /nowhere"),
    ],
)
def test_one_clear_error(run: Run, checkpoint: Path, tmp_path: Path, args: list[object], text: str) -> None:
    default = [] if "-o" in args else ["-o", tmp_path / "f"]
    code, out, err = run("compress", checkpoint, *args, *default)
    assert (code, out) == (1, "")
    assert text in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.safetensors"]


def test_wrong_files(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for command in ("inspect", "verify", "decompress"):
        code, _, err = run(command, checkpoint)
        assert code == 1
        assert "ForeignFileError" in err
        assert run(command, tmp_path / "empty")[0] == 1
        code, _, err = run(command, tmp_path / "absent")
        assert code == 1
        assert "absent" in err


@pytest.mark.parametrize("size", ["4kB", "0.004MB", "4000"])
def test_sizes_with_units(run: Run, checkpoint: Path, tmp_path: Path, size: str) -> None:
    file = tmp_path / "net.opq.safetensors"
    assert run("compress", checkpoint, "--size", size, "-o", file)[0] == 0
    assert file.read_bytes() == b"".join(opq.compress(checkpoint, size=4000).packed.parts)


def test_the_version(run: Run) -> None:
    assert run("--version") == (0, f"opq {opq.__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("opq com", {"compress"}),
        ("opq compress --siz", {"--size"}),
        ("opq compress dem", {"demo:digits"}),
        ("opq compress net", {"net.safetensors"}),
        ("opq compress x --method ", set(METHODS)),
        ("opq export f --to h", {"hf", "hub"}),
    ],
)
def test_the_shell_completes(checkpoint: Path, words: str, offered: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_OPQ_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    code = "import sys; sys.argv = ['opq']; from opq.cli import main; main(); assert 'torch' not in sys.modules"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=checkpoint.parent, check=False
    )
    assert set(shown.stdout.split()) == offered


def test_help_and_version_import_no_torch() -> None:
    for args in (["--help"], ["--version"], ["compress", "--help"]):
        run = "try: opq.cli.main()\nfinally: assert 'torch' not in sys.modules"
        code = f"import sys, opq.cli; sys.argv = ['opq', *{args}]\n{run}"
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_wrong_usage_is_exit_code_2(run: Run) -> None:
    assert run("compress")[0] == 2
    assert run("compress", "x", "--bits", "many")[0] == 2


def test_the_demo_runs_offline(run: Run) -> None:
    figures = json.loads(run("demo", "--json")[1])
    assert figures["ratio"] > 8
    assert figures["accuracy_before"] > 0.95
    assert figures["accuracy_after"] > figures["accuracy_before"] - 0.01
    assert "accuracy" in run("demo")[1]


def test_the_demo_replaces_no_file_unasked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("precious")
    code, _, err = run("demo", "-o", tmp_path / "kept")
    assert (code, (tmp_path / "kept").read_text()) == (1, "precious")
    assert "--force" in err
    assert run("demo", "-o", tmp_path / "kept", "--force")[0] == 0
    assert opq.load_state_dict(tmp_path / "kept")


def test_native_compiles_the_kernel_or_says_what_is_missing(
    run: Run, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("native")
    assert (code, err) == (0, "")
    assert out.startswith(f"{kernel}: ")
    assert json.loads(run("native", "--json")[1])["path"] == str(kernel)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ninja", None)
    code, out, err = run("native")
    assert (code, out) == (1, "")
    assert 'pip install "opq[native]"' in err


def test_python_dash_m() -> None:
    call = [sys.executable, "-m", "opq", "--help"]
    narrow = {**os.environ, "COLUMNS": "80"}
    shown = subprocess.run(call, env=narrow, capture_output=True, text=True, check=True).stdout
    assert "compress" in shown
    assert "..." not in shown.split("Commands:")[1]  # no command's sentence is cut


def stored_in(result: opq.Result) -> list[Stored]:
    """What a result holds, to be packed again."""
    return [
        Grid(t.name, result.codes[t.name].numpy()) if t.action == "compress" else Raw(t.name, result.tensor(t.name))
        for t in result.plan
    ]


def test_names_of_strangers_do_not_reach_the_terminal_raw(run: Run, tmp_path: Path) -> None:
    """Neither rich's markup nor a terminal's escapes in what a file says of itself."""
    file = tmp_path / "m.opq.safetensors"
    weights = {"[/x][bold]w\x1b[2J": torch.randn(64, 64), "b\nc": torch.ones(3)}
    result = opq.compress(weights, bits=6, trellis=False)
    Packed(pack(result.plan.replace(method="[/rd]\x1b"), stored_in(result)).parts, {}, {}).write(file)
    code, out, _ = run("inspect", file)
    assert code == 0
    assert "[/x][bold]w\\x1b[2J" in out
    assert "b\\nc" in out
    assert "method [/rd]\\x1b" in out
    file.write_bytes(file.read_bytes().replace(b'"opq":{', b'"[/o]":{', 1))
    code, _, err = run("verify", file)
    assert code == 1
    assert "\x1b" not in out + err


def test_an_error_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OptionError("two\nlines and \x1b[31m colour", got="[/markup] \ud800", remedy="Do not.")

    monkeypatch.setattr("opq.report.inspection.examine", fails)
    code, _, err = run("inspect", "x")
    assert (code, err) == (1, "error OptionError: two lines and \\x1b[31m colour: got [/markup] \\ud800. Do not.\n")


def test_updates_bases_and_older_files(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    new, update, again = (tmp_path / f"{name}.safetensors" for name in ("new", "update", "again"))
    state = load_file(checkpoint)
    save_file({**state, "a.weight": state["a.weight"] + 0.001}, new)
    code, out, err = run("delta", checkpoint, new, "-o", update)
    assert (code, err) == (0, "")
    assert f"{update.stat().st_size:,} bytes in place of {new.stat().st_size:,}" in out
    figures = json.loads(run("delta", checkpoint, new, "-o", update, "--force", "--json")[1])
    assert (figures["bytes"], figures["new_bytes"]) == (update.stat().st_size, new.stat().st_size)
    assert run("apply", checkpoint, update, "-o", again)[:2] == (
        0,
        f"{again}: {new.stat().st_size:,} bytes, checked by SHA-256\n",
    )
    assert again.read_bytes() == new.read_bytes()
    for call in (("delta", checkpoint, new, "-o", update), ("apply", checkpoint, update, "-o", again)):
        code, out, err = run(*call)
        assert (code, out) == (1, "")
        assert "is there already" in err
    code, _, err = run("apply", new, update, "-o", tmp_path / "never")
    assert code == 1
    assert "WrongBaseError" in err
    assert not (tmp_path / "never").exists()

    based, dense, first, second = (
        tmp_path / f"{name}.opq.safetensors" for name in ("based", "dense", "first", "second")
    )
    assert run("compress", new, "--base", checkpoint, "--bits", 2, "-o", based)[0] == 0
    assert run("verify", based)[0] == 0
    assert run("inspect", based)[0] == 0
    code, _, err = run("decompress", based, "-o", dense)
    assert code == 1
    assert "Pass the network that it was compressed against with --base" in err
    assert run("decompress", based, "--base", checkpoint, "-o", dense)[0] == 0
    assert (load_file(dense)["a.weight"] - load_file(new)["a.weight"]).abs().max() < 0.001

    assert run("compress", checkpoint, "--bits", 4, "-o", first)[0] == 0
    assert run("compress", checkpoint, "--like", first, "-o", second)[0] == 0
    assert first.read_bytes() == second.read_bytes()


# --- what is there already ----------------------------------------------------------------------------


def test_an_output_that_is_there_wants_force(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    file, html = tmp_path / "net.opq.safetensors", tmp_path / "net.html"
    pytest.importorskip("jinja2")
    assert run("compress", checkpoint, "--bits", 4, "-o", file)[0] == 0
    html.write_text("mine")
    for call in (
        ("compress", checkpoint, "--bits", 5, "-o", file),
        ("decompress", file, "-o", html),
        ("report", file, "-o", html),
        ("export", file, "--to", "safetensors", "-o", html),
    ):
        before = file.read_bytes()
        code, out, err = run(*call)
        assert (code, out) == (1, "")
        assert "is there already: got a file, wanted nothing. Pass --force" in err
        assert (file.read_bytes(), html.read_text()) == (before, "mine")
    assert run("compress", checkpoint, "--bits", 5, "-o", file, "--force")[0] == 0
    assert file.read_bytes() != before
    assert run("report", file, "-o", html, "--force")[0] == 0


def test_a_file_that_comes_while_the_work_runs_is_not_replaced(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, compress = tmp_path / "net.opq.safetensors", opq.compress

    def slow(*args: Any, **options: Any) -> opq.Result:
        file.write_text("someone else's")
        return compress(*args, **options)

    monkeypatch.setattr(opq, "compress", slow)
    code, out, _ = run("compress", checkpoint, "--bits", 4, "-o", file)
    beside = tmp_path / "net-2.opq.safetensors"
    assert (code, file.read_text()) == (0, "someone else's")
    assert str(beside) in out
    assert opq.load_state_dict(beside)
    file.unlink()
    assert run("compress", checkpoint, "--bits", 4, "-o", file, "--force")[0] == 0
    assert file.read_bytes() == beside.read_bytes()
    monkeypatch.setattr(compressing, "may_replace", lambda path, force: None)  # the user agrees
    assert run("compress", checkpoint, "--bits", 4, "-o", file)[0] == 0
    assert file.read_bytes() == beside.read_bytes()
    assert sorted(tmp_path.glob("*.opq.*")) == [beside, file]


def test_a_link_to_nothing_takes_its_place_as_a_file_does(tmp_path: Path) -> None:
    file = tmp_path / "net.opq.safetensors"
    assert unused(file) == file
    file.symlink_to(tmp_path / "nowhere")
    (tmp_path / "net-2.opq.safetensors").write_text("mine")
    assert unused(file) == tmp_path / "net-3.opq.safetensors"


def test_a_file_of_the_source_is_no_output_and_no_work_is_done_first(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards").mkdir()
    shard = checkpoint.rename(tmp_path / "shards" / "net.safetensors")
    before = shard.read_bytes()
    monkeypatch.setattr(opq, "compress", None)
    code, _, err = run("compress", tmp_path / "shards", "--bits", 4, "-o", shard, "--force")
    assert code == 1
    assert "OptionError: the output is the input" in err
    assert shard.read_bytes() == before


def test_a_folder_as_the_output_of_one_file_gets_the_file(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code, out, _ = run("compress", checkpoint, "--bits", 4, "-o", tmp_path / "out")
    assert code == 0
    (made,) = (tmp_path / "out").iterdir()
    assert made.name == f"{checkpoint.stem}.opq.safetensors"
    assert str(made) in out


# --- tables -------------------------------------------------------------------------------------------


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Long names, kept vectors, and counters that take no bytes."""
    g = torch.Generator().manual_seed(0)
    tensors = {f"encoder.layer.{k}.attention.output.dense.weight": torch.randn(64, 96, generator=g) for k in range(3)}
    tensors |= {f"encoder.layer.{k}.norm.bias": torch.randn(96, generator=g) for k in range(3)}
    tensors |= {f"encoder.layer.{k}.norm.num_batches_tracked": torch.tensor(k) for k in range(3)}
    save_file(tensors, tmp_path / "long.safetensors")
    return tmp_path / "long.safetensors"


def test_piped_tables_are_one_whole_line_a_tensor(run: Run, network: Path, tmp_path: Path) -> None:
    out = run("compress", network, "--bits", 4, "-o", tmp_path / "f", "--verbose")[1]
    for name in load_file(network):
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert ("compress" in line) != (" keep " in line)
    listed = run("inspect", tmp_path / "f")[1].splitlines()
    assert len([line for line in listed if line.startswith("encoder.")]) == 9


@pytest.mark.parametrize("width", [80, 100, 120])
def test_on_a_terminal_no_word_breaks_and_the_reason_stays(network: Path, width: int) -> None:
    result = opq.compress(network, bits=4)
    lines = list(result.report().lines(width))
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if line.startswith("tensor "))
    assert head.endswith("why")
    words = {word for t in result.plan for word in t.reason.split()}
    start = head.index("why")
    said = [line[start:].split() for line in lines[lines.index(head) + 1 :] if len(line) > start]
    assert all(word in words for told in said[:-2] for word in told)


@given(st.text(st.sampled_from("ab/ \n"), max_size=60), st.integers(8, 30), st.sampled_from([0, 6, 8]))
def test_on_a_terminal_lines_break_between_words_only(text: str, width: int, begun: int) -> None:
    terminal = Console(force_terminal=True, width=width)
    shown = printing.wrapped(text, terminal, begun=begun)
    assert shown.split() == text.split()
    first, *others = shown.split("\n")
    assert len(first) <= width - begun or " " not in first.strip()
    assert all(len(line) <= width or " " not in line.strip() for line in others)
    assert printing.wrapped(text, Console(force_terminal=False, width=width), begun=begun) == text


def test_a_dry_run_shows_what_kept_tensors_take(run: Run, network: Path) -> None:
    out = run("compress", network, "--bits", 4, "--dry-run")[1]
    rows = [line.split() for line in out.splitlines() if line.startswith("encoder.layer.0.norm.bias")]
    assert rows
    assert " 0 " not in " ".join(rows[0])


def test_a_dry_run_takes_what_the_call_takes(run: Run, checkpoint: Path) -> None:
    code, out, err = run("compress", checkpoint, "--bits", 4, "--code-bits", 8, "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert {t.codebook for t in opq.Plan.from_json(out).compressed} == {"grid"}


def test_a_budget_beyond_need_is_predicted_as_the_file_comes_out(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    plan = opq.Plan.from_json(run("compress", checkpoint, "--bits", 31, "--dry-run", "--json")[1])
    size = json.loads(run("compress", checkpoint, "--bits", 31, "-o", tmp_path / "f", "--json")[1])["file_bytes"]
    assert plan.predicted_bytes == pytest.approx(size, rel=0.03)


def test_what_a_file_rests_on_is_said_by_inspect(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    assert run("compress", checkpoint, "--bits", 4, "-o", tmp_path / "bare")[0] == 0
    assert "by the weights alone" in run("inspect", tmp_path / "bare")[1]
    assert run("compress", "demo:digits", "--bits", 3, "-o", tmp_path / "probed")[0] == 0
    said = "a probe of the model on synthetic inputs: sensitivities, error feedback, re-normalised BatchNorm"
    assert f"by {said}" in run("inspect", tmp_path / "probed")[1]
    assert json.loads(run("inspect", tmp_path / "probed", "--json")[1])["basis"] == said


def test_a_bare_name_is_answered_with_where_models_have_names(run: Run) -> None:
    code, _, err = run("compress", "resnet18", "--bits", 3)
    assert code == 1
    assert "torchvision:resnet18, timm:resnet18 or hf:resnet18" in err
