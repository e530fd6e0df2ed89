"""A folder that any static server can serve: an ONNX graph without its weights, and the opq file that holds them.

In the page `opq.js` decodes the file and `network.js` hands the tensors to onnxruntime-web as the graph's external
data. torch exports the network without optimization, so that nothing is folded into its weights: the graph's
initializers are then the tensors of the file, bit by bit, and each is found by its values.
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
from opq.file.reader import Reader
from opq.sources.base import InputHint

FILE, GRAPH, TENSORS = "model.opq.safetensors", "network.onnx", "network.json"
PAGES = {"opq.js": "opq.js", "network.js": "network.js", "index.html": "site.html"}
"""Files of the folder that are the same for every network, by their names here."""
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What the page needs of onnxruntime-web, from its folder `dist`."""
LEAST = 16
"""Elements of an initializer from which on it is taken from the file: fewer are smaller than their description."""


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """What went into a folder for a page."""

    bytes: int
    """Of the graph and the opq file together."""
    tensors: dict[str, str]
    """Place of an initializer's values, by which the graph asks for them -> the tensor of the file that is there."""
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
        folder: the folder to fill; made where it is not there.
        model: the network that was compressed; its values are taken from the file.
        example_inputs: what its forward takes, where the model does not say.
        hint: what the source knows of the inputs (`Source.input_hint`).
        runtime: the folder `dist` of the npm package onnxruntime-web, of which the page needs three files; without
            it, copy them into the folder `ort` yourself.

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
    """Makes external what the file holds too, and leaves out what is for debugging; place -> tensor of the file."""
    import onnx

    found: dict[str, str] = {}
    with Reader(file) as reader:
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
