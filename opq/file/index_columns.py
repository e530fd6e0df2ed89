"""The columns of an index: the numbers of all tensors' plans, one field after the other (`format_v1.COLUMNS`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from opq.coding import numbers
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError
from opq.file.index_rows import Row
from opq.plan import TensorPlan

_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(TensorPlan)}
_PLAIN, _TIED, _DEFAULT = 0, 1, 2
"""How a column is held: as numbers; as rounding times step; all numbers have the default value."""
_COLUMN = uniform(4)


def put_column(writer: StackWriter, name: str, tensors: Sequence[TensorPlan]) -> None:
    """Writes one field of the compressed tensors, or of all tensors if another one does not have the default value."""
    default = _DEFAULTS[name]
    if all(getattr(t, name) == default for t in tensors):
        writer.put(_DEFAULT, _COLUMN)
        return
    everywhere = any(getattr(t, name) != default for t in tensors if t.action != "compress")
    chosen = [t for t in tensors if everywhere or t.action == "compress"]
    tied = name == "threshold" and all(t.threshold == t.rounding * t.step for t in chosen)
    writer.put(_TIED if tied else _PLAIN, _COLUMN)
    writer.put(int(everywhere), uniform(2))
    if not tied:
        numbers.put(writer, [float(getattr(t, name)) for t in chosen])


def take_column(
    reader: StackReader, name: str, rows: Sequence[Row], before: Mapping[str, Sequence[float]]
) -> list[float]:
    """The values of one column, tensor by tensor; `before` holds the columns that were read before."""
    values = [float(_DEFAULTS[name])] * len(rows)
    held = reader.take(_COLUMN)
    if held == _DEFAULT:
        return values
    if held not in (_PLAIN, _TIED):
        raise CorruptFileError(f"the column {name} is held in no known way", got=held)
    everywhere = reader.take(uniform(2))
    chosen = [k for k, row in enumerate(rows) if everywhere or row.kind.action == "compress"]
    if held == _PLAIN:
        found = numbers.take(reader, len(chosen), lambda i: f"the {name} of tensor {rows[chosen[i]].name!r}")
    else:
        rounding, step = (before.get(n, [float(_DEFAULTS[n])] * len(rows)) for n in ("rounding", "step"))
        found = [rounding[k] * step[k] for k in chosen]
    for k, value in zip(chosen, found, strict=True):
        if not math.isfinite(value):
            raise CorruptFileError(f"the {name} of tensor {rows[k].name!r} is not finite", got=value)
        values[k] = value
    return values
