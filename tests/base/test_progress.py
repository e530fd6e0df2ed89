"""What `progress=` stands for: a callback, a bar, or nothing."""

from __future__ import annotations

import io
import sys
import types
from contextlib import redirect_stderr
from typing import Any

import pytest

import opq
from opq.base import progress
from opq.base.progress import PATIENCE, shown
from opq.errors import OptionError


class Terminal(io.StringIO):
    """Standard error that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("RANK", raising=False)
    return Terminal()


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the output of a notebook's cell shows, drawing by drawing."""
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data["text/plain"])

    python: Any = types.ModuleType("IPython")
    python.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display: Any = types.ModuleType("IPython.display")
    display.display = lambda data, raw, display_id: Handle()
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def work(wanted: Any, screen: Terminal | None = None, steps: int = 3, *, patience: float = PATIENCE) -> None:
    with redirect_stderr(screen or io.StringIO()), shown(wanted, patience=patience) as told:
        for k in range(steps):
            told("quantize", k + 1, steps)


def test_a_callback_is_called_as_it_is() -> None:
    seen: list[tuple[str, int, int]] = []
    work(lambda *step: seen.append(step))
    assert seen == [("quantize", 1, 3), ("quantize", 2, 3), ("quantize", 3, 3)]


def test_true_draws_a_bar_at_once_and_takes_it_away(terminal: Terminal) -> None:
    work(True, terminal)
    assert "quantize" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is erased


def test_by_default_a_bar_waits_for_two_seconds(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with redirect_stderr(terminal), shown(None) as told:
        told("statistics", 1, 2)
        assert terminal.getvalue() == ""
        now[0] = 1.9
        told("statistics", 2, 2)
        assert terminal.getvalue() == ""
        now[0] = 2.1
        told("quantize", 1, 2)
    assert "quantize" in terminal.getvalue()
    assert "statistics" not in terminal.getvalue()


@pytest.mark.parametrize("wanted", [None, False])
def test_nothing_is_drawn_where_nobody_looks(wanted: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with shown(wanted) as told:
        assert told is progress.silent
    opq.compress("demo:digits", bits=3, probe=False, progress=wanted)
    assert capfd.readouterr() == ("", "")


def test_false_is_silent_on_a_terminal_too(terminal: Terminal) -> None:
    work(False, terminal)
    assert terminal.getvalue() == ""


def test_of_several_processes_the_first_draws(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    work(None, terminal, patience=0.0)
    assert terminal.getvalue() == ""
    monkeypatch.setenv("RANK", "0")
    work(None, terminal, patience=0.0)
    assert "quantize" in terminal.getvalue()


def test_a_stage_of_unknown_length_is_drawn_without_an_end(terminal: Terminal) -> None:
    with redirect_stderr(terminal), shown(True) as told:
        told("finetune", 5, 0)
    assert "5/?" in terminal.getvalue()


def test_what_the_user_prints_stays_on_standard_output(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    with redirect_stderr(terminal), shown(True) as told:
        told("finetune", 1, 2)
        print("my own line")
    assert capsys.readouterr().out == "my own line\n"
    assert "my own line" not in terminal.getvalue()


def test_a_notebook_has_a_bar_without_widgets(notebook: list[str]) -> None:
    work(True)
    assert "quantize" in notebook[0]
    assert notebook[-1] == ""


def test_a_notebook_is_seen_by_its_kernel(notebook: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress.in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert not progress.in_notebook()


def test_an_error_takes_the_bar_away(terminal: Terminal) -> None:
    def fails() -> None:
        with redirect_stderr(terminal), shown(True) as told:
            told("quantize", 1, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert terminal.getvalue().endswith("\x1b[2K")


@pytest.mark.parametrize("wanted", ["yes", 3])
def test_what_is_no_progress_is_said(wanted: Any) -> None:
    with pytest.raises(OptionError, match=r"progress=: got .*, wanted a function of"):
        opq.solve({}, bits=3, progress=wanted)
