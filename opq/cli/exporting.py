"""Commands that write a compressed file's network for other tools: `decompress`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import opq
from opq.base.atomic import refuse_inputs
from opq.base.paths import what_is
from opq.base.tables import some
from opq.cli.options import FORMATS, SUFFIX, AsJson, File, Force, Trust
from opq.cli.outputs import may_replace
from opq.cli.printing import one_line, say, say_json
from opq.errors import OptionError


def decompress(
    file: File,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The dense safetensors file to write.")] = None,
    base: Annotated[
        str | None, typer.Option(help="For a file with a base: the network that it was compressed against.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the dense tensors of FILE as ordinary safetensors."""
    from opq.export.dense import save_dense
    from opq.streaming.dense import save_dense_folder

    folder = what_is(file) == "a folder"
    ending = "" if folder else ".safetensors"
    path = output or Path(file.name.removesuffix(SUFFIX).removesuffix(".safetensors") + f".dense{ending}")
    refuse_inputs(path, [file] if base is None else [file, base])
    may_replace(path, force)
    size = save_dense_folder(file, path, base=base) if folder else save_dense(file, path, base=base)
    if as_json:
        say_json({"file": str(path), "bytes": size})
    else:
        say(f"{path}: {size:,} bytes, dense")


def export(
    file: File,
    to: Annotated[
        str,
        typer.Option(
            help="onnx, web, hf, hub, compressed-tensors or safetensors.", autocompletion=lambda: list(FORMATS)
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file or folder to write.")],
    model: Annotated[
        str | None, typer.Option(help="What was compressed: hf:, timm:, torchvision:, demo:, a folder.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Refuse tensors that do not map.")] = True,
    runtime: Annotated[
        Path | None, typer.Option(help="With --to web: the folder dist of the npm package onnxruntime-web.")
    ] = None,
    trust_remote_code: Trust = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the network of FILE for other tools."""
    from opq.export import dense
    from opq.export.compressed_tensors import save_compressed_tensors
    from opq.export.hf_folder import save_compressed_folder, save_folder
    from opq.export.onnx_model import save_onnx
    from opq.export.web_site import save_web

    if to not in FORMATS:
        raise OptionError("unknown --to", got=repr(to), wanted="onnx, web, hf, hub, compressed-tensors or safetensors")
    refuse_inputs(output, [file])
    if to != "safetensors" and model is None:
        raise OptionError(f"--to {to} needs --model", wanted="what was compressed, such as hf:ORG/NAME")
    may_replace(output, force)
    if to == "safetensors":
        figures: dict[str, Any] = {"bytes": dense.save_dense(file, output)}
    elif to == "onnx":
        opened = opq.open_source(str(model), trust_remote_code=trust_remote_code)
        exported = save_onnx(file, output, opened.build(), hint=opened.input_hint)
        figures = {"bytes": exported.bytes, "integers": exported.integers, "dense": list(exported.dense)}
    elif to == "web":
        opened = opq.open_source(str(model), trust_remote_code=trust_remote_code)
        site = save_web(file, output, opened.build(), hint=opened.input_hint, runtime=runtime)
        figures = {"bytes": site.bytes, "tensors": len(site.tensors), "inside": site.inside}
    elif to == "hub":
        save_compressed_folder(file, output, str(model))
        figures = {"bytes": sum(p.stat().st_size for p in output.iterdir())}
    elif to == "hf":
        figures = {"bytes": save_folder(file, output, str(model))}
    else:
        figures = {"bytes": save_compressed_tensors(file, output, str(model), strict=strict)}
    if as_json:
        say_json({"file": str(output), "to": to, **figures})
        return
    say(f"{output}: {figures['bytes']:,} bytes, {to}")
    if figures.get("dense"):
        say(f"as floats: {one_line(some(figures['dense']))}")
