"""What a terminal is given: words, and no colours of rich's own choosing."""

from __future__ import annotations

import runpy

import pytest

from opq.cli import printing


def test_digits_inside_of_names_and_shapes_are_not_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    fresh = runpy.run_path(str(printing.__file__))  # a console asks for its terminal once
    for console in (fresh["out"], fresh["err"]):
        assert console.is_terminal
        with console.capture() as shown:
            console.print("10.weight  10x128  F32  8.00x")
        assert shown.get() == "10.weight  10x128  F32  8.00x\n"
