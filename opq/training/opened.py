"""A file as what fine-tuning starts from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from opq.base.paths import what_is
from opq.errors import OptionError
from opq.file.reader import Reader
from opq.file.writer import Packed

if TYPE_CHECKING:
    from opq.compression.result import Result


def opened(path: str | os.PathLike[str]) -> Result:
    """The compression result that a file was saved from, without what only the compression itself knew.

    Raises:
        FileFormatError: it is no opq file, or damaged (one subclass each).
        OptionError: it holds differences to another network, or is a folder of shards.
    """
    from opq.compression.result import Result

    if what_is(path) == "a folder":
        remedy = "Compress the network into one file: opq compress SOURCE -o NAME.opq.safetensors."
        raise OptionError("fine-tuning starts from one file", got=f"the folder {os.fspath(path)}", remedy=remedy)
    with Reader(path) as reader:
        if reader.base is not None:
            remedy = "Compress the network by itself, without base=."
            raise OptionError(
                f"{os.fspath(path)} holds differences to another network", wanted="weights", remedy=remedy
            )
        plan, sizes = reader.plan, reader.sizes
        with open(path, "rb") as file:
            whole = file.read()
    return Result(
        plan=plan,
        packed=Packed((whole,), sizes, {}),
        label=os.fspath(path),
        elements=plan.elements,
        source_bytes=sum(t.nbytes for t in plan.own),
    )
