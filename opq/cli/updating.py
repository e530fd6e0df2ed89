"""Commands for updates between two checkpoints: `delta`, `apply`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import opq
from opq.base.atomic import refuse_inputs
from opq.cli.options import AsJson, Force
from opq.cli.outputs import may_replace
from opq.cli.printing import say, say_json, watched


def delta(
    old: Annotated[Path, typer.Argument(help="The checkpoint that the receiver has: a file or a folder.")],
    new: Annotated[Path, typer.Argument(help="The checkpoint that the receiver wants: also a file or a folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The update to write.")],
    portable: Annotated[
        bool, typer.Option("--portable", help="For opq files: larger, but independent of the version of pcodec.")
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write what changed from OLD to NEW. From that and OLD `opq apply` makes NEW again, byte for byte."""
    refuse_inputs(output, [old, new])
    may_replace(output, force)
    start = time.perf_counter()
    size = opq.delta(old, new, output, portable=portable, progress=watched(as_json))
    whole, seconds = _bytes_below(new), round(time.perf_counter() - start, 3)
    if as_json:
        say_json({"file": str(output), "bytes": size, "new_bytes": whole, "seconds": seconds})
    else:
        say(f"{output}: {size:,} bytes in place of {whole:,}, {size / max(whole, 1):.2%}. {seconds:.1f} s.")


def apply(
    old: Annotated[Path, typer.Argument(help="The checkpoint that the update was made against.")],
    update: Annotated[Path, typer.Argument(help="What `opq delta` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file or folder to write.")],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make the new checkpoint from OLD and UPDATE. Its SHA-256 is checked."""
    refuse_inputs(output, [old, update])
    may_replace(output, force)
    size = opq.apply(old, update, output, progress=watched(as_json))
    if as_json:
        say_json({"file": str(output), "bytes": size})
    else:
        say(f"{output}: {size:,} bytes, checked by SHA-256")


def _bytes_below(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
