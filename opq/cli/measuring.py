"""Commands that compare accuracies before and after compression: `evaluate`, `demo`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

import opq
from opq.cli.options import SUFFIX, AsJson, File, Force, Trust
from opq.cli.outputs import may_replace
from opq.cli.printing import out, say_json, watched


def evaluate(
    file: File,
    model: Annotated[str, typer.Option(help="What was compressed: hf:, timm:, torchvision: or demo:.")],
    data: Annotated[str, typer.Option(help="A folder with one folder a class, an .npz file, or demo:digits.")],
    classes: Annotated[Path | None, typer.Option(help="The model's class names in order, one a line.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Images, spread over the set.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    base: Annotated[str | None, typer.Option(help="The version to which FILE holds the differences.")] = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of FILE. That of the network it was made from stands beside it."""
    from opq import evaluation

    opened = opq.open_source(model, trust_remote_code=trust_remote_code)
    network = opened.build()
    names = None if classes is None else evaluation.read_classes(classes)
    images = (evaluation.demo_images() if data == "demo:digits" else evaluation.open_images(data)).first(limit)
    scores = {}
    for which in ("dense", "compressed"):
        if which == "compressed":
            opq.load(file, network, base=base)
        scores[which] = evaluation.evaluate(
            network, images, hint=opened.input_hint, classes=names, batch=batch, progress=watched(as_json)
        )
    if as_json:
        say_json({which: dataclasses.asdict(score) for which, score in scores.items()})
        return
    for which, score in scores.items():
        of = f"{score.images} images, {score.seconds:.1f} s"
        out.print(f"{which:<10}  top-1 {score.top1:7.2%}  top-5 {score.top5:7.2%}  {of}")


def demo(
    bits: Annotated[float, typer.Option(help="Budget: 8 x file bytes / weights.")] = 3.0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Keep the file here.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Compress the network that ships with opq. It is saved and reloaded, accuracies are compared; offline, seconds."""
    import tempfile

    from opq import demo as shipped
    from opq.sources.digits import load

    if output is not None:
        may_replace(output, force)
    model = load()
    before = shipped.accuracy(model)
    with tempfile.TemporaryDirectory() as folder:
        path = output or Path(folder) / f"digits{SUFFIX}"
        result = opq.compress("demo:digits", bits=bits, progress=watched(as_json))
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
        say_json(figures)
        return
    out.print(f"before  {result.source_bytes:>9,} bytes  accuracy {before:.2%}")
    out.print(
        f"after   {result.bytes:>9,} bytes  accuracy {after:.2%}  ({result.ratio:.1f}x smaller, {result.bits:.2f} bits)"
    )
