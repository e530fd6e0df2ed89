"""Files for the reader in JavaScript, and the comparison of what it finds with what Python reads."""

from __future__ import annotations

from typing import Any

import node
import numpy as np
import torch

from opq.base.dtypes import DTYPES
from opq.file.folder_reader import FolderReader
from opq.file.reader import Reader
from opq.file.stored import Stored
from opq.file.writer import pack
from opq.plan import Plan, TensorPlan


def made(*pairs: tuple[TensorPlan, Stored]) -> bytes:
    plan = Plan(method="rd", tensors=tuple(tensor for tensor, _ in pairs))
    return b"".join(pack(plan, [item for _, item in pairs]).parts)


def laplace(rng: np.random.Generator, *shape: int, scale: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.clip(np.rint(rng.laplace(size=shape) * scale), -32767, 32767).astype(np.int16)


def assert_same(found: dict[str, Any], reader: Reader | FolderReader) -> None:
    """What the module has found is what Python reads."""
    assert "error" not in found, found["error"]["stack"]
    assert [t["name"] for t in found["tensors"]] == list(reader.names)
    for told, plan in zip(found["tensors"], reader.plan, strict=True):
        assert (tuple(told["shape"]), told["dtype"], told["action"]) == (plan.shape, plan.dtype, plan.action)
        assert told["kind"] == reader.kind(plan.name)
        assert told["bytes"] == reader.sizes[plan.name]
        assert told.get("like") == plan.like
        if told["kind"] != "fine":
            assert float(told["step"]) == plan.step
        for field in ("reason", "rounding", "threshold", "sensitivity", "rate", "density", "distortion"):
            wanted = getattr(plan, field)
            assert type(wanted)(told[field]) == wanted
    assert found["size"] == reader.bytes
    assert found["plan"]["method"] == reader.plan.method
    assert found["plan"]["predictedBytes"] == reader.plan.predicted_bytes
    if "tensor" in found:
        assert [t["name"] for t in found["tensor"]] == list(reader.names)
    if "stream" in found:
        assert sorted(t["name"] for t in found["stream"]) == sorted(reader.names)
    for told in (*found.get("tensor", ()), *found.get("stream", ())):
        tensor = reader.tensor(told["name"])
        assert tuple(told["shape"]) == tuple(tensor.shape)
        assert DTYPES[told["dtype"]] == tensor.dtype
        assert told["digest"] == node.digest(tensor), told["name"]
    for told in found.get("codes", ()):
        codes = torch.from_numpy(reader.codes(told["name"]))
        assert (told["dtype"], tuple(told["shape"])) == ("I16", tuple(codes.shape))
        assert told["digest"] == node.digest(codes), told["name"]
