"""The library's messages in the words of the shell."""

from __future__ import annotations

import pytest

from opq.cli import app
from opq.cli.wording import FLAGS, IN_SHELL, in_shell


@pytest.mark.parametrize(
    ("said", "spelt"),
    [
        ("got bits=3.0, size=100", "got --bits 3.0, --size 100"),
        ("exactly one of bits=, ratio=, size=", "exactly one of --bits, --ratio, --size"),
        ("Pass calibration= or", "Pass --calibration or"),
        ("got bits=None, ratio=3", "got no --bits, --ratio 3"),
        ("Pass input_size=, or probe=False.", "Pass --input-size, or --no-probe."),
        ("method='opq' does not take trellis=: wanted", "--method opq does not take --trellis: wanted"),
        ("that is bits=2.5. Raise", "that is --bits 2.5. Raise"),
        ("Keep them with overrides={'a.b': 'keep'}, or scale them.", "Keep them with --keep 'a.b', or scale them."),
        ("nets/bits=3/a.pt and 'x:size=2' and --size=4", "nets/bits=3/a.pt and 'x:size=2' and --size=4"),
    ],
)  # fmt: skip
def test_messages_of_the_library_speak_the_shell_s_options(said: str, spelt: str) -> None:
    assert in_shell(said) == spelt


def test_every_option_that_a_message_may_name_is_there() -> None:
    from typer.main import get_command

    commands = get_command(app).commands.values()  # type: ignore[attr-defined]
    known = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)}
    assert {o.removeprefix("no ") for o in (*IN_SHELL.values(), *FLAGS.values())} <= known
