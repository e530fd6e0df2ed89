"""Replaces a floating-point initializer of an ONNX graph by integers and the nodes that restore the floats.

The restored values are those of the file, bit for bit: `codes x scale` in float32, then rounded to the type that the
graph computes in, as the reader does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Codes, Floats32

FLOATING = ("FLOAT", "FLOAT16", "BFLOAT16")
"""Types of initializers that may hold tensors of a file; no compressed tensor has a wider type."""


@dataclasses.dataclass(frozen=True, slots=True)
class GridTensor:
    """One compressed tensor of the file."""

    name: str
    codes: Codes
    step: Floats32
    """Of the tensor, a scalar; of each row, (rows,); or with as many axes as the codes, which it multiplies."""

    @property
    def weights(self) -> Floats32:
        """`codes x step` in float32."""
        dense: Floats32 = self.codes.astype(np.float32) * self.spread
        return dense

    @property
    def spread(self) -> Floats32:
        """The steps in a shape in which they multiply the codes."""
        return self.step.reshape(-1, *[1] * (self.codes.ndim - 1)) if self.step.ndim == 1 else self.step


def put(graph: Any, value: Any, codes: Codes, scale: Floats32) -> str:
    """Replaces one initializer by integers and a DequantizeLinear, and gives their type, such as `int8`.

    An embedding's matrix, which only Gather nodes read, stays in integers; the rows that they gather are restored.

    Args:
        codes: in the initializer's shape.
        scale: a scalar; one number for each index of the first axis; or steps of as many axes as the codes, which
            these are multiplied by. (With a number for each index of another axis a runtime may compute by integers.)
    """
    import onnx_ir as ir

    users, name = list(value.uses()), str(value.name)
    spread = scale if scale.ndim > 1 else None
    scale = scale if spread is None else np.ones((), np.float32)
    by_rows = spread is None and scale.ndim == 0 and all(u.node.op_type == "Gather" and u.idx == 0 for u in users)
    integers, kind = _narrowest(codes if by_rows or scale.ndim else codes.reshape(-1), nibbles=not by_rows)
    tensor = ir.Tensor(integers, dtype=ir.DataType[kind.upper()], shape=ir.Shape(integers.shape), name=f"{name}.codes")
    held = [_initializer(graph, tensor), _initializer(graph, ir.tensor(scale, name=f"{name}.scale"))]
    if spread is not None:
        held.append(_initializer(graph, ir.tensor(np.ascontiguousarray(spread), name=f"{name}.steps")))
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
    """Adds nodes at the head of the graph that restore an initializer in its shape, and gives the restored value.

    Args:
        held: codes and scale, and steps that the codes are multiplied by, where there are any.
    """
    import onnx_ir as ir

    name, first = value.name, graph[0]
    node = ir.node("DequantizeLinear", held[:2], {"axis": 0} if per_row else {}, name=f"{name}.restore")
    graph.insert_before(first, node)
    if per_row:
        return _cast(graph, node, value, f"{name}.restored")
    node.outputs[0].name = f"{name}.flat"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    shape = _initializer(graph, ir.tensor(np.array(value.shape.numpy(), np.int64), name=f"{name}.shape"))
    last = ir.node("Reshape", [node.outputs[0], shape], name=f"{name}.reshape")
    graph.insert_before(first, last)
    for steps in held[2:]:
        last.outputs[0].name, last.outputs[0].type = f"{name}.shaped", ir.TensorType(ir.DataType.FLOAT)
        last = ir.node("Mul", [last.outputs[0], steps], name=f"{name}.scaled")
        graph.insert_before(first, last)
    return _cast(graph, last, value, f"{name}.restored")


def _cast(graph: Any, node: Any, like: Any, name: str) -> Any:
    """The node's float32 output, converted to the type of `like`, with its shape and under a new name."""
    import onnx_ir as ir

    found = node.outputs[0]
    if like.dtype != ir.DataType.FLOAT:
        found.name, found.shape, found.type = f"{name}.float", like.shape, ir.TensorType(ir.DataType.FLOAT)
        cast = ir.node("Cast", [found], {"to": int(like.dtype)}, name=f"{name}.cast")
        graph.insert_after(node, cast)
        found = cast.outputs[0]
    found.name, found.shape, found.type = name, like.shape, like.type
    return found


def _dequantized(graph: Any, gather: Any, rows: Any, scale: Any, name: str) -> None:
    """Adds a DequantizeLinear between a Gather of codes and the nodes that use its rows."""
    import onnx_ir as ir

    users = list(rows.uses())
    node = ir.node("DequantizeLinear", [rows, scale], name=f"{name}.restore")
    graph.insert_after(gather, node)
    restored = _cast(graph, node, rows, f"{name}.restored")
    rows.type = ir.TensorType(gather.inputs[0].dtype)
    for user in users:
        user.node.replace_input_with(user.idx, restored)


def _initializer(graph: Any, tensor: Any) -> Any:
    import onnx_ir as ir

    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _narrowest(codes: Codes, *, nibbles: bool) -> tuple[npt.NDArray[Any], str]:
    """The codes in the narrowest type of ONNX that holds them; int4 only with `nibbles`, since Gather refuses it."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if nibbles and low >= -8 and high <= 7:
        import ml_dtypes

        return codes.astype(ml_dtypes.int4), "int4"
    if low >= -128 and high <= 127:
        return np.ascontiguousarray(codes, np.int8), "int8"
    return np.ascontiguousarray(codes), "int16"
