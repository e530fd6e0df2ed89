"""A web page that runs a network: a folder with an ONNX graph without weights and the opq file that holds them.

In the browser `opq.js` decodes the file, and `network.js` passes the tensors to onnxruntime-web as the graph's external
data. torch exports the network without optimization, so that weights are not changed: the graph's initializers then
equal the tensors of the file bit for bit, and are recognised by their values. Any static server can serve the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opq.base.atomic import refuse_inputs, written_aside
from opq.base.paths import what_is
from opq.errors import ExportError, WriteError
from opq.export.onnx_model import program_of
from opq.file.folder_reader import open_reader
from opq.sources.base import InputHint

FILE, GRAPH, TENSORS = "model.opq.safetensors", "network.onnx", "network.json"
PAGES = {"opq.js": "opq.js", "network.js": "network.js", "index.html": "site.html"}
"""Files that are the same for every network: name in the folder -> name in this package."""
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of onnxruntime-web that the page needs, from the package's folder `dist`."""
LEAST = 16
"""Initializers with fewer elements stay in the graph: a reference to the file would take more bytes than they do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """The content of a folder that was written."""

    bytes: int
    """Size of the graph and the opq file together, in bytes."""
    tensors: dict[str, str]
    """For each location of external data that the graph refers to, the tensor of the file that belongs there."""
    inside: int
    """Bytes of the initializers that the graph holds itself."""


def save_web(
    file: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    model: nn.Module,
    *,
    example_inputs: Any = None,
    hint: InputHint | None = None,
    runtime: str | os.PathLike[str] | None = None,
) -> Site:
    """Fills a folder with a page that runs the network of an opq file in a browser.

    Args:
        file: an opq file.
        folder: the folder to fill; it is created if needed.
        model: the network that was compressed; the values of its tensors are taken from the file.
        example_inputs: inputs of its forward (a tensor, tuple or dict), if they cannot be guessed from the model.
        hint: what the source knows about the inputs (`Source.input_hint`).
        runtime: the folder `dist` of the npm package onnxruntime-web, from which three files are copied; without it,
            copy them into the folder `ort` yourself.

    Raises:
        MismatchError: file and model differ.
        ExportError: torch cannot export the network, its graph holds none of the file's tensors, or `runtime` lacks a
            file.
        MissingExtraError: onnx or onnxscript is not installed.
        WriteError: the output cannot be written.
    """
    target = Path(folder)
    refuse_inputs(target / FILE, [file])
    parts = [] if runtime is None else [Path(runtime) / name for name in RUNTIME]
    for part in parts:
        if what_is(part) != "a file":
            raise ExportError(f"{runtime} is not the dist folder of onnxruntime-web", got=f"no {part.name}")
    proto = program_of(file, model, example_inputs=example_inputs, hint=hint, optimized=False).model_proto
    tensors = _emptied(proto, file)
    if not tensors:
        raise ExportError("the graph holds none of the file's tensors", remedy="Export to onnx instead.")
    graph = proto.SerializeToString()
    described = {"file": FILE, "graph": GRAPH, "tensors": tensors}
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, source in PAGES.items():
            _write(target / name, files("opq").joinpath("web", source).read_bytes())
        for part in parts:
            (target / "ort").mkdir(exist_ok=True)
            _write(target / "ort" / part.name, part.read_bytes())
        _write(target / GRAPH, graph)
        _write(target / TENSORS, (json.dumps(described, indent=1) + "\n").encode())
        with open(file, "rb") as whole, written_aside(target / FILE) as out:
            shutil.copyfileobj(whole, out)
    except OSError as error:
        raise WriteError(f"cannot fill {target}", got=error.strerror or error) from error
    inside = sum(len(value.raw_data) for value in proto.graph.initializer)
    return Site(len(graph) + Path(file).stat().st_size, tensors, inside)


def _write(path: Path, data: bytes) -> None:
    with written_aside(path) as out:
        out.write(data)


def _emptied(proto: Any, file: str | os.PathLike[str]) -> dict[str, str]:
    """Takes values that the file holds, and notes for debugging, out of the graph; location -> tensor of the file."""
    import onnx

    found: dict[str, str] = {}
    with open_reader(file) as reader:
        held = {_key(t.shape, _raw(reader.tensor(t.name))): t.name for t in reader.plan.own if t.floating}
    for value in proto.graph.initializer:
        size = len(value.raw_data) // 4
        if value.data_type != onnx.TensorProto.FLOAT or size < LEAST:
            continue
        name = held.get(_key(tuple(value.dims), value.raw_data))
        if name is not None:
            place = f"tensor{len(found)}"
            make_external(value, place)
            found[place] = name
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return found


def make_external(value: Any, location: str) -> None:
    """Takes the values from an initializer: they are looked for at a place."""
    import onnx

    value.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(len(value.raw_data)))):
        entry = value.external_data.add()
        entry.key, entry.value = key, text
    value.ClearField("raw_data")


def _raw(tensor: torch.Tensor) -> bytes:
    return tensor.float().contiguous().numpy().tobytes()


def _key(shape: tuple[int, ...], data: bytes) -> tuple[tuple[int, ...], bytes]:
    return tuple(shape), hashlib.sha256(data).digest()
