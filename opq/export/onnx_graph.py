"""Replaces a floating-point initializer of an ONNX graph by integers and the nodes that restore the floats.

The restored values are those of the file, bit for bit: `codes x scale` in float32, then rounded to the type that the
graph computes in, as the reader does. Only where columns have factors are they up to a few roundings, since the reader
takes these products in float64.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from opq.base.arrays import Codes, Floats, Floats32

ROUNDINGS = 4e-7
"""How far products of float32 may differ from what they stand for, relatively: the error of three roundings."""

FLOATING = ("FLOAT", "FLOAT16", "BFLOAT16")
"""Types of initializers that may hold tensors of a file; no compressed tensor has a wider type."""


@dataclasses.dataclass(frozen=True, eq=False)
class GridTensor:
    """One compressed tensor of the file."""

    name: str
    codes: Codes
    step: Floats32
    """Of the tensor, a scalar; of each row, (rows,); or with as many axes as the codes, which it multiplies."""
    across: Floats | None = None
    """Factors by column, in float64 and with as many axes as the codes, which they multiply too; None if there are
    none."""

    @functools.cached_property
    def weights(self) -> Floats32:
        """`codes x step` in float32; where there are factors by column the product with these, rounded once."""
        if self.across is None:
            return self._products
        products: Floats = self.codes.astype(np.float64)
        products *= self.spread
        products *= self.across
        with np.errstate(over="ignore"):
            return products.astype(np.float32)

    @functools.cached_property
    def restorable(self) -> bool:
        """Whether a graph, which computes in float32, restores the weights, up to a few roundings with factors."""
        if self.across is None:
            return True
        with np.errstate(over="ignore"):
            restored = self._products * self.across.astype(np.float32)
        return np.allclose(restored, self.weights, rtol=ROUNDINGS, atol=0)

    @property
    def _products(self) -> Floats32:
        products: Floats32 = self.codes.astype(np.float32) * self.spread
        return products

    @property
    def spread(self) -> Floats32:
        """The steps in a shape in which they multiply the codes."""
        return self.step.reshape(-1, *[1] * (self.codes.ndim - 1)) if self.step.ndim == 1 else self.step


def put(graph: Any, value: Any, codes: Codes, scale: Floats32, across: Floats | None = None) -> str:
    """Replaces one initializer by integers and a DequantizeLinear, and gives their type, such as `int8`.

    An embedding's matrix, which only Gather nodes read, stays in integers; the rows that they gather are restored.

    Args:
        codes: in the initializer's shape.
        scale: a scalar; one number for each index of the first axis; or steps of as many axes as the codes, which
            these are multiplied by. (With a number for each index of another axis a runtime may compute by integers.)
        across: factors of as many axes as the codes, which these are multiplied by as well.
    """
    import onnx_ir as ir

    users, name = list(value.uses()), str(value.name)
    factors = {"steps": scale if scale.ndim > 1 else None, "columns": across}
    spread = {part: factor for part, factor in factors.items() if factor is not None}
    scale = scale if scale.ndim < 2 else np.ones((), np.float32)
    by_rows = not scale.ndim and all(_gathers(user, first=bool(spread)) for user in users)
    if len(spread) > 1 and not by_rows:  # a Mul comes behind, so no runtime merges a DequantizeLinear of one of them
        for part in [part for part, factor in spread.items() if factor.size == len(factor) == len(codes)][:1]:
            scale = spread.pop(part).astype(np.float32).reshape(-1)
    integers, kind = _narrowest(codes if by_rows or scale.ndim else codes.reshape(-1), nibbles=not by_rows)
    tensor = ir.Tensor(integers, dtype=ir.DataType[kind.upper()], shape=ir.Shape(integers.shape), name=f"{name}.codes")
    held = [_initializer(graph, tensor), _initializer(graph, ir.tensor(scale, name=f"{name}.scale"))]
    for part, factor in spread.items():
        factor = factor[0] if by_rows and len(factor) == 1 else factor  # of all rows
        held.append(_initializer(graph, ir.tensor(np.ascontiguousarray(factor, np.float32), name=f"{name}.{part}")))
    if by_rows:
        for user in users:
            user.node.replace_input_with(0, held[0])
            _dequantized(graph, user.node, user.node.outputs[0], held[1:], f"{name}.{user.node.name}")
    else:
        restored = _restored(graph, value, held, per_row=bool(scale.ndim))
        for user in users:
            user.node.replace_input_with(user.idx, restored)
    del graph.initializers[name]
    return kind


def _gathers(user: Any, *, first: bool) -> bool:
    """Whether the use of an initializer is that of a table of which rows are gathered.

    Args:
        first: whether these must lie along the first axis.
    """
    axis = user.node.attributes.get_int("axis", 0)
    return bool(user.node.op_type == "Gather" and user.idx == 0 and (axis == 0 or not first))


def _restored(graph: Any, value: Any, held: list[Any], *, per_row: bool) -> Any:
    """Adds nodes at the head of the graph that restore an initializer in its shape, and gives the restored value.

    Args:
        held: codes and scale, and factors that the codes are multiplied by, where there are any.
    """
    import onnx_ir as ir

    name, first = value.name, graph[0]
    node = ir.node("DequantizeLinear", held[:2], {"axis": 0} if per_row else {}, name=f"{name}.restore")
    graph.insert_before(first, node)
    if not per_row:
        node.outputs[0].name = f"{name}.flat"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        shape = _initializer(graph, ir.tensor(np.array(value.shape.numpy(), np.int64), name=f"{name}.shape"))
        node = ir.node("Reshape", [node.outputs[0], shape], name=f"{name}.reshape")
        graph.insert_before(first, node)
    for factor in held[2:]:
        node = _multiplied(graph, node, factor, factor.name)
    return _cast(graph, node, value, f"{name}.restored")


def _multiplied(graph: Any, node: Any, factor: Any, name: str) -> Any:
    """Adds a Mul of a node's float32 output behind it, and gives it."""
    import onnx_ir as ir

    product = ir.node("Mul", [node.outputs[0], factor], name=f"{name}.scaled")
    node.outputs[0].name, node.outputs[0].type = f"{name}.before", ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(node, product)
    return product


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


def _dequantized(graph: Any, gather: Any, rows: Any, held: list[Any], name: str) -> None:
    """Adds nodes that restore them between a Gather of codes and the nodes that use its rows.

    Args:
        held: the scale, and factors where there are any: of as many axes as the table, of which rows are gathered too,
            or of its rows' axes, which are those of all rows.
    """
    import onnx_ir as ir

    users = list(rows.uses())
    node = ir.node("DequantizeLinear", [rows, held[0]], name=f"{name}.restore")
    graph.insert_after(gather, node)
    for factor in held[1:]:
        part = f"{name}.{str(factor.name).rpartition('.')[2]}"
        if len(factor.shape) == len(gather.inputs[0].shape):
            of_rows = ir.node("Gather", [factor, gather.inputs[1]], name=f"{part}.gather")
            graph.insert_before(node, of_rows)
            factor = of_rows.outputs[0]
            factor.name, factor.type = f"{part}.rows", ir.TensorType(ir.DataType.FLOAT)
        node = _multiplied(graph, node, factor, part)
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
