"""The commands of fine-tuning: `finetune`, and `native`, which prepares it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

import opq
from opq.base.atomic import refuse_inputs
from opq.base.paths import what_is
from opq.base.tables import some
from opq.cli.options import AsJson, Force, Trust, sources
from opq.cli.outputs import check_writable, may_replace
from opq.cli.printing import err, one_line, say, say_json, watched

if TYPE_CHECKING:
    from opq.training.finetuning import Finetuned

KEPT = ".ckpt"
"""What the name of a checkpoint adds to that of the output."""


def finetune(
    source: Annotated[
        str,
        typer.Argument(
            help="The network that was compressed: hf:, timm:, torchvision:, demo:.", autocompletion=sources
        ),
    ],
    file: Annotated[Path, typer.Argument(help="A file written by opq.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    images: Annotated[
        str | None, typer.Option(help="A folder of pictures without labels, an .npz file, or 'synthetic'.")
    ] = None,
    texts: Annotated[str | None, typer.Option(help="A file of lines of text, or 'own': the model writes them.")] = None,
    codes: Annotated[
        str | None,
        typer.Option(help="keep: train only what is not compressed; train: weights too. Default: keep on trellises."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pictures or texts.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Pictures or texts in a step.")] = 32,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default: 0.0005.")] = None,
    seed: Annotated[int, typer.Option(help="Of order, augmentation and what is held back.")] = 0,
    trust_remote_code: Trust = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a file's network on pictures or texts without labels.

    The network in SOURCE teaches, and the file keeps its size. A run that was interrupted goes on where it was when the
    same command is given again.
    """
    refuse_inputs(output, [source, file, *([images] if images else []), *([texts] if texts else [])])
    may_replace(output, force)
    check_writable(output)
    start, checkpoint = time.perf_counter(), output.with_name(output.name + KEPT)
    network = opq.open_source(source, trust_remote_code=trust_remote_code).build()
    trained = opq.finetune(
        network,
        file,
        images=images,
        texts=texts,
        codes=cast(Any, codes),
        epochs=epochs,
        batch=batch,
        lr=lr,
        seed=seed,
        checkpoint=checkpoint,
        progress=watched(as_json),
    )
    trained.save(output)
    checkpoint.unlink(missing_ok=True)
    _show(trained, output, round(time.perf_counter() - start, 3), as_json)


def _show(trained: Finetuned, output: Path, seconds: float, as_json: bool) -> None:
    result, best = trained.result, trained.best
    if as_json:
        figures = {"file": str(output), "file_bytes": result.bytes, "bits": result.bits, "ratio": result.ratio}
        history = [dataclasses.asdict(epoch) for epoch in trained.history]
        say_json({**figures, "kept": trained.kept, "history": history, "skipped": trained.skipped, "seconds": seconds})
        return
    size = f"{result.bytes:,} bytes, {result.ratio:.2f}x smaller, {result.bits:.3f} bits per weight"
    say(f"{output}: {size}. {seconds:.1f} s.")
    if trained.skipped:
        say(f"{len(trained.skipped)} could not be read: {one_line(some(trained.skipped))}.")
    if best is None:
        say("No epoch was better than the file itself: that is what was written.")
        return
    agreeing = f"{best.score:.1%} agreement with the dense network on what was held back"
    say(f"Epoch {best.epoch + 1} of {len(trained.history)} is kept: {agreeing}.")


def native(as_json: AsJson = False) -> None:
    """Compile the kernel that makes fine-tuning on a CPU faster. Once; needs a C++ compiler and opq[native]."""
    from opq.training import kernel

    start = time.perf_counter()
    if not as_json and what_is(kernel.path()) == "nothing":
        err.print("compiling, some fifteen seconds ...")
    path = kernel.build()
    if as_json:
        say_json({"path": str(path), "seconds": time.perf_counter() - start})
    else:
        say(f"{path}: opq.attach and opq.finetune use it from now on")
