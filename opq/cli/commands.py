"""The command `opq` itself, with all commands below it in the order in which `opq --help` lists them."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import opq
from opq.cli.compressing import compress
from opq.cli.exporting import decompress, export
from opq.cli.looking import inspect, report, verify
from opq.cli.measuring import demo, evaluate
from opq.cli.printing import err, say_plainly
from opq.cli.training import finetune, native
from opq.cli.updating import apply, delta


class Commands(TyperGroup):
    """The group of all commands; an interruption (Ctrl-C) becomes one line and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            err.print("interrupted; nothing was written half")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    help="Pre-trained networks as small files: one call, no data, no search.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _command in (compress, inspect, verify, decompress, delta, apply, report, export, evaluate, finetune, native, demo):
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        say_plainly(f"opq {opq.__version__}")
        raise typer.Exit


@app.callback()
def _opq(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Pre-trained networks as small files: one call, no data, no search."""
