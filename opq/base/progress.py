"""How long work tells what it does."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the steps done and the steps in all."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback of those who want none."""
