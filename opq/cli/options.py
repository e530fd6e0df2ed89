"""What several commands take: shared options, the names of methods and formats, and what the shell completes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SUFFIX = ".opq.safetensors"
METHODS = ("rd", "opq", "kmeans", "lamp", "magnitude", "pq")
"""The methods that work without data; the others are called from Python."""
FORMATS = ("onnx", "web", "hf", "hub", "compressed-tensors", "safetensors")
NAMES = ("demo:digits", "hf:", "timm:", "torchvision:")

Force = Annotated[bool, typer.Option("--force", help="Replace an output that is there already, unasked.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for scripts, nothing else.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model's folder or repository brings.")
]
File = Annotated[Path, typer.Argument(help="A file, or a folder of shards, written by opq.", show_default=False)]


def sources(incomplete: str) -> list[str]:
    """Completions of a SOURCE that is half typed: names and paths."""
    return [name for name in NAMES if name.startswith(incomplete)] + sorted(map(str, Path().glob(f"{incomplete}*")))
