"""Commands that look at a compressed file: `inspect`, `verify`, `report`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

import opq
from opq.base.progress import shown
from opq.base.tables import counted
from opq.cli.options import SUFFIX, AsJson, File, Force, Trust
from opq.cli.outputs import check_writable, may_replace
from opq.cli.printing import say, say_json, say_table, watched


def inspect(file: File, as_json: AsJson = False) -> None:
    """Show what FILE holds. Of each tensor bits, sparsity, bytes; of all the ratio, entropy against coded size."""
    from opq.report.inspection import examine

    found = examine(file)
    if as_json:
        say_json(dataclasses.asdict(found))
        return
    say_table(found.report())
    say(found.summary())


def verify(file: File, as_json: AsJson = False) -> None:
    """Decode every tensor of FILE and check every checksum."""
    from opq.file.folder_reader import open_reader, parts_of

    with open_reader(file) as reader, shown(watched(as_json)) as progress:
        names, own = reader.names, reader.plan.own  # tied tensors are decoded once
        every = ((part, tensor.name) for part in parts_of(reader) for tensor in part.plan.own)
        for done, (part, name) in enumerate(every):
            part.stored(name)
            progress("verify", done + 1, len(own))
    if as_json:
        say_json({"file": str(file), "tensors": len(names), "whole": True})
    else:
        say(f"{file}: whole, {counted(len(names), 'tensor')} decoded")


def report(
    file: File,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The HTML page to write.")] = None,
    source: Annotated[str | None, typer.Option(help="What was compressed, for its own histograms and curves.")] = None,
    trust_remote_code: Trust = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a report of FILE as one HTML page. With bytes, steps, histograms, curves, and a live budget."""
    from opq.report.page import save_page

    path = output or Path(file.name.removesuffix(SUFFIX).removesuffix(".safetensors") + ".html")
    check_writable(path, [file])
    may_replace(path, force)
    opened = None if source is None else opq.open_source(source, trust_remote_code=trust_remote_code)
    size = save_page(file, path, source=opened)
    if as_json:
        say_json({"file": str(path), "bytes": size})
    else:
        say(f"{path}: {size:,} bytes; open it in a browser")
