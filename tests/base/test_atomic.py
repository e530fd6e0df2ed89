"""There is either the old file or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opq.base.atomic import refuse_inputs, written_aside
from opq.errors import OptionError, WriteError


def test_new_file(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a") as file:
        file.write(b"new")
        assert not (tmp_path / "a").exists()
        file.flush()
        assert Path(file.name).read_bytes() == b"new"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_permissions_are_the_users_or_the_old_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "old").write_bytes(b"")
    os.chmod(tmp_path / "old", 0o640)
    for name in ("new", "old"):
        with written_aside(tmp_path / name) as file:
            file.write(b"x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error), written_aside(tmp_path / "a") as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=r"cannot write .*missing.*No such file"),
        written_aside(tmp_path / "missing" / "a"),
    ):
        raise AssertionError("the block must not run")


def test_disk_full(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(WriteError, match="No space left"), written_aside(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, got in (("link", "a link"), ("dangling", "a link"), ("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(WriteError, match=f"got {got}"), written_aside(tmp_path / name):
            raise AssertionError("the block must not run")
    with pytest.raises(WriteError, match="got a device"), written_aside(os.devnull):
        raise AssertionError("the block must not run")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 5


@pytest.mark.parametrize("path", ["", ".", "/", "a\0b", "a\ud800b", "a" * 300])
def test_what_is_no_path_is_one_error(path: str) -> None:
    with pytest.raises(WriteError, match="cannot write"), written_aside(path):
        raise AssertionError("the block must not run")


def test_the_temporary_file_has_no_more_eyes_than_the_file_that_it_replaces(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    os.chmod(tmp_path / "secret", 0o600)
    with written_aside(tmp_path / "secret") as file:
        assert os.stat(file.name).st_mode & 0o777 == 0o600


def test_an_output_that_is_an_input_is_refused_by_what_it_is_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")
    (tmp_path / "hard").hardlink_to(tmp_path / "in")
    (tmp_path / "soft").symlink_to("in")
    for output in ("in", "hard", "soft"):
        with pytest.raises(OptionError, match="the output is the input"):
            refuse_inputs(tmp_path / output, [tmp_path / "other", tmp_path / "in"])
    with pytest.raises(OptionError, match="the output is the input"):
        refuse_inputs(tmp_path / "." / "", [tmp_path])
    refuse_inputs(tmp_path / "new", [tmp_path / "in", tmp_path])
    (tmp_path / "old").write_bytes(b"")
    refuse_inputs(tmp_path / "old", [tmp_path / "in", tmp_path])
    refuse_inputs(tmp_path / "new", [tmp_path / "missing"])
