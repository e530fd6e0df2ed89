"""Networks of two matrices for pages: graphs as `opq export --to web` leaves them, made by hand, and their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import node
import numpy as np
import torch

import opq
from opq.export.web_site import FILE, GRAPH, TENSORS, make_external

PARTS = (TENSORS, GRAPH, FILE)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "small", "file", "##s", "is", "download", "##ed"]
VOCABULARY = {word: k for k, word in enumerate([*WORDS, *(f"w{k}" for k in range(600 - len(WORDS)))])}


def weights(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def text_weights() -> dict[str, torch.Tensor]:
    return weights(embeddings=(len(VOCABULARY), 48), projection=(48, 24), bias=(24,))


def text_graph() -> Any:
    """Vectors of tokens, multiplied by a matrix, plus a vector."""
    from onnx import helper

    ids = [helper.make_tensor_value_info(name, 7, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    out = helper.make_tensor_value_info("last_hidden_state", 1, ["batch", "sequence", 24])
    nodes = [
        helper.make_node("Gather", ["embeddings", "input_ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "projection"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["last_hidden_state"]),
    ]
    return _graph(nodes, ids, out, text_weights())


def text_network(folder: Path) -> None:
    """What a page and transformers.js find of it."""
    _written(folder, text_graph(), text_weights())


def hidden_states(folder: Path, ids: Sequence[int]) -> Any:
    """(tokens, 24): what the dense weights from the folder's file give."""
    held = opq.load_state_dict(folder / FILE)
    return (held["embeddings"][list(ids)] @ held["projection"] + held["bias"]).numpy()


def image_weights() -> dict[str, torch.Tensor]:
    return weights(classes=(3, 1000), bias=(1000,))


def image_network(folder: Path) -> None:
    """Classes by the mean of each channel."""
    from onnx import helper

    image = helper.make_tensor_value_info("x", 1, ["batch", 3, 224, 224])
    out = helper.make_tensor_value_info("output", 1, ["batch", 1000])
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "classes"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["output"]),
    ]
    _written(folder, _graph(nodes, [image], out, image_weights()), image_weights())


def scores(folder: Path, pixels: Any) -> Any:
    """(1000,): what the dense weights from the folder's file give for (3, 224, 224)."""
    held = opq.load_state_dict(folder / FILE)
    means = torch.from_numpy(np.asarray(pixels, np.float32)).reshape(3, -1).mean(1)
    return (means @ held["classes"] + held["bias"]).numpy()


def _graph(nodes: list[Any], inputs: list[Any], output: Any, state: dict[str, torch.Tensor]) -> Any:
    from onnx import TensorProto, helper

    held = [
        TensorProto(name=name, data_type=1, dims=value.shape, raw_data=value.numpy().tobytes())
        for name, value in state.items()
    ]
    for k, value in enumerate(held):
        make_external(value, f"tensor{k}")
    graph = helper.make_graph(nodes, "small", inputs, [output], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _written(folder: Path, graph: Any, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    opq.compress(state, bits=5).save(folder / FILE)
    (folder / GRAPH).write_bytes(graph.SerializeToString())
    places = {f"tensor{k}": name for k, name in enumerate(state)}
    (folder / TENSORS).write_text(json.dumps({"file": FILE, "graph": GRAPH, "tensors": places}))
    for script in ("opq.js", "network.js"):
        shutil.copyfile(node.MODULE.parent / script, folder / script)
