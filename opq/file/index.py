"""The index of a file: the Plan and where each tensor lies, as one stack of symbols."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from opq.base.dtypes import DTYPES
from opq.base.format_v1 import (
    BUDGET_KINDS,
    COLUMNS,
    DTYPE_NAMES,
    KIND_NAMES,
    KIND_WEIGHTS,
    LONGEST_NUMBER,
    MOST_ELEMENTS,
    OWN_ENTRY_WEIGHTS,
    RANK_WEIGHTS,
    SAME_SHAPE_WEIGHTS,
    SMALL_WEIGHTS,
    TYPE_WEIGHTS,
    WIDE_WEIGHTS,
    most_symbols,
    most_tensors,
    most_text,
)
from opq.coding import numbers, text
from opq.coding.adaptive import Adaptive, AdaptiveNumber
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError, NewerFormatError, OptionError, WriteError
from opq.file.payload import Place as Place
from opq.file.payload import Stored
from opq.file.stored import KINDS, Fine, Log, Raw, Scalar, Share
from opq.plan import Budget, Plan, TensorPlan, is_vector

_T = TypeVar("_T")

_DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(TensorPlan)}
_PLAIN, _TIED, _DEFAULT = 0, 1, 2
"""How a column of the plan is held: as numbers; as rounding times step; all at the default."""
_COLUMN = uniform(4)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What the index says of one tensor, but for the columns of its plan's numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str
    place: Place
    like: str | None = None
    """Of `share`: the tensor that holds the values."""

    @property
    def kind(self) -> type[Stored | Share]:
        """The class of its kind."""
        return KINDS[KIND_NAMES.index(self.place.kind)]

    def plan(self, numbers: Mapping[str, float]) -> TensorPlan:
        """The tensor's plan; `numbers` are those of the columns."""
        fields: dict[str, Any] = dict(numbers)
        if self.kind.action == "compress":
            fields["codebook"] = self.place.kind
        if self.kind is Raw and is_vector(self.shape, self.dtype):
            fields["exact"] = True
        return TensorPlan(
            name=self.name,
            shape=self.shape,
            dtype=self.dtype,
            action=self.kind.action,
            reason=self.reason,
            like=self.like,
            **fields,
        )


def encode(plan: Plan, places: Sequence[Place]) -> bytes:
    """The index; `places` are in the order of the plan's tensors."""
    return _put(plan, places).finish()


def encode_whole(plan: Plan, places: Sequence[Place]) -> bytes:
    """`encode` for a file that will be read: what the index cannot say, or a reader would refuse, is refused here.

    Raises:
        WriteError: a name or a shape has no place in a file, or there are too many tensors or too long names.
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
    rows = _Rows(reasons, {t.name: k for k, t in enumerate(plan)})
    for tensor, place in zip(plan, places, strict=True):
        rows.put(writer, tensor, place)
    numbers.put(writer, [p.number for p in places if p.kind == Fine.kind])
    for name in COLUMNS:
        _put_column(writer, name, plan.tensors)
    return writer


def _text(plan: Plan, reasons: Sequence[str]) -> str:
    return "\n".join(map(_escaped, [plan.method, *(t.name for t in plan), *reasons]))


def decode(data: bytes | memoryview) -> tuple[Plan, list[Place]]:
    """The inverse of `encode`.

    Raises:
        CorruptFileError: the bytes are no index, or hold a plan that cannot be.
        NewerFormatError: a kind of tensor or element type that this version does not know.
    """
    reader = StackReader(data, most=most_symbols(len(data)))
    number = reader.uint()
    if number > most_tensors(len(data)):
        raise CorruptFileError("more tensors than the index can name", got=number)
    method, names, reasons = _strings(text.take(reader, most_text(len(data))), number)
    fields = _take_budget(reader)
    taken = _Rows(reasons, {})
    rows = [taken.take(reader, names) for _ in range(number)]
    fine = [k for k, row in enumerate(rows) if row.place.kind == Fine.kind]
    steps = numbers.take(reader, len(fine), lambda i: f"the step of tensor {rows[fine[i]].name!r}")
    for k, step in zip(fine, steps, strict=True):
        rows[k] = dataclasses.replace(rows[k], place=dataclasses.replace(rows[k].place, number=step))
    columns: dict[str, list[float]] = {}
    for name in COLUMNS:
        columns[name] = _take_column(reader, name, rows, columns)
    reader.finish()
    each = zip(*columns.values(), strict=True)
    tensors = (row.plan(dict(zip(COLUMNS, values, strict=True))) for row, values in zip(rows, each, strict=True))
    return _checked(lambda: Plan(method=method, tensors=tuple(tensors), **fields)), [row.place for row in rows]


def _writable(tensor: TensorPlan) -> None:
    """Raises `WriteError` on a name or a shape that the index has no way to say."""
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
    """Raises `WriteError` where a reader would refuse an index of so many symbols and bytes."""
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
    """The method, the names of so many tensors and the reasons, of which there are no more than tensors."""
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


class _Rows:
    """One tensor after the other, each learning from those before."""

    def __init__(self, reasons: Sequence[str], numbers: dict[str, int]):
        self.reasons, self.numbers = reasons, numbers
        self.number_of = {reason: k for k, reason in enumerate(reasons)}
        self.kinds = [Adaptive(KIND_WEIGHTS) for _ in KIND_WEIGHTS]
        self.dtypes = Adaptive(TYPE_WEIGHTS)
        self.ranks = Adaptive(RANK_WEIGHTS)
        self.same = Adaptive(SAME_SHAPE_WEIGHTS)
        self.own = Adaptive(OWN_ENTRY_WEIGHTS)
        self.wide = AdaptiveNumber(WIDE_WEIGHTS)
        self.small = AdaptiveNumber(SMALL_WEIGHTS)
        self.kind = 0
        self.shape: tuple[int, ...] = ()

    def put(self, writer: StackWriter, tensor: TensorPlan, place: Place) -> None:
        kind = KIND_NAMES.index(place.kind)
        self.kinds[self.kind].put(writer, kind)
        self.dtypes.put(writer, DTYPE_NAMES.index(tensor.dtype))
        self.small.put(writer, self.number_of[tensor.reason])
        self.same.put(writer, int(tensor.shape == self.shape))
        if tensor.shape != self.shape:
            self.ranks.put(writer, len(tensor.shape))
            for length in tensor.shape:
                self.wide.put(writer, length)
        self.kind, self.shape = kind, tensor.shape
        if place.kind == Share.kind:
            self.small.put(writer, self.numbers[str(tensor.like)])
        elif place.kind == Scalar.kind:
            writer.sint(int(place.number))
        else:
            self._put_place(writer, place)

    def _put_place(self, writer: StackWriter, place: Place) -> None:
        if place.kind == Log.kind:
            self.small.put(writer, int(place.number))
        self.wide.put(writer, place.length)
        self.own.put(writer, int(place.checksum is not None))
        if place.checksum is not None:
            writer.number(place.checksum, 32)

    def take(self, reader: StackReader, names: Sequence[str]) -> Row:
        number = len(self.numbers)
        name = names[number]
        self.numbers[name] = number
        self.kind = self.kinds[self.kind].take(reader)
        kind = _known(KIND_NAMES, self.kind, "kind of tensor")
        dtype = _known(DTYPE_NAMES, self.dtypes.take(reader), "element type")
        if dtype not in DTYPES:
            raise NewerFormatError(f"tensor {name!r}: this torch has no such type", got=dtype)
        reason = _listed(self.reasons, self.small.take(reader), "reason")
        if not self.same.take(reader):
            self.shape = tuple(self.wide.take(reader) for _ in range(self.ranks.take(reader)))
        like = _listed(names, self.small.take(reader), "shared tensor") if kind == Share.kind else None
        return Row(name, self.shape, dtype, reason, self._take_place(reader, kind), like)

    def _take_place(self, reader: StackReader, kind: str) -> Place:
        if kind == Share.kind:
            return Place(kind, 0)
        if kind == Scalar.kind:
            return Place(kind, 0, number=reader.sint())
        number = self.small.take(reader) if kind == Log.kind else 0
        length = self.wide.take(reader)
        return Place(kind, length, reader.number(32) if self.own.take(reader) else None, number)


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


def _put_column(writer: StackWriter, name: str, tensors: Sequence[TensorPlan]) -> None:
    """One field of the compressed tensors, or of all where another tensor has it too."""
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


def _take_column(
    reader: StackReader, name: str, rows: Sequence[Row], before: Mapping[str, Sequence[float]]
) -> list[float]:
    """The values of one column, tensor by tensor; `before` are the columns taken already."""
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


def _known(known: Sequence[str], number: int, what: str) -> str:
    if number >= len(known):
        raise NewerFormatError(f"an unknown {what}", got=number, wanted=f"below {len(known)}")
    return known[number]


def _listed(known: Sequence[str], number: int, what: str) -> str:
    if number >= len(known):
        raise CorruptFileError(f"the number of a {what} is too large", got=number, wanted=f"below {len(known)}")
    return known[number]


def _checked(make: Callable[[], _T]) -> _T:
    """A plan or budget that its own checks refuse is a corrupt file."""
    try:
        return make()
    except OptionError as error:
        raise CorruptFileError("the index holds a plan that cannot be", got=error.fact) from error


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace("\n", "\\n")


def _unescaped(line: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in line.split("\\\\"))
