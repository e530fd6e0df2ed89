"""Plans of single tensors for the tests."""

from __future__ import annotations

from typing import Any

import torch

from opq.base.dtypes import dtype_name
from opq.plan import TensorPlan


def planned(name: str, shape: tuple[int, ...], dtype: str = "F32", **fields: Any) -> TensorPlan:
    """A tensor on a grid, unless the fields say otherwise."""
    usual: dict[str, Any] = {"action": "compress", "reason": "2-D weight"}
    usual |= {"step": 0.03125, "threshold": 0.01875, "rounding": 0.6}
    return TensorPlan(name=name, shape=shape, dtype=dtype, **(usual | fields))


def kept(name: str, tensor: torch.Tensor) -> TensorPlan:
    shape = tuple(tensor.shape)
    return TensorPlan(name=name, shape=shape, dtype=dtype_name(tensor.dtype), action="keep", reason="one-dimensional")
