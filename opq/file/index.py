"""The index of a file: the Plan and where each tensor's bytes are, as one stack of symbols.

In order: the number of tensors, one text of all names and reasons, the budget, the rows (`index_rows`), the steps of
the fine grids, and the columns (`index_columns`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from opq.base.format_v1 import (
    BUDGET_KINDS,
    COLUMNS,
    LONGEST_NUMBER,
    MOST_ELEMENTS,
    most_symbols,
    most_tensors,
    most_text,
)
from opq.coding import numbers, text
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError, OptionError, WriteError
from opq.file.index_columns import put_column, take_column
from opq.file.index_rows import Rows
from opq.file.payload import Place as Place
from opq.file.stored import Fine
from opq.plan import Budget, Plan, TensorPlan

_T = TypeVar("_T")


def encode(plan: Plan, places: Sequence[Place]) -> bytes:
    """The bytes of the index; `places` are in the order of the plan's tensors."""
    return _put(plan, places).finish()


def encode_whole(plan: Plan, places: Sequence[Place]) -> bytes:
    """`encode` for a file: what an index cannot hold, or a reader would refuse, is refused here.

    Raises:
        WriteError: a file cannot hold a name or a shape, or there are too many tensors or too long names.
    """
    for tensor in plan:
        _writable(tensor)
    stack = _put(plan, places)
    data = stack.finish()
    _within_limits(plan, len(stack), len(data))
    return data


def _put(plan: Plan, places: Sequence[Place]) -> StackWriter:
    writer = StackWriter()
    writer.uint(len(plan))
    reasons = tuple(dict.fromkeys(t.reason for t in plan))
    text.put(writer, _text(plan, reasons))
    _put_budget(writer, plan)
    rows = Rows(reasons, {t.name: k for k, t in enumerate(plan)})
    for tensor, place in zip(plan, places, strict=True):
        rows.put(writer, tensor, place)
    numbers.put(writer, [p.number for p in places if p.kind == Fine.kind])
    for name in COLUMNS:
        put_column(writer, name, plan.tensors)
    return writer


def _text(plan: Plan, reasons: Sequence[str]) -> str:
    """The text of the index: the method, all names and all reasons, one in each line."""
    return "\n".join(map(_escaped, [plan.method, *(t.name for t in plan), *reasons]))


def decode(data: bytes | memoryview) -> tuple[Plan, list[Place]]:
    """The inverse of `encode`.

    Raises:
        CorruptFileError: the bytes are not an index, or hold an impossible plan.
        NewerFormatError: this version does not know a kind of tensor or an element type.
    """
    reader = StackReader(data, most=most_symbols(len(data)))
    number = reader.uint()
    if number > most_tensors(len(data)):
        raise CorruptFileError("more tensors than the index can name", got=number)
    method, names, reasons = _strings(text.take(reader, most_text(len(data))), number)
    fields = _take_budget(reader)
    taken = Rows(reasons, {})
    rows = [taken.take(reader, names) for _ in range(number)]
    fine = [k for k, row in enumerate(rows) if row.place.kind == Fine.kind]
    steps = numbers.take(reader, len(fine), lambda i: f"the step of tensor {rows[fine[i]].name!r}")
    for k, step in zip(fine, steps, strict=True):
        rows[k] = dataclasses.replace(rows[k], place=dataclasses.replace(rows[k].place, number=step))
    columns: dict[str, list[float]] = {}
    for name in COLUMNS:
        columns[name] = take_column(reader, name, rows, columns)
    reader.finish()
    each = zip(*columns.values(), strict=True)
    tensors = (row.plan(dict(zip(COLUMNS, values, strict=True))) for row, values in zip(rows, each, strict=True))
    return _checked(lambda: Plan(method=method, tensors=tuple(tensors), **fields)), [row.place for row in rows]


def _writable(tensor: TensorPlan) -> None:
    """Raises `WriteError` on a name or a shape that an index cannot hold."""
    try:
        tensor.name.encode()
    except UnicodeEncodeError as error:
        remedy = "Rename the tensor."
        raise WriteError(f"a name that is no text: {tensor.name!r}", got=error.reason, remedy=remedy) from error
    longest = max(tensor.shape, default=0)
    if longest >= 1 << LONGEST_NUMBER or math.prod(max(n, 1) for n in tensor.shape) >= MOST_ELEMENTS:
        got, wanted = tensor.shape, f"axes below 2^{LONGEST_NUMBER}, a product below {MOST_ELEMENTS}"
        remedy = "Drop the tensor: it cannot be stored."
        raise WriteError(f"tensor {tensor.name!r}: a shape that no file holds", got=got, wanted=wanted, remedy=remedy)


def _within_limits(plan: Plan, symbols: int, size: int) -> None:
    """Raises `WriteError` if a reader would refuse an index of so many symbols and bytes."""
    characters = len(_text(plan, tuple(dict.fromkeys(t.reason for t in plan))).encode())
    for what, got, most in (
        ("more tensors than an index can name", len(plan), most_tensors(size)),
        ("names of more bytes than an index can hold", characters, most_text(size)),
        ("more symbols than an index can hold", symbols, most_symbols(size)),
    ):
        if got > most:
            longest = max((t.name for t in plan), key=len, default="")
            remedy = "Compress the model into a folder of shards, or shorten the names."
            fact = f"{what} (the longest name has {len(longest):,} characters)"
            raise WriteError(fact, got=got, wanted=f"at most {most}", remedy=remedy)


def _strings(whole: str, number: int) -> tuple[str, list[str], list[str]]:
    """The method, the names of `number` tensors, and the reasons, which are at most as many."""
    lines = 1 + whole.count("\n")
    if not 1 + number <= lines <= 1 + 2 * number:
        fact = "fewer names than tensors" if lines < 1 + number else "more reasons than tensors"
        raise CorruptFileError(fact, got=lines, wanted=f"{1 + number} to {1 + 2 * number} lines")
    strings = [_unescaped(s) for s in whole.split("\n")]
    names = strings[1 : 1 + number]
    if len(set(names)) < number:
        raise CorruptFileError(
            "the index names a tensor twice", got=next(n for n, k in Counter(names).items() if k > 1)
        )
    return strings[0], names, strings[1 + number :]


def _put_budget(writer: StackWriter, plan: Plan) -> None:
    kind = len(BUDGET_KINDS) if plan.budget is None else BUDGET_KINDS.index(plan.budget.kind)
    writer.put(kind, uniform(len(BUDGET_KINDS) + 1))
    if plan.budget is not None:
        numbers.put(writer, [float(plan.budget.value)])
    numbers.put(writer, [plan.multiplier])
    numbers.put(writer, [plan.residual])
    writer.uint(plan.predicted_bytes)


def _take_budget(reader: StackReader) -> dict[str, Any]:
    kind = reader.take(uniform(len(BUDGET_KINDS) + 1))
    budget = None
    if kind < len(BUDGET_KINDS):
        (value,) = numbers.take(reader, 1, lambda _: "the budget")
        budget = _checked(lambda: Budget(BUDGET_KINDS[kind], value))  # type: ignore[arg-type]
    (multiplier,) = numbers.take(reader, 1, lambda _: "the multiplier")
    (residual,) = numbers.take(reader, 1, lambda _: "the residual")
    return {"budget": budget, "multiplier": multiplier, "residual": residual, "predicted_bytes": reader.uint()}


def _checked(make: Callable[[], _T]) -> _T:
    """Makes a plan or a budget; if its own checks refuse it, the file is corrupt."""
    try:
        return make()
    except OptionError as error:
        raise CorruptFileError("the index holds a plan that cannot be", got=error.fact) from error


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace("\n", "\\n")


def _unescaped(line: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in line.split("\\\\"))
