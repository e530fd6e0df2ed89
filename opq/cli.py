"""The `opq` command: the only file that prints.

Exit codes: 0 done, 1 the input or the file is wrong (one line says what and what to do), 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

import opq
from opq.base.atomic import refuse_inputs, replaceable
from opq.base.paths import what_is
from opq.base.progress import shown
from opq.base.tables import counted, some
from opq.errors import OpqError, OptionError, WriteError

if TYPE_CHECKING:
    from opq.compression.result import Compressed, Result
    from opq.plan import Plan
    from opq.report.table import Report
    from opq.sources.base import Source


class Commands(TyperGroup):
    """The commands; an interruption is told in one line, whatever typer makes of it."""

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
out = Console(markup=False)
err = Console(stderr=True, markup=False)

SUFFIX = ".opq.safetensors"
METHODS = ("rd", "opq", "kmeans", "lamp", "magnitude", "pq")
"""Those that a shell can ask for: the others need data."""
FORMATS = ("onnx", "web", "hf", "hub", "compressed-tensors", "safetensors")
NAMES = ("demo:digits", "hf:", "timm:", "torchvision:")

IN_SHELL = {
    **{name: f"--{name.replace('_', '-')}" for name in ("bits", "ratio", "size", "method", "sparsity", "input_size")},
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("seed", "like", "base", "shard_size", "workers", "classes", "batch")
    },
    "overrides": "--override",
}
"""Options of the calls that have a value, as the shell has them."""
FLAGS = {
    "trellis": "--trellis",
    "trellis=True": "--trellis",
    "trellis=False": "--no-trellis",
    "probe": "--probe",
    "probe=True": "--probe",
    "probe=False": "--no-probe",
    "strict=False": "--no-strict",
    "dequantize=True": "--dequantize",
    "trust_remote_code=True": "--trust-remote-code",
}
"""Those that have none."""


def _sources(incomplete: str) -> list[str]:
    """What SOURCE may go on as: a name, or a path."""
    return [name for name in NAMES if name.startswith(incomplete)] + sorted(map(str, Path().glob(f"{incomplete}*")))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"opq {opq.__version__}")
        raise typer.Exit


@app.callback()
def _opq(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Pre-trained networks as small files: one call, no data, no search."""


Force = Annotated[bool, typer.Option("--force", help="Replace an output that is there already, unasked.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts, nothing else.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model's folder or repository brings.")
]
File = Annotated[Path, typer.Argument(help="A file, or a folder of shards, written by opq.", show_default=False)]


@app.command()
def compress(
    source: Annotated[
        str,
        typer.Argument(help="A path, or hf:ORG/NAME, timm:NAME, torchvision:NAME, demo:NAME.", autocompletion=_sources),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; of a folder also a folder.")
    ] = None,
    bits: Annotated[float | None, typer.Option(help="Budget: 8 x file bytes / weights.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Budget: bytes of the source / bytes of the file.")] = None,
    size: Annotated[str | None, typer.Option(help="Budget: bytes of the file, such as 500kB, 2MB or 1.5MiB.")] = None,
    method: Annotated[
        str,
        typer.Option(help="rd (rate-distortion optimum) or opq (the paper).", autocompletion=lambda: list(METHODS)),
    ] = "rd",
    sparsity: Annotated[float | None, typer.Option(help="With --method opq: fraction of weights pruned.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Glob pattern of tensors to keep; may be repeated.")] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="PATTERN:KEY=NUMBER with KEY bits, min_bits, max_bits or sensitivity.")
    ] = None,
    code_bits: Annotated[
        int | None, typer.Option(help="Codes that fit so many bits each, for export to tools with codes of one width.")
    ] = None,
    probe: Annotated[bool | None, typer.Option("--probe/--no-probe", help="Measure sensitivities on noise.")] = None,
    input_size: Annotated[
        str | None, typer.Option(help="Shape of one input, such as 3,224,224, or of several: x=3,32,32 y=24.")
    ] = None,
    trellis: Annotated[
        bool | None, typer.Option("--trellis/--no-trellis", help="Quantize on a trellis, as rd does: less error.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the synthetic inputs.")] = 0,
    like: Annotated[
        Path | None, typer.Option(help="An older file: tensors that have not changed since keep their bytes.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Another version that the receiver has: the differences to it are compressed.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    shard_size: Annotated[int, typer.Option(help="Bytes of an output shard, with a folder as output.")] = 500_000_000,
    workers: Annotated[int | None, typer.Option(help="Threads, with a folder as output; default: all cores.")] = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Of a quantized checkpoint, compress the weights of its codes.")
    ] = False,
    trust_remote_code: Trust = False,
    force: Force = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print what happened to every tensor too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compress SOURCE into a small file."""
    path = output or Path(_default_name(source))
    if output is not None and what_is(Path(source) / "model_index.json") == "a file":
        refused: dict[str, Any] = {
            "size": size,
            "keep": keep,
            "override": override,
            "input_size": input_size,
            "sparsity": sparsity,
        }
        refused |= {"trellis": trellis, "dry_run": dry_run, "dequantize": dequantize, "like": like, "base": base}
        few = () if code_bits is None else (opq.constraints.code_bits("*", max=code_bits),)
        budget = {"bits": bits, "ratio": ratio, "constraints": few, "probe": probe, "seed": seed, "workers": workers}
        _compress_pipeline(source, output, {**refused, "method": None if method == "rd" else method}, budget, as_json)
        return
    streamed = output is not None and _streams(source, output)
    if not dry_run:
        refuse_inputs(path, [] if base is None else [base])
    if not dry_run and not streamed:
        refuse_inputs(path, [source])
        _may_replace(path, force)
    opened = opq.open_source(source, dequantize=dequantize, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {
        "bits": bits,
        "ratio": ratio,
        "size": size,
        "method": method,
        "sparsity": sparsity,
        "overrides": _overrides(keep or [], override or []),
        "constraints": () if code_bits is None else (opq.constraints.code_bits("*", max=code_bits),),
        "probe": probe,
        "input_size": _shapes(input_size),
        "trellis": trellis,
        "seed": seed,
        "like": like,
        "base": base,
    }
    if dry_run:
        if trellis is None and method == "rd" and not options["constraints"]:
            options["trellis"] = True  # what the file would be, not what training would start from
        _show_plan(opq.solve(opened, **options, progress=_watched(as_json)), opened, as_json)
        return
    if streamed:
        _compress_folder(opened, path, options, shard_size, workers, as_json)
        return
    _check_writable(path, opened.inputs)
    start = time.perf_counter()
    result = opq.compress(opened, **options, progress=_watched(as_json))
    saving = time.perf_counter()
    result.save(path)
    saved = time.perf_counter() - saving
    seconds = round(time.perf_counter() - start, 3)
    figures = {
        "file": str(path),
        "file_bytes": result.bytes,
        "bits": result.bits,
        "ratio": result.ratio,
        "nominal_ratio": result.nominal.ratio,
        "sparsity": result.nominal.sparsity,
        "method": result.plan.method,
        "basis": result.basis,
        "left_out": list(result.left_out),
        "seconds": seconds,
        "stages": {name: round(spent, 3) for name, spent in {**result.seconds, "save": saved}.items()},
    }
    if as_json:
        _json(figures)
        return
    if verbose:
        _table(dataclasses.replace(result.report(), title=None, notes=()))
    _show_result(result, path, seconds)


def _show_result(result: Result, path: Path, seconds: float) -> None:
    """What came out, in a few lines: what, size, what the probe did, where the file is and how to go on."""
    plan = result.plan
    say(f"{path}: {result.bytes:,} bytes, {result.ratio:.2f}x smaller, {result.bits:.3f} bits per weight")
    say(f"{plan.summary}; {result.nominal.sparsity:.1%} of the compressed weights are zero. Verified by decoding. "
        f"{seconds:.1f} s.")  # fmt: skip
    _show_rest(result)
    say(f"The paper's count, positions free: {result.nominal.ratio:.2f}x.")
    say(f"Next: opq inspect {path}, opq report {path}; "
        f"in Python opq.load({str(path)!r}, model{'' if result.base is None else ', base=...'})")  # fmt: skip


def _show_rest(result: Compressed) -> None:
    """What sizes and codes rest on, what is short of the budget and what was left out."""
    if result.shortfall is not None:
        say(str(result.shortfall))
    say(f"By {result.basis}.")
    if result.basis.startswith("the weights alone"):
        say("With the model itself, or an hf:, timm: or torchvision: name, much less accuracy is lost at low rates "
            "(docs/datafree.md).")  # fmt: skip
    if result.left_out:
        say(f"Left out: {_line(some(result.left_out))}.")


def _streams(source: str, output: Path) -> bool:
    """Whether the output is a folder of shards: a folder goes in and the output is not named like a file."""
    hub = source.startswith("hf:") and what_is(output) == "a folder"
    return output.suffix != ".safetensors" and (what_is(source) == "a folder" or hub)


def _compress_folder(
    source: Source, output: Path, options: dict[str, Any], shard_size: int, workers: int | None, as_json: bool
) -> None:
    """The streamed path; of the processes of a `torchrun` the first one prints."""
    start, first = time.perf_counter(), os.environ.get("RANK", "0") == "0"
    progress = _watched(as_json or not first)
    result = opq.compress_folder(source, output, shard_size=shard_size, workers=workers, **options, progress=progress)
    seconds = round(time.perf_counter() - start, 3)
    if not first:
        return
    if as_json:
        figures = {"file": str(output), "file_bytes": result.bytes, "bits": result.bits, "ratio": result.ratio}
        more = {"shards": len(result.shards), "method": result.plan.method, "basis": result.basis}
        more["left_out"] = list(result.left_out)
        more["stages"] = {name: round(spent, 3) for name, spent in result.seconds.items()}
        _json({**figures, **more, "seconds": seconds})
        return
    say(
        f"{output}: {counted(len(result.shards), 'shard')}, {result.bytes:,} bytes, {result.bits:.3f} bits per weight, "
        f"{result.ratio:.2f}x smaller. Verified by decoding. {seconds:.1f} s."
    )
    _show_rest(result)
    against = "" if options["base"] is None else f" --base {options['base']}"
    say(f"Next: opq inspect {output}, opq decompress {output}{against}")


def _compress_pipeline(
    source: str, output: Path, refused: dict[str, Any], options: dict[str, Any], as_json: bool
) -> None:
    """A pipeline of diffusers, one model after the other."""
    given = next((name for name, value in refused.items() if value), None)
    if given is not None:
        remedy = "Compress that model's folder by itself."
        raise OptionError(f"--{given.replace('_', '-')} does not go with a pipeline of several models", remedy=remedy)
    found = opq.hub.compress_pipeline(source, output, **options, progress=_watched(as_json))
    if as_json:
        _json({"file": str(output), "models": {name: {"bytes": r.bytes, "bits": r.bits} for name, r in found.items()}})
        return
    for name, result in found.items():
        say(f"{name}: {result.bytes:,} bytes, {result.bits:.3f} bits per weight, {result.ratio:.2f}x smaller")


@app.command()
def inspect(file: File, as_json: AsJson = False) -> None:
    """Show what FILE holds: tensors, ratio, bits, sparsity, and entropy against coded size."""
    from opq.report.inspection import examine

    found = examine(file)
    if as_json:
        _json(dataclasses.asdict(found))
        return
    _table(found.report())
    say(found.summary())


@app.command()
def verify(file: File, as_json: AsJson = False) -> None:
    """Decode every tensor of FILE and check every checksum."""
    from opq.file.folder_reader import open_reader, parts_of

    with open_reader(file) as reader, shown(_watched(as_json)) as progress:
        names, own = reader.names, reader.plan.own  # tied tensors are decoded once
        every = ((part, tensor.name) for part in parts_of(reader) for tensor in part.plan.own)
        for done, (part, name) in enumerate(every):
            part.stored(name)
            progress("verify", done + 1, len(own))
    if as_json:
        _json({"file": str(file), "tensors": len(names), "whole": True})
    else:
        say(f"{file}: whole, {counted(len(names), 'tensor')} decoded")


@app.command()
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
    _may_replace(path, force)
    size = save_dense_folder(file, path, base=base) if folder else save_dense(file, path, base=base)
    if as_json:
        _json({"file": str(path), "bytes": size})
    else:
        say(f"{path}: {size:,} bytes, dense")


@app.command()
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
    """Write what changed from OLD to NEW, from which and OLD `opq apply` makes NEW again, byte for byte."""
    refuse_inputs(output, [old, new])
    _may_replace(output, force)
    start = time.perf_counter()
    size = opq.delta(old, new, output, portable=portable, progress=_watched(as_json))
    whole, seconds = _bytes_below(new), round(time.perf_counter() - start, 3)
    if as_json:
        _json({"file": str(output), "bytes": size, "new_bytes": whole, "seconds": seconds})
    else:
        say(f"{output}: {size:,} bytes in place of {whole:,}, {size / max(whole, 1):.2%}. {seconds:.1f} s.")


@app.command()
def apply(
    old: Annotated[Path, typer.Argument(help="The checkpoint that the update was made against.")],
    update: Annotated[Path, typer.Argument(help="What `opq delta` wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file or folder to write.")],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make the new checkpoint from OLD and UPDATE; its SHA-256 is checked."""
    refuse_inputs(output, [old, update])
    _may_replace(output, force)
    size = opq.apply(old, update, output, progress=_watched(as_json))
    if as_json:
        _json({"file": str(output), "bytes": size})
    else:
        say(f"{output}: {size:,} bytes, checked by SHA-256")


def _bytes_below(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


@app.command()
def report(
    file: File,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The HTML page to write.")] = None,
    source: Annotated[str | None, typer.Option(help="What was compressed, for its own histograms and curves.")] = None,
    trust_remote_code: Trust = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a self-contained HTML report of FILE: bytes, steps, histograms, curves, and a live budget."""
    from opq.report.page import save_page

    path = output or Path(file.name.removesuffix(SUFFIX).removesuffix(".safetensors") + ".html")
    _check_writable(path, [file])
    _may_replace(path, force)
    opened = None if source is None else opq.open_source(source, trust_remote_code=trust_remote_code)
    size = save_page(file, path, source=opened)
    if as_json:
        _json({"file": str(path), "bytes": size})
    else:
        say(f"{path}: {size:,} bytes; open it in a browser")


@app.command()
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
    _may_replace(output, force)
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
        _json({"file": str(output), "to": to, **figures})
        return
    say(f"{output}: {figures['bytes']:,} bytes, {to}")
    if figures.get("dense"):
        say(f"as floats: {_line(some(figures['dense']))}")


@app.command()
def evaluate(
    file: File,
    model: Annotated[str, typer.Option(help="What was compressed: hf:, timm:, torchvision: or demo:.")],
    data: Annotated[str, typer.Option(help="A folder with one folder a class, an .npz file, or demo:digits.")],
    classes: Annotated[Path | None, typer.Option(help="The model's class names in order, one a line.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images, spread over the set.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Accuracy of the network in FILE beside that of the network it was made from."""
    from opq import evaluation

    opened = opq.open_source(model, trust_remote_code=trust_remote_code)
    network = opened.build()
    names = None if classes is None else evaluation.read_classes(classes)
    images = (evaluation.demo_images() if data == "demo:digits" else evaluation.open_images(data)).first(limit)
    scores = {}
    for which in ("dense", "compressed"):
        if which == "compressed":
            opq.load(file, network)
        scores[which] = evaluation.evaluate(
            network, images, hint=opened.input_hint, classes=names, batch=batch, progress=_watched(as_json)
        )
    if as_json:
        _json({which: dataclasses.asdict(score) for which, score in scores.items()})
        return
    for which, score in scores.items():
        of = f"{score.images} images, {score.seconds:.1f} s"
        out.print(f"{which:<10}  top-1 {score.top1:7.2%}  top-5 {score.top5:7.2%}  {of}")


@app.command()
def native(as_json: AsJson = False) -> None:
    """Compile the kernel that makes fine-tuning on a CPU faster. Once; needs a C++ compiler and opq[native]."""
    from opq.training import kernel

    start = time.perf_counter()
    if not as_json and what_is(kernel.path()) == "nothing":
        err.print("compiling, some fifteen seconds ...")
    path = kernel.build()
    if as_json:
        _json({"path": str(path), "seconds": time.perf_counter() - start})
    else:
        say(f"{path}: opq.attach and opq.finetune use it from now on")


@app.command()
def demo(
    bits: Annotated[float, typer.Option(help="Budget: 8 x file bytes / weights.")] = 3.0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Keep the file here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compress the network that ships with opq, save, reload, and compare accuracies. Offline, seconds."""
    import tempfile

    from opq import demo as shipped
    from opq.sources.digits import load

    model = load()
    before = shipped.accuracy(model)
    with tempfile.TemporaryDirectory() as folder:
        path = output or Path(folder) / f"digits{SUFFIX}"
        result = opq.compress("demo:digits", bits=bits, progress=_watched(as_json))
        result.save(path)
        after = shipped.accuracy(opq.load(path, load()))
    figures = {
        "bytes_before": result.source_bytes,
        "file_bytes": result.bytes,
        "ratio": result.ratio,
        "bits": result.bits,
        "accuracy_before": before,
        "accuracy_after": after,
    }
    if as_json:
        _json(figures)
        return
    out.print(f"before  {result.source_bytes:>9,} bytes  accuracy {before:.2%}")
    out.print(
        f"after   {result.bytes:>9,} bytes  accuracy {after:.2%}  ({result.ratio:.1f}x smaller, {result.bits:.2f} bits)"
    )


FAILURES = (OSError, MemoryError, RecursionError)
"""What a system or a stranger's file may still cause that no call foresaw: one line too, not a traceback."""


def main() -> None:
    """Runs the command; errors become one line on standard error and an exit code."""
    warnings.showwarning = _warn  # type: ignore[assignment]
    try:
        with _terminable():
            app()
    except OpqError as error:
        _fail(error)
    except FAILURES as error:
        _fail(error)
    except Terminated:
        err.print("terminated; nothing was written half")
        sys.exit(143)


class Terminated(BaseException):
    """The process is asked to end: what is temporary is removed on the way out."""


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block by an exception, as an interruption does, so that nothing temporary stays behind."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread, whose the signals are
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(error: BaseException) -> None:
    err.print("error", style="bold red", end=" ")
    err.print(f"{type(error).__name__}: {_line(in_shell(str(error)))}", highlight=False, soft_wrap=True)
    sys.exit(1)


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    err.print("warning", style="yellow", end=" ")
    err.print(_line(in_shell(str(message))), highlight=False, soft_wrap=True)


def in_shell(text: str) -> str:
    """A message of the library in the command line's words: `--bits 3` for `bits=3`, `--no-probe` for `probe=False`."""

    def spelt(found: re.Match[str]) -> str:
        name, value = found[1], found[2].strip("'")
        if f"{name}={value}" in FLAGS:
            return FLAGS[f"{name}={value}"]
        if name in FLAGS and not value:
            return FLAGS[name]
        if name in IN_SHELL:
            return f"no {IN_SHELL[name]}" if value == "None" else f"{IN_SHELL[name]} {value}".rstrip()
        return found[0]

    text = re.sub(r"overrides=\{'([^']*)': 'keep'\}", r"--keep '\1'", text)
    text = re.sub(r"\bconstraints=\[(.*?)\]", r"constraints (in Python)", text)
    return re.sub(r"(?<![\w./:*-])([a-z_]+)=('[\w-]*'|[\w.+-]*\w|)", spelt, text)


def _line(message: object) -> str:
    from opq.base.tables import printable

    return printable(str(message).replace("\n", " "))


def say(text: str) -> None:
    """Prints a line of any length as one: the paths in it stay whole."""
    out.print(text, soft_wrap=True)


def _json(figures: dict[str, Any]) -> None:
    print(json.dumps(figures, sort_keys=True))


def _table(report: Report) -> None:
    """A table: as wide as the terminal; where there is none, one line a tensor."""
    for line in report.lines(out.width if out.is_terminal else None):
        say(line)


def _show_plan(plan: Plan, source: Source, as_json: bool) -> None:
    if as_json:
        print(plan.to_json())
        return
    from opq.file.kept import keep
    from opq.report.table import Report

    kept = {item.name: item.payload(plan[item.name]).size for item in keep(source, plan, {})}
    title = "Plan (predicted; nothing is written)"
    _table(Report(plan=plan, sizes=plan.predicted_sizes | kept, title=title))
    say(f"predicted: {plan.predicted_bytes:,} bytes, lambda {plan.multiplier:.4g}, KKT residual {plan.residual:.1e}")


def _may_replace(path: Path, force: bool) -> None:
    """Asks before a file is replaced; where nobody can answer, it is an error without `--force`.

    Links and what else is never replaced are left to the writer, which refuses them.
    """
    if force or what_is(path, follow=False) != "a file":
        return
    if sys.stdin is not None and sys.stdin.isatty() and err.is_terminal:
        typer.confirm(f"{path} is there already. Replace it?", abort=True, err=True)
        return
    remedy = "Pass --force to replace it, or another --output."
    raise WriteError(f"{path} is there already", got="a file", wanted="nothing", remedy=remedy)


def _watched(quiet: bool) -> bool:
    """Whether a bar is drawn: not for scripts, nor where nobody looks."""
    return not quiet and err.is_terminal


def _overrides(keep: list[str], numbers: list[str]) -> dict[str, Any] | None:
    overrides: dict[str, Any] = dict.fromkeys(keep, "keep")
    for text in numbers:
        pattern, colon, setting = text.rpartition(":")
        key, equals, value = setting.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not (colon and equals) or number != number:
            raise OptionError(
                "--override is not understood", got=repr(text), wanted="PATTERN:KEY=NUMBER, such as '*.embed*:bits=6'"
            )
        before = overrides.get(pattern)
        overrides[pattern] = {**(before if isinstance(before, dict) else {}), key: number}
    return overrides or None


def _shapes(text: str | None) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """One shape, or several by the names of arguments, between blanks; `NAME=` is a single number a sample."""
    if text is None or "=" not in text:
        return None if text is None else _shape(text)
    named = [part.partition("=") for part in text.split()]
    return {name: _shape(shape) if shape else () for name, _, shape in named}


def _shape(text: str) -> tuple[int, ...]:
    parts = text.replace("x", ",").split(",")
    if not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
        raise OptionError("--input-size is not a shape", got=repr(text), wanted="positive integers such as 3,224,224")
    return tuple(map(int, parts))


def _default_name(source: str) -> str:
    stem = source.rstrip("/").rpartition("/")[2].rpartition(":")[2].partition("?")[0]
    for suffix in (".safetensors", ".pth", ".pt", ".bin"):
        stem = stem.removesuffix(suffix)
    return f"{stem or 'model'}{SUFFIX}"


def _check_writable(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Says before the work, not after it, that the output cannot be written."""
    if what_is(path.parent) != "a folder":
        got = (
            f"no folder {path.parent}"
            if what_is(path.parent) == "nothing"
            else f"{path.parent}: {what_is(path.parent)}"
        )
        raise WriteError(f"cannot write {path}", got=got, remedy="Make the folder first.")
    refuse_inputs(path, inputs)
    replaceable(path)
