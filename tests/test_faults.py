"""Every command under every fault ends in one line: no traceback, nothing written, nothing that blocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paths import ROOT
from safetensors.torch import save_file

import opq
from opq import cli

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, pipes and signals of POSIX")

Fault = Callable[[Path], str]


def _file(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def _loop(folder: Path) -> str:
    (folder / "loop").symlink_to("loop")
    return str(folder / "loop")


def _folder(folder: Path, name: str, files: dict[str, bytes]) -> str:
    (folder / name).mkdir()
    for file, content in files.items():
        (folder / name / file).write_bytes(content)
    return str(folder / name)


def _piped_index(folder: Path) -> str:
    (folder / "piped").mkdir()
    os.mkfifo(folder / "piped" / "model.opq.safetensors.index.json")
    return str(folder / "piped")


def _device_index(folder: Path) -> str:
    (folder / "device").mkdir()
    (folder / "device" / "model.opq.safetensors.index.json").symlink_to("/dev/zero")
    return str(folder / "device")


DEEP = b"[" * 100_000
FAULTS: dict[str, Fault] = {
    "nothing there": lambda f: str(f / "absent"),
    "an empty name": lambda f: "",
    "a name too long": lambda f: "x" * 5000,
    "a name that is no text": lambda f: "a\udcffb",
    "a loop of links": _loop,
    "a file as a folder": lambda f: _file(f, "plain", b"x") + "/inner",
    "a device": lambda f: "/dev/zero",
    "a pipe": _pipe,
    "a pipe as an index": _piped_index,
    "a device as an index": _device_index,
    "an empty file": lambda f: _file(f, "empty.safetensors", b""),
    "noise": lambda f: _file(f, "noise.safetensors", bytes(range(256)) * 8),
    "a header of 2^63 bytes": lambda f: _file(f, "long.safetensors", b"\xff" * 8 + b"{}"),
    "a header nested deeply": lambda f: _file(f, "deep.safetensors", len(DEEP).to_bytes(8, "little") + DEEP),
    "a pickle": lambda f: _file(f, "m.pt", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    "an empty folder": lambda f: _folder(f, "void", {}),
    "an index nested deeply": lambda f: _folder(f, "deep", {"model.safetensors.index.json": DEEP}),
    "an index of no names": lambda f: _folder(
        f, "names", {"model.safetensors.index.json": json.dumps({"weight_map": {"w": "y" * 5000}}).encode()}
    ),
    "a shard of 10^15": lambda f: _folder(f, "many", {"m-1-of-999999999999999.safetensors": b""}),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "good.opq.safetensors"
    opq.compress({"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}, bits=4).save(path)
    return path


COMMANDS: dict[str, Callable[[str, Path, Path], list[str]]] = {
    "compress": lambda bad, good, out: ["compress", bad, "--bits", "4", "-o", str(out)],
    "compress to a folder": lambda bad, good, out: ["compress", bad, "--bits", "4", "-o", str(out / "f")],
    "dry run": lambda bad, good, out: ["compress", bad, "--bits", "4", "--dry-run"],
    "dequantize": lambda bad, good, out: ["compress", bad, "--bits", "4", "--dequantize", "-o", str(out)],
    "hf": lambda bad, good, out: ["compress", f"hf:{bad}", "--bits", "4", "-o", str(out)],
    "inspect": lambda bad, good, out: ["inspect", bad],
    "verify": lambda bad, good, out: ["verify", bad],
    "decompress": lambda bad, good, out: ["decompress", bad, "-o", str(out)],
    "report": lambda bad, good, out: ["report", bad, "-o", str(out)],
    "report by source": lambda bad, good, out: ["report", str(good), "--source", bad, "-o", str(out)],
    "export": lambda bad, good, out: ["export", bad, "--to", "safetensors", "-o", str(out)],
    "export like": lambda bad, good, out: ["export", str(good), "--to", "hf", "--model", bad, "-o", str(out)],
    "evaluate": lambda bad, good, out: ["evaluate", bad, "--model", "demo:digits", "--data", "demo:digits"],
    "evaluate by": lambda bad, good, out: ["evaluate", str(good), "--model", bad, "--data", "demo:digits"],
    "evaluate on": lambda bad, good, out: ["evaluate", str(good), "--model", "demo:digits", "--data", bad],
}


SECONDS = 60
"""After so many a command counts as blocked."""


def _blocked(number: int, frame: object) -> None:
    raise AssertionError("the command blocks")


def fails_in_one_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must fail; its one line."""
    monkeypatch.setattr(sys, "argv", ["opq", *arguments])
    monkeypatch.setenv("COLUMNS", "300")
    before = signal.signal(signal.SIGALRM, _blocked)
    signal.alarm(SECONDS)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    out, err = capfd.readouterr()
    assert stop.value.code == 1, (arguments, out, err)
    lines = [line for line in err.splitlines() if not line.startswith("warning ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("error "), err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_command_under_every_fault_of_its_input_ends_in_one_line(
    command: str,
    fault: str,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad").mkdir()
    out = tmp_path / "out"
    bad = FAULTS[fault](tmp_path / "bad")
    fails_in_one_line(COMMANDS[command](bad, file, out), monkeypatch, capfd)
    assert not out.exists()
    assert not list(tmp_path.rglob("*.part"))


OUTPUTS: dict[str, Callable[[Path, Path, Path], Path]] = {
    "the input": lambda folder, source, file: source,
    "a hard link to the input": lambda folder, source, file: _linked(folder / "hard", source),
    "a link": lambda folder, source, file: _soft(folder / "soft", file),
    "a dangling link": lambda folder, source, file: _soft(folder / "dangling", folder / "nowhere"),
    "a pipe": lambda folder, source, file: Path(_pipe(folder)),
    "a device": lambda folder, source, file: Path("/dev/null"),
    "no folder": lambda folder, source, file: folder / "absent" / "f",
    "a name too long": lambda folder, source, file: folder / ("x" * 300),
    "below a file": lambda folder, source, file: file / "f",
}


def _linked(path: Path, to: Path) -> Path:
    path.hardlink_to(to)
    return path


def _soft(path: Path, to: Path) -> Path:
    path.symlink_to(to)
    return path


WRITERS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "compress": lambda source, file, out: ["compress", str(source), "--bits", "4", "-o", str(out)],
    "decompress": lambda source, file, out: ["decompress", str(file), "-o", str(out)],
    "report": lambda source, file, out: ["report", str(file), "-o", str(out)],
    "export": lambda source, file, out: ["export", str(file), "--to", "safetensors", "-o", str(out)],
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_command_that_writes_refuses_every_output_that_it_must_not_replace(
    writer: str,
    output: str,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "m.safetensors"
    save_file({"w": torch.randn(64, 64)}, source)
    given = source if writer == "compress" else file
    held = {path: path.read_bytes() for path in (source, file)}
    out = OUTPUTS[output](tmp_path, given, file)
    was = os.lstat(out) if os.path.lexists(out) and output != "a name too long" else None
    line = fails_in_one_line(WRITERS[writer](source, file, out), monkeypatch, capfd)
    assert "OptionError: the output is the input" in line or "WriteError: cannot write" in line
    assert {path: path.read_bytes() for path in held} == held
    if was is not None:
        assert os.lstat(out).st_ino == was.st_ino


def test_the_calls_refuse_what_the_commands_refuse(file: Path, tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    save_file({"w": torch.randn(64, 64)}, source)
    result = opq.compress(source, bits=4)
    for write in (result.save, result.to_html):
        with pytest.raises(opq.errors.OptionError, match="the output is the input"):
            write(source)
    with pytest.raises(opq.errors.OptionError, match="the output is the input"):
        opq.compress_folder(source, tmp_path, bits=4)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "evaluate on"])
def test_a_path_that_the_user_may_not_look_at_is_one_line(
    command: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The system's refusal is played, since tests may run as a user who is refused nothing."""
    for name in ("stat", "lstat", "open", "scandir", "listdir"):
        real = getattr(os, name)

        def refused(path: object, *args: object, real: Callable[..., object] = real, **more: object) -> object:
            if "closed" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **more)

        monkeypatch.setattr(os, name, refused)
    bad = str(tmp_path / "closed" / "m.safetensors")
    line = fails_in_one_line(COMMANDS[command](bad, file, tmp_path / "out"), monkeypatch, capfd)
    assert "Permission denied" in line


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "300"}


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "term")]
)
def test_a_signal_ends_in_one_line_and_leaves_nothing_behind(number: int, code: int, word: str, tmp_path: Path) -> None:
    save_file({"w": torch.randn(512, 512)}, tmp_path / "m.safetensors")
    (tmp_path / "out").write_bytes(b"old")
    slow = (
        "import signal, sys, time, opq.cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit another\n"
        "sys.argv = ['opq', 'compress', 'm.safetensors', '--bits', '4', '-o', 'out', '--force']\n"
        "from opq.base import atomic\n"
        "def fsync(handle):\n    print('writing', flush=True); time.sleep(60)\n"
        "atomic.os.fsync = fsync\n"
        "opq.cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=tmp_path, env=_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert [p for p in tmp_path.iterdir() if p.name.endswith(".part")]
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=50)
    assert process.returncode == code, err
    assert len(err.splitlines()) == 1
    assert err.startswith(word)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "out"]
    assert (tmp_path / "out").read_bytes() == b"old"
