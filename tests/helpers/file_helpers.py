"""The smallest file, and files in memory."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import torch
from fuzz import with_common
from plans import kept, planned

from opq.file import index
from opq.file.payload import Coded, Place, Stored
from opq.file.stored import Grid, Raw
from opq.file.writer import Packed
from opq.plan import Plan


def small() -> tuple[Plan, list[Stored]]:
    """One compressed and one kept tensor: the worked example of docs/format.md."""
    plan = Plan(method="rd", tensors=(planned("w", (2, 8), reason="2-D weight"), kept("b", torch.tensor([1.0, -2.0]))))
    codes = np.array([[0, 1, 0, -1, 0, 0, 2, 0], [0, 0, -1, 0, 1, 0, 0, 0]], np.int16)
    return plan, [Grid("w", codes), Raw("b", torch.tensor([1.0, -2.0]))]


def codes_in(item: Stored) -> npt.NDArray[np.integer]:
    """The codes of an item of a kind that has some."""
    assert isinstance(item, Coded)
    return item.read()


def in_memory(data: bytes) -> Packed:
    return Packed((data,), {}, {})


def bytes_of(packed: Packed) -> bytes:
    return b"".join(packed.parts)


def uncounted(data: bytes) -> bytes:
    """A file without the number of its weights, as files were written before they told it."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    del header["__metadata__"]["total_parameters"]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def with_index(plan: Plan, places: list[Place], payloads: bytes = b"") -> bytes:
    """A signed file whose index says whatever it likes."""
    head = index.encode(plan, places)
    return with_common(len(head).to_bytes(4, "little") + head + payloads)
