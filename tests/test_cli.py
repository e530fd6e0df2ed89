"""The command line as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import opq
from opq import cli
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


def test_compress_inspect_verify_decompress(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    file, dense = tmp_path / "net.opq.safetensors", tmp_path / "dense.safetensors"
    code, out, err = run("compress", checkpoint, "--bits", 4, "-o", file)
    assert (code, err) == (0, "")
    assert f"{file.stat().st_size:,} bytes" in out
    assert "a.weight" in out
    assert "Verified" in out
    assert "Weights alone" in out
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
    for file, flags in zip(files, ([], ["--trellis"]), strict=True):
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
    assert figures["file_bytes"] == file.stat().st_size
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
    plan = opq.Plan.from_json(run("compress", checkpoint, "--bits", 4, "--dry-run", "--json")[1])
    assert plan == opq.solve(checkpoint, bits=4)
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


@pytest.mark.parametrize(
    ("said", "spelt"),
    [
        ("got bits=3.0, size=100", "got --bits 3.0, --size 100"),
        ("exactly one of bits=, ratio=, size=", "exactly one of --bits, --ratio, --size"),
        ("got bits=None, ratio=3", "got no --bits, --ratio 3"),
        ("Pass input_size=, or probe=False.", "Pass --input-size, or --no-probe."),
        ("method='opq' does not take trellis=: wanted", "--method opq does not take --trellis: wanted"),
        ("that is bits=2.5. Raise", "that is --bits 2.5. Raise"),
        ("nets/bits=3/a.pt and 'x:size=2' and --size=4", "nets/bits=3/a.pt and 'x:size=2' and --size=4"),
    ],
)  # fmt: skip
def test_messages_of_the_library_speak_the_shell_s_options(said: str, spelt: str) -> None:
    assert cli.in_shell(said) == spelt


def test_every_option_that_a_message_may_name_is_there() -> None:
    from typer.main import get_command

    commands = get_command(cli.app).commands.values()  # type: ignore[attr-defined]
    known = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)}
    assert {o.removeprefix("no ") for o in (*cli.IN_SHELL.values(), *cli.FLAGS.values())} <= known


def test_shapes_of_several_arguments() -> None:
    assert cli._shapes("sample=4,8x8 timestep= ids=24") == {"sample": (4, 8, 8), "timestep": (), "ids": (24,)}
    assert cli._shapes("3,224,224") == (3, 224, 224)


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
        ("opq compress x --method ", set(cli.METHODS)),
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
    shown = subprocess.run([sys.executable, "-m", "opq", "--help"], capture_output=True, text=True, check=True)
    assert "compress" in shown.stdout


def stored_in(result: opq.Result) -> list[Stored]:
    """What a result holds, to be packed again."""
    return [
        Grid(t.name, result.codes[t.name].numpy()) if t.action == "compress" else Raw(t.name, result.tensor(t.name))
        for t in result.plan
    ]


def test_names_of_strangers_do_not_reach_the_terminal_raw(run: Run, tmp_path: Path) -> None:
    """Neither rich's markup nor a terminal's escapes in what a file says of itself."""
    file = tmp_path / "m.opq.safetensors"
    result = opq.compress({"[/x][bold]w\x1b[2J": torch.randn(64, 64), "b\nc": torch.ones(3)}, bits=6)
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
