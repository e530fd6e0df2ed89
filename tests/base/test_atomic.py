"""There is either the old file or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opq.base.atomic import written_aside
from opq.errors import WriteError


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
