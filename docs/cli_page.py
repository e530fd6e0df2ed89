"""Writes `cli.md`, the reference of the command line, from the commands themselves."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from opq.cli import app

HEAD = """# Command line

`opq COMMAND --help` shows the same in a terminal. Exit codes: 0 done; 1 the input or the file is wrong, and one line on
standard error says what and what to do; 2 wrong usage; 130 interrupted. `--json` prints one JSON object on standard
output and nothing else. Sizes are bytes or have a unit: `500kB`, `2MB`, `1.5MiB`.

`opq --version` prints the version. `opq --install-completion` makes the shell complete commands, options, methods and
sources; `opq --show-completion` prints what it would install.
"""


KINDS = {float: "NUMBER", int: "INTEGER", str: "TEXT", Path: "PATH"}
"""What the values of options are, by their types."""


def write(page: Path) -> None:
    """The page, written only where it changes."""
    group: Any = get_command(app)
    text = "\n".join([HEAD, *(section(name, command) for name, command in group.commands.items())])
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def section(name: str, command: Any) -> str:
    """One command: what it does, how it is called, and its arguments and options in a table."""
    arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["opq", name, *arguments, "[OPTIONS]"])
    types = next(
        get_type_hints(c.callback) for c in app.registered_commands if c.callback and c.callback.__name__ == name
    )
    rows = [f"| {spelt(p, types[p.name])} | {default(p)} | {cell(p.help)} |" for p in command.params]
    table = ["| argument or option | default | what it is |", "|---|---|---|", *rows]
    said = " ".join(inspect.cleandoc(command.help or "").split())
    return "\n".join([f"## opq {name}", "", said, "", "```console", f"$ {usage}", "```", "", *table, ""])


def spelt(parameter: Any, kind: Any) -> str:
    """`-o`, `--output` PATH, or the name of an argument."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return names if parameter.is_flag else f"{names} {next(word for k, word in KINDS.items() if k in every(kind))}"


def every(kind: Any) -> set[Any]:
    """A type and all that it is made of."""
    return {kind}.union(*map(every, get_args(kind)))


def default(parameter: Any) -> str:
    """What holds where the option is left out."""
    if parameter.required:
        return "needed"
    if parameter.default is None or parameter.default is False or parameter.default == []:
        return ""
    return f"`{str(parameter.default).lower() if parameter.default is True else parameter.default}`"


def cell(text: str | None) -> str:
    """Text that stands in a table."""
    return (text or "").replace("|", "/")
