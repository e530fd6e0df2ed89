"""The command `compress`: a file, a folder of shards, a pipeline of models, or only the plan."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import opq
from opq.base.atomic import refuse_inputs
from opq.base.paths import what_is
from opq.base.tables import counted, some
from opq.cli.options import METHODS, AsJson, Force, Trust, sources
from opq.cli.outputs import check_writable, may_replace, unused
from opq.cli.parsing import default_name, overrides_of, shapes
from opq.cli.printing import one_line, say, say_commands, say_json, say_plainly, say_table, watched
from opq.errors import OptionError

if TYPE_CHECKING:
    from opq.compression.result import Compressed, Result
    from opq.plan import Plan
    from opq.sources.base import Source


def compress(
    source: Annotated[
        str,
        typer.Argument(help="A path, or hf:ORG/NAME, timm:NAME, torchvision:NAME, demo:NAME.", autocompletion=sources),
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
    quick_probe: Annotated[
        bool,
        typer.Option("--quick-probe", help="As --probe; language models draw the words of their texts all at once."),
    ] = False,
    calibration: Annotated[
        str | None, typer.Option(help="A folder of pictures without labels, or an .npz file, to measure on, not noise.")
    ] = None,
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
    path = output or Path(default_name(source))
    if quick_probe and probe is False:
        raise OptionError("--quick-probe and --no-probe contradict each other", remedy="Give one of them.")
    probe = True if quick_probe else probe  # all that there is for folders of shards, whose texts are drawn so anyway
    if output is not None and what_is(Path(source) / "model_index.json") == "a file":
        refused: dict[str, Any] = {"size": size, "keep": keep, "override": override, "input_size": input_size}
        refused |= {"sparsity": sparsity, "dry_run": dry_run, "dequantize": dequantize}
        refused |= {"like": like, "base": base, "calibration": calibration}
        few = () if code_bits is None else (opq.constraints.code_bits("*", max=code_bits),)
        budget = {"bits": bits, "ratio": ratio, "constraints": few, "probe": probe, "trellis": trellis, "seed": seed}
        budget |= {"workers": workers}
        _compress_pipeline(source, output, {**refused, "method": None if method == "rd" else method}, budget, as_json)
        return
    streamed = output is not None and _streams(source, output)
    if not streamed and what_is(path) == "a folder":
        path /= default_name(source)
    if not dry_run:
        refuse_inputs(path, [given for given in (base, calibration) if given is not None])
    if not dry_run and not streamed:
        refuse_inputs(path, [source])
        may_replace(path, force)
    opened = opq.open_source(source, dequantize=dequantize, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {
        "bits": bits,
        "ratio": ratio,
        "size": size,
        "method": method,
        "sparsity": sparsity,
        "overrides": overrides_of(keep or [], override or []),
        "constraints": () if code_bits is None else (opq.constraints.code_bits("*", max=code_bits),),
        "probe": "quick" if quick_probe and not streamed else probe,
        "input_size": shapes(input_size),
        "trellis": trellis,
        "seed": seed,
        "like": like,
        "base": base,
    }
    if calibration is not None:
        if streamed:
            remedy = "Leave it out, or compress to one file."
            raise OptionError("--calibration does not go with a folder as output", got=calibration, remedy=remedy)
        options["calibration"] = calibration
    if dry_run:
        if trellis is None and method == "rd" and not options["constraints"]:
            options["trellis"] = True  # what the file would be, not what training would start from
        _show_plan(opq.solve(opened, **options, progress=watched(as_json)), opened, as_json)
        return
    if streamed:
        _compress_folder(opened, path, options, shard_size, workers, as_json)
        return
    _compress_file(opened, path, options, force, verbose, as_json)


def _compress_file(
    source: Source, path: Path, options: dict[str, Any], force: bool, verbose: bool, as_json: bool
) -> None:
    """The ordinary case: one file. One that appears during the work is not replaced: the result lies beside it then."""
    check_writable(path, source.inputs)
    may = force or what_is(path, follow=False) != "nothing"  # what was there before, the user has agreed to replace
    start = time.perf_counter()
    result = opq.compress(source, **options, progress=watched(as_json))
    saving = time.perf_counter()
    path = path if may else unused(path)
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
        say_json(figures)
        return
    if verbose:
        say_table(dataclasses.replace(result.report(), title=None, notes=()))
    _show_result(result, path, seconds)


def _show_result(result: Result, path: Path, seconds: float) -> None:
    """Prints a few lines about a file: its size, its plan, what the sizes rest on, and what to do next."""
    plan = result.plan
    say(f"{path}: {result.bytes:,} bytes, {result.ratio:.2f}x smaller, {result.bits:.3f} bits per weight")
    say(f"{plan.summary}; {result.nominal.sparsity:.1%} of the compressed weights are zero. Verified by decoding. "
        f"{seconds:.1f} s.")  # fmt: skip
    _show_rest(result)
    say(f"The paper's count, positions free: {result.nominal.ratio:.2f}x.")
    model = f"{str(path)!r}, model{'' if result.base is None else ', base=...'}"
    say_commands(f"Next: opq inspect {path}", f"opq report {path}", f"in Python opq.load({model})")


def _show_rest(result: Compressed) -> None:
    """Prints what the plan rests on, by how much the budget is missed, if at all, and which tensors were left out."""
    if result.shortfall is not None:
        say(str(result.shortfall))
    say(f"By {result.basis}.")
    if result.basis.startswith("the weights alone"):
        say("Where a probe can run the model (a module, or an hf:, timm: or torchvision: name), much less accuracy is "
            "lost at low rates (docs/datafree.md).")  # fmt: skip
    if result.left_out:
        say(f"Left out: {one_line(some(result.left_out))}.")


def _show_plan(plan: Plan, source: Source, as_json: bool) -> None:
    """Prints a plan with the bytes that it predicts for every tensor, the kept ones included."""
    if as_json:
        say_plainly(plan.to_json())
        return
    from opq.file.kept import keep
    from opq.report.table import Report

    kept = {item.name: item.payload(plan[item.name]).size for item in keep(source, plan, {})}
    title = "Plan (predicted; nothing is written)"
    say_table(Report(plan=plan, sizes=plan.predicted_sizes | kept, title=title))
    say(f"predicted: {plan.predicted_bytes:,} bytes, lambda {plan.multiplier:.4g}, KKT residual {plan.residual:.1e}")
    say(f"By {plan.basis}.")


def _streams(source: str, output: Path) -> bool:
    """Whether the output is a folder of shards: the source is a folder and the output is not named like a file."""
    hub = source.startswith("hf:") and what_is(output) == "a folder"
    return output.suffix != ".safetensors" and (what_is(source) == "a folder" or hub)


def _compress_folder(
    source: Source, output: Path, options: dict[str, Any], shard_size: int, workers: int | None, as_json: bool
) -> None:
    """A folder of shards; of several processes that `torchrun` started only the first one prints."""
    start, first = time.perf_counter(), os.environ.get("RANK", "0") == "0"
    progress = watched(as_json or not first)
    result = opq.compress_folder(source, output, shard_size=shard_size, workers=workers, **options, progress=progress)
    seconds = round(time.perf_counter() - start, 3)
    if not first:
        return
    if as_json:
        figures = {"file": str(output), "file_bytes": result.bytes, "bits": result.bits, "ratio": result.ratio}
        more = {"shards": len(result.shards), "method": result.plan.method, "basis": result.basis}
        more["left_out"] = list(result.left_out)
        more["stages"] = {name: round(spent, 3) for name, spent in result.seconds.items()}
        say_json({**figures, **more, "seconds": seconds})
        return
    say(
        f"{output}: {counted(len(result.shards), 'shard')}, {result.bytes:,} bytes, {result.bits:.3f} bits per weight, "
        f"{result.ratio:.2f}x smaller. Verified by decoding. {seconds:.1f} s."
    )
    _show_rest(result)
    against = "" if options["base"] is None else f" --base {options['base']}"
    say_commands(f"Next: opq inspect {output}", f"opq decompress {output}{against}")


def _compress_pipeline(
    source: str, output: Path, refused: dict[str, Any], options: dict[str, Any], as_json: bool
) -> None:
    """A pipeline of diffusers: its models one after the other."""
    given = next((name for name, value in refused.items() if value), None)
    if given is not None:
        remedy = "Compress that model's folder by itself."
        raise OptionError(f"--{given.replace('_', '-')} does not go with a pipeline of several models", remedy=remedy)
    found = opq.hub.compress_pipeline(source, output, **options, progress=watched(as_json))
    if as_json:
        models = {name: {"bytes": result.bytes, "bits": result.bits} for name, result in found.items()}
        say_json({"file": str(output), "models": models})
        return
    for name, result in found.items():
        say(f"{name}: {result.bytes:,} bytes, {result.bits:.3f} bits per weight, {result.ratio:.2f}x smaller")
