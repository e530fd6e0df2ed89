"""ONNX files that keep the integer codes: int4, int8 or int16 initializers, each followed by a `DequantizeLinear`.

torch exports the dense network. Afterwards every initializer that holds a quantized tensor is replaced by the tensor's
codes. Exporters rename, transpose and scale weights (a BatchNorm is merged into the convolution before it, as one
factor `s_c` per output channel c), so initializers are recognised by their values: `codes x step`, the transpose of
that, or `codes x step x s_c`; where columns have factors, the products with these. In recurrent layers the gates are in
another order and the directions are stacked (`onnx_recurrent`). An initializer that is not recognised stays dense and
is listed.

Codes with a single scale are stored flat and followed by a `Reshape`. Otherwise onnxruntime would merge the
DequantizeLinear with a MatMul after it into a product that rounds the *activations* to 8 bits, which changes outputs.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from opq.base.arrays import Codes, Floats, Floats32
from opq.base.atomic import refuse_inputs, written_aside
from opq.base.extras import brief, need
from opq.base.process_state import same_random_state, silenced
from opq.base.tables import counted
from opq.errors import ExportError
from opq.export import onnx_recurrent
from opq.export.onnx_graph import FLOATING, ROUNDINGS, GridTensor, put
from opq.file.folder_reader import FolderReader, open_reader
from opq.file.loading import load
from opq.file.reader import Reader
from opq.models.batch import Batch, as_batch
from opq.plan import TensorPlan
from opq.probing.inputs import synthetic
from opq.quantizing import rows
from opq.sources.base import InputHint

OPSET = 21
"""The first opset whose DequantizeLinear takes int4 and int16."""
LARGEST = 2**31 - 2**20
"""The most bytes of tensors in one protobuf file, which is limited to 2 GiB; the rest is for the graph itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """The content of an ONNX file that was written."""

    bytes: int
    """Size of the file in bytes."""
    integers: dict[str, str]
    """The tensors whose codes the file holds, with the type of the codes: int4, int8 or int16."""
    dense: tuple[str, ...]
    """The compressed tensors that the graph holds as floats, or does not use."""

    def __repr__(self) -> str:
        held = f"{counted(len(self.integers), 'tensor')} as integers, {len(self.dense):,} as floats"
        return f"<Exported {self.bytes:,} bytes: {held}>"


def save_onnx(
    file: str | os.PathLike[str],
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    example_inputs: Any = None,
    hint: InputHint | None = None,
) -> Exported:
    """Writes the network of an opq file as ONNX: codes as integers, which `DequantizeLinear` nodes turn into weights.

    The axis `batch`, and for token ids also `sequence`, may have any size, the same in all inputs and outputs. Outputs
    have the names that the model gives them. `model` is left unchanged.

    Args:
        file: an opq file.
        path: the ONNX file to write.
        model: the network that was compressed; the values of its tensors are taken from the file.
        example_inputs: inputs of its forward (a tensor, tuple or dict), if they cannot be guessed from the model.
        hint: what the source knows about the inputs (`Source.input_hint`).

    Raises:
        MismatchError: file and model differ.
        ExportError: torch cannot export the network, or the result is larger than 2 GB.
        MissingExtraError: onnx or onnxscript is not installed.
        WriteError: the output cannot be written; nothing is left behind.
    """
    refuse_inputs(path, [file])
    program = program_of(file, model, example_inputs=example_inputs, hint=hint)
    graph = program.model.graph
    integers: dict[str, str] = {}
    with open_reader(file) as reader:
        names = [t.name for t in reader.plan.compressed]
        stepped = [t for t in reader.plan.compressed if t.stepped]
        for tensor in stepped:
            kind = _replaced(graph, _grid(reader, tensor), tensor.size)
            integers |= {} if kind is None else {tensor.name: kind}
        left = (_grid(reader, t) for t in stepped if t.name not in integers and len(t.shape) == 2)
        integers |= onnx_recurrent.replaced(graph, left)
    data = program.model_proto.SerializeToString() if _size(graph) < LARGEST else b""
    if not data:
        raise ExportError("the network is too large for one ONNX file", got=f"{_size(graph)} bytes", wanted="< 2 GB")
    with written_aside(path) as out:
        out.write(data)
    return Exported(len(data), integers, tuple(n for n in names if n not in integers))


def program_of(
    file: str | os.PathLike[str],
    model: nn.Module,
    *,
    example_inputs: Any = None,
    hint: InputHint | None = None,
    optimized: bool = True,
) -> Any:
    """torch's ONNX program of the network of a file.

    Args:
        optimized: whether torch may merge and fold tensors; otherwise the initializers are the network's own tensors.
    """
    need("onnx", "onnx")
    need("onnxscript", "onnx")
    network = load(file, copy.deepcopy(model)).eval().cpu()
    with same_random_state():
        given = None if example_inputs is None else as_batch(network, example_inputs)
        made = synthetic(network, hint=hint, samples=2).to(network) if given is None else given
    program = _traced(network, made, optimized)
    _open_axes_named(program.model.graph, output_names(network, made))
    return program


AXES = ("batch", "sequence")
"""Names of the first and second axis, if they may have any size, in all inputs and outputs."""


def output_names(network: nn.Module, batch: Batch) -> list[str]:
    """Names of the outputs, in order: fields or keys of the forward's result, otherwise output, output_1 and so on."""
    with torch.no_grad():
        given = network(*batch.args, **batch.kwargs)
    return _names(given, "") or ["output"]


def _names(value: Any, path: str) -> list[str]:
    """One name for each tensor, in the order in which torch flattens them."""
    if isinstance(value, torch.Tensor):
        return [path or "output"]
    if isinstance(value, Mapping):
        return [name for key, item in value.items() for name in _names(item, f"{path}.{key}" if path else str(key))]
    if isinstance(value, tuple | list):
        fields = getattr(
            value, "_fields", [f"{path or 'output'}_{k}" if k else path or "output" for k in range(len(value))]
        )
        return [name for field, item in zip(fields, value, strict=True) for name in _names(item, field)]
    return []


def _open_axes_named(graph: Any, outputs: Sequence[str]) -> None:
    """Gives the open axes of all inputs and outputs the names of `AXES`, and the outputs the names in `outputs`.

    torch uses a new symbol for each open axis of each input, even for axes that must have equal sizes. Here open axes
    in the same place get the same name, since a network takes one batch at a time.
    """
    import onnx_ir as ir

    symbols: dict[str, str] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                symbols[size.value] = AXES[axis]
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        sizes = list(value.shape or ())
        renamed = [symbols.get(s.value, s.value) if isinstance(s, ir.SymbolicDim) else s for s in sizes]
        if value.shape is not None and renamed != sizes:
            value.shape = ir.Shape(renamed)
    taken = {value.name for value in values} | set(graph.initializers)
    for value, name in zip(graph.outputs, outputs, strict=False):
        if name not in taken:
            value.name = name


def _grid(reader: Reader | FolderReader, tensor: TensorPlan) -> GridTensor:
    name, turn = tensor.name, reader.turn(tensor.name)
    exponents, columns = reader.exponents(name), reader.columns(name)
    step = np.asarray(np.float32(tensor.step)) if exponents is None else rows.steps(tensor.step, exponents)
    if turn is not None and step.ndim:
        step = turn.spread(step, tensor.shape)
    across = None
    if turn is not None and columns is not None:
        across = turn.spread_columns(rows.factors(columns), tensor.shape)
    return GridTensor(name, reader.codes(name), step, across)


def _traced(network: nn.Module, batch: Batch, optimized: bool) -> Any:
    """torch's ONNX program of the network."""
    dynamic = torch.export.Dim.DYNAMIC

    def open_dims(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        return dict.fromkeys(range(min(value.dim(), 1 if value.is_floating_point() else 2)), dynamic)

    shapes: Any = (
        tuple(map(open_dims, batch.args)) if batch.args else {k: open_dims(v) for k, v in batch.kwargs.items()}
    )
    with silenced(Warning), torch.no_grad():
        try:
            return torch.onnx.export(
                network, batch.args, kwargs=dict(batch.kwargs), dynamo=True, verbose=False, opset_version=OPSET,
                optimize=optimized,
                dynamic_shapes=shapes if not (batch.args and batch.kwargs) else None,
            )  # fmt: skip
        except Exception as error:  # a user's forward may fail to export in any way; the cause is kept
            remedy = "Pass example_inputs= that the forward takes, or export the dense model with torch.onnx yourself."
            raise ExportError(
                f"torch cannot export {type(network).__name__}", got=brief(error), remedy=remedy
            ) from error


def _size(graph: Any) -> int:
    return sum(int(v.const_value.nbytes) for v in graph.initializers.values() if v.const_value is not None)


def _replaced(graph: Any, grid: GridTensor, size: int) -> str | None:
    """Puts a tensor's codes where the graph holds its values, and gives their type; None if it does not hold them."""
    kinds = [put(graph, value, *found) for value in list(_candidates(graph, grid, size))
             if (found := recognised(value.const_value.numpy(), grid)) is not None]  # fmt: skip
    return kinds[0] if kinds else None


def _candidates(graph: Any, grid: GridTensor, size: int) -> Iterator[Any]:
    """The floating-point initializers of the tensor's size."""
    for value in graph.initializers.values():
        held = value.const_value
        if held is not None and held.size == size and held.dtype.name in FLOATING:
            yield value


def recognised(values: Floats32, grid: GridTensor) -> tuple[Codes, Floats32, Floats | None] | None:
    """The codes in the initializer's shape, and the scale and the factors by column as of `onnx_graph.put`.

    None if the values are not those of the tensor, or a graph cannot restore these.
    """
    across = grid.across
    turned = None if across is None else across.T
    for codes, weights, steps, factors in (
        (grid.codes, grid.weights, grid.spread, across),
        (grid.codes.T, grid.weights.T, grid.spread.T, turned),
    ):
        if codes.shape != values.shape:
            continue
        if np.array_equal(weights.astype(values.dtype), values):
            return (codes, steps, factors) if grid.restorable else None
        merged = codes.ndim > 1 and values.dtype == np.float32 and factors is None
        if merged and (scale := _scales(codes, values)) is not None:
            return codes, scale, None
    return None


def _scales(codes: Codes, values: Floats32) -> Floats32 | None:
    """The factors s_c with `values = codes x s_c`, c along the first axis, up to rounding; None if there are none."""
    flat, target = codes.reshape(len(codes), -1).astype(np.float64), values.reshape(len(codes), -1).astype(np.float64)
    energy = np.square(flat).sum(1)
    scale = np.divide((flat * target).sum(1), energy, out=np.ones_like(energy), where=energy > 0).astype(np.float32)
    error = np.abs(flat * scale[:, None] - target)
    return scale if bool((error <= ROUNDINGS * np.abs(target)).all()) else None
