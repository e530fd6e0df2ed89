"""ONNX with the integer codes kept: int4, int8 or int16 initializers, each behind one `DequantizeLinear`.

torch exports the dense network; afterwards every initializer that holds a tensor of the plan's grid is taken back to
its codes. Exporters rename, transpose and scale weights (a BatchNorm goes into the convolution before it, one factor
per output channel), so initializers are recognised by their values: `codes x step`, its transpose, or
`codes x step x s_c` along the first axis. What is recognised as none of these stays dense and is listed.

Codes with one scale are stored flat, with a `Reshape` behind: onnxruntime fuses a DequantizeLinear that stands right
before a MatMul into a product that rounds the *activations* to 8 bits, and the outputs would not be the same.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from opq.base.atomic import refuse_inputs, written_aside
from opq.base.extras import brief, need
from opq.base.process_state import same_random_state, silenced
from opq.base.tables import counted
from opq.errors import ExportError
from opq.file.loading import load
from opq.file.reader import Reader
from opq.models.batch import Batch, as_batch
from opq.probing.inputs import synthetic
from opq.sources.base import InputHint

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int16]

OPSET = 21
"""The first opset whose DequantizeLinear takes int4 and int16."""
LARGEST = 2**31 - 2**20
"""Bytes that a protobuf file can hold, with room for the graph."""
_ROUNDINGS = 4e-7
"""Relative error of two roundings to float32: how far `codes x step x s_c` may be from what the exporter wrote."""


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """What went into an ONNX file."""

    bytes: int
    """Of the file."""
    integers: dict[str, str]
    """Tensor -> type of its codes: int4, int8 or int16."""
    dense: tuple[str, ...]
    """Compressed tensors that the graph holds as floats, or not at all."""

    def __repr__(self) -> str:
        held = f"{counted(len(self.integers), 'tensor')} as integers, {len(self.dense):,} as floats"
        return f"<Exported {self.bytes:,} bytes: {held}>"


@dataclasses.dataclass(frozen=True, slots=True)
class _Grid:
    """One compressed tensor of the file."""

    name: str
    codes: Ints
    step: float


def save_onnx(
    file: str | os.PathLike[str],
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    example_inputs: Any = None,
    hint: InputHint | None = None,
) -> Exported:
    """Writes the network of an opq file as ONNX, its codes as integers, weights restored by `DequantizeLinear`.

    The axis `batch` (and of token ids `sequence`) is left open, the same in all inputs and outputs; outputs have the
    names that the model gives them. `model` comes back as it was.

    Args:
        file: an opq file.
        path: the ONNX file to write.
        model: the network that was compressed; its values are taken from the file.
        example_inputs: what its forward takes, where the model does not say.
        hint: what the source knows of the inputs (`Source.input_hint`).

    Raises:
        MismatchError: file and model differ.
        ExportError: torch cannot export the network, or the result is beyond 2 GB.
        MissingExtraError: onnx or onnxscript is not installed.
        WriteError: the output cannot be written; nothing is left behind.
    """
    refuse_inputs(path, [file])
    need("onnx", "onnx")
    need("onnxscript", "onnx")
    network = load(file, copy.deepcopy(model)).eval().cpu()
    with same_random_state():
        made = synthetic(network, hint=hint, samples=2) if example_inputs is None else as_batch(network, example_inputs)
    program = _traced(network, made)
    graph = program.model.graph
    _open_axes_named(graph, output_names(network, made))
    integers: dict[str, str] = {}
    with Reader(file) as reader:
        names = [t.name for t in reader.plan.compressed]
        for name in (t.name for t in reader.plan.compressed if t.stepped):
            grid = _Grid(name, reader.codes(name), reader.plan[name].step)
            kind = _replaced(graph, grid, reader.plan[name].size)
            integers |= {} if kind is None else {name: kind}
    data = program.model_proto.SerializeToString() if _size(graph) < LARGEST else b""
    if not data:
        raise ExportError("the network is too large for one ONNX file", got=f"{_size(graph)} bytes", wanted="< 2 GB")
    with written_aside(path) as out:
        out.write(data)
    return Exported(len(data), integers, tuple(n for n in names if n not in integers))


AXES = ("batch", "sequence")
"""Names of the axes that are left open, in all inputs and outputs."""


def output_names(network: nn.Module, batch: Batch) -> list[str]:
    """The model's own names of its outputs, in order: fields of what its forward gives, else output, output_1, ..."""
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
    """One symbol for the batch of all inputs and outputs, one for the length of token ids, the outputs' own names.

    torch calls the open axes of each input by a symbol of its own, also where they have to be equal. Two open axes are
    one here where they stand in the same place: a network takes one batch.
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


def _traced(network: nn.Module, batch: Batch) -> Any:
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
                dynamic_shapes=shapes if not (batch.args and batch.kwargs) else None,
            )  # fmt: skip
        except Exception as error:  # a stranger's forward may fail to export in any way; the cause is kept
            remedy = "Pass example_inputs= that the forward takes, or export the dense model with torch.onnx yourself."
            raise ExportError(
                f"torch cannot export {type(network).__name__}", got=brief(error), remedy=remedy
            ) from error


def _size(graph: Any) -> int:
    return sum(int(v.const_value.nbytes) for v in graph.initializers.values() if v.const_value is not None)


def _replaced(graph: Any, grid: _Grid, size: int) -> str | None:
    """Puts a tensor's codes where the graph holds its values; the type of the codes, None where it holds none."""
    kinds = [_put(graph, value, grid, found) for value in list(_candidates(graph, grid, size))
             if (found := _recognised(value.const_value.numpy(), grid)) is not None]  # fmt: skip
    return kinds[0] if kinds else None


def _candidates(graph: Any, grid: _Grid, size: int) -> Iterator[Any]:
    """The float32 initializers of the tensor's size."""
    for value in graph.initializers.values():
        held = value.const_value
        if held is not None and held.size == size and held.dtype.name == "FLOAT":
            yield value


def _recognised(values: Floats, grid: _Grid) -> tuple[Ints, Floats] | None:
    """Codes in the initializer's shape and their scale, one number or one for each of the first axis."""
    for codes in (grid.codes, grid.codes.T):
        if codes.shape != values.shape:
            continue
        step = np.float32(grid.step)
        if np.array_equal(codes.astype(np.float32) * step, values):
            return codes, np.asarray(step)
        if codes.ndim > 1 and (scale := _scales(codes, values)) is not None:
            return codes, scale
    return None


def _scales(codes: Ints, values: Floats) -> Floats | None:
    """`s` with `values = codes x s_c` along the first axis, to the rounding of float32; None where there is none."""
    flat, target = codes.reshape(len(codes), -1).astype(np.float64), values.reshape(len(codes), -1).astype(np.float64)
    energy = np.square(flat).sum(1)
    scale = np.divide((flat * target).sum(1), energy, out=np.ones_like(energy), where=energy > 0).astype(np.float32)
    error = np.abs(flat * scale[:, None] - target)
    return scale if bool((error <= _ROUNDINGS * np.abs(target)).all()) else None


def _put(graph: Any, value: Any, grid: _Grid, found: tuple[Ints, Floats]) -> str:
    """One initializer becomes integers behind a DequantizeLinear; after a Gather of rows, only those are restored."""
    import onnx_ir as ir

    codes, scale = found
    users, name = list(value.uses()), str(value.name)
    by_rows = scale.ndim == 0 and all(u.node.op_type == "Gather" and u.idx == 0 for u in users)
    integers, kind = _narrowest(codes if by_rows or scale.ndim else codes.reshape(-1), nibbles=not by_rows)
    tensor = ir.Tensor(integers, dtype=ir.DataType[kind.upper()], shape=ir.Shape(integers.shape), name=f"{name}.codes")
    held = [_initializer(graph, tensor), _initializer(graph, ir.tensor(scale, name=f"{name}.scale"))]
    if by_rows:
        for user in users:
            user.node.replace_input_with(0, held[0])
            _dequantized(graph, user.node, user.node.outputs[0], held[1], f"{name}.{user.node.name}")
    else:
        restored = _restored(graph, value, held, per_row=bool(scale.ndim))
        for user in users:
            user.node.replace_input_with(user.idx, restored)
    del graph.initializers[name]
    return kind


def _restored(graph: Any, value: Any, held: list[Any], *, per_row: bool) -> Any:
    """What takes the place of an initializer: its codes restored at the head of the graph, in its shape."""
    import onnx_ir as ir

    name, first = value.name, graph[0]
    node = ir.node("DequantizeLinear", held, {"axis": 0} if per_row else {}, name=f"{name}.restore")
    graph.insert_before(first, node)
    if per_row:
        _described(node.outputs[0], f"{name}.restored", value)
        return node.outputs[0]
    node.outputs[0].name, node.outputs[0].type = f"{name}.flat", value.type
    shape = _initializer(graph, ir.tensor(np.array(value.shape.numpy(), np.int64), name=f"{name}.shape"))
    reshape = ir.node("Reshape", [node.outputs[0], shape], name=f"{name}.reshape")
    _described(reshape.outputs[0], f"{name}.restored", value)
    graph.insert_before(first, reshape)
    return reshape.outputs[0]


def _dequantized(graph: Any, gather: Any, rows: Any, scale: Any, name: str) -> None:
    """A DequantizeLinear between a Gather of codes and those who used its rows."""
    import onnx_ir as ir

    users = list(rows.uses())
    node = ir.node("DequantizeLinear", [rows, scale], name=f"{name}.restore")
    _described(node.outputs[0], f"{name}.restored", rows)
    rows.type = ir.TensorType(gather.inputs[0].dtype)
    graph.insert_after(gather, node)
    for user in users:
        user.node.replace_input_with(user.idx, node.outputs[0])


def _described(output: Any, name: str, like: Any) -> None:
    output.name, output.shape, output.type = name, like.shape, like.type


def _initializer(graph: Any, tensor: Any) -> Any:
    import onnx_ir as ir

    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _narrowest(codes: Ints, *, nibbles: bool) -> tuple[npt.NDArray[Any], str]:
    """The codes in the narrowest type of ONNX that holds them; int4 only where asked for, since Gather takes none."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if nibbles and low >= -8 and high <= 7:
        import ml_dtypes

        return codes.astype(ml_dtypes.int4), "int4"
    if low >= -128 and high <= 127:
        return np.ascontiguousarray(codes, np.int8), "int8"
    return np.ascontiguousarray(codes), "int16"
