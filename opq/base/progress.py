"""Progress of long work: a callback, or a bar on a terminal or in a notebook."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opq.errors import OptionError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the number of steps done and the number of steps in all."""

Wanted = Progress | bool | None
"""What the calls take as `progress=`: a callback; True for a bar, False for none; None for a bar where it helps."""

PATIENCE = 2.0
"""Seconds after which a bar appears by itself. A choice: shorter calls need none."""
REFRESH = 0.1
"""Seconds between two drawings in a notebook. A choice: smooth to the eye; each drawing is a message to the browser."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that does nothing."""


@contextmanager
def shown(wanted: Wanted, *, patience: float = PATIENCE) -> Iterator[Progress]:
    """The callback that a call's `progress=` stands for; a bar, if there is one, is removed at the end.

    None stands for a bar that appears after a while, if standard error is a terminal or the code runs in a notebook,
    and only in the first of several processes.

    Args:
        patience: seconds after which that bar appears.

    Raises:
        OptionError: `progress=` is neither callable nor True, False or None.
    """
    if not (wanted is None or isinstance(wanted, bool) or callable(wanted)):
        raise OptionError(
            "progress=", got=repr(wanted), wanted="a function of (stage, done, total), True, False or None"
        )
    if callable(wanted):
        yield wanted
    elif wanted is False or (wanted is None and not _watched()):
        yield silent
    else:
        drawn = _Drawn(after=patience if wanted is None else 0.0)
        try:
            yield drawn
        finally:
            drawn.close()


def _watched() -> bool:
    """Whether a bar would be seen: in a notebook or on a terminal, and in the first process of several."""
    first = os.environ.get("RANK", "0") == "0"
    return first and (in_notebook() or (sys.stderr is not None and sys.stderr.isatty()))


def in_notebook() -> bool:
    """Whether this code runs in the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class _Drawn:
    """A callback that draws one line for each stage, from `after` seconds on."""

    def __init__(self, after: float):
        self.due = time.monotonic() + after
        self.bar: Bar | None = None
        self.page: _Page | None = None
        self.lines: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.bar is None and time.monotonic() < self.due:
            return
        if self.bar is None:
            self.page = _Page() if in_notebook() else None
            self.bar = _bar(self.page)
        if stage not in self.lines:
            self.lines[stage] = self.bar.add_task(stage, total=total or None)
        self.bar.update(self.lines[stage], completed=done, total=total or None)
        if self.page is not None:
            self.page.draw(self.bar)

    def close(self) -> None:
        """Removes the bar."""
        if self.page is not None:
            self.page.clear()
        elif self.bar is not None:
            self.bar.stop()


def _bar(page: _Page | None) -> Bar:
    """A bar by rich: live on standard error, or not live, to be drawn by a page."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:>12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, force_jupyter=False) if page is None else page.console
    bar = Bar(*columns, console=console, transient=True, redirect_stdout=False, auto_refresh=page is None)
    if page is None:
        bar.start()
    return bar


class _Page:
    """The output of a notebook's cell, replaced at every drawing; needs no widgets."""

    def __init__(self) -> None:
        from IPython.display import display
        from rich.console import Console

        self.text = io.StringIO()
        self.console = Console(file=self.text, force_jupyter=False, force_terminal=False, width=80)
        begin: Any = display
        self.handle: Any = begin({"text/plain": ""}, raw=True, display_id=True)
        self.next = 0.0

    def draw(self, bar: Bar) -> None:
        """Shows the bar as it is now, unless the last drawing is less than `REFRESH` seconds ago."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + REFRESH
        self.text.seek(0)
        self.text.truncate()
        self.console.print(bar.get_renderable())
        self.handle.update({"text/plain": self.text.getvalue()}, raw=True)

    def clear(self) -> None:
        """Removes all that was drawn."""
        self.handle.update({"text/plain": ""}, raw=True)
