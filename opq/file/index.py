"""The index of a file: the Plan and where each tensor lies, as one stack of symbols."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from opq.base.dtypes import DTYPES
from opq.coding import numbers, text
from opq.coding.adaptive import Adaptive, AdaptiveNumber
from opq.coding.stack import StackReader, StackWriter, uniform
from opq.errors import CorruptFileError, NewerFormatError, OptionError
from opq.file.stored import COMPRESSED, KINDS, MOST_AXES
from opq.plan import COLUMNS, Budget, Plan, TensorPlan

_T = TypeVar("_T")

DTYPE_NAMES = (
    *("BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64"),
    *("C64", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"),
)
"""Element types by their numbers in the file; only ever appended to."""

_BUDGETS = ("bits", "ratio", "size")
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TensorPlan)}
_PLAIN, _PRODUCT, _DEFAULT = 0, 1, 2
"""How a column of the plan is held: as numbers; as rounding times step; all at the default."""
_COLUMN = uniform(4)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes are."""

    kind: str
    """One of `opq.file.stored.KINDS`."""
    length: int
    """Bytes of the payload."""
    checksum: int | None = None
    """CRC-32 of a payload that is an entry of its own; None where it lies in the common entry."""
    number: float = 0.0
    """Of `fine` the step, of `log` the codes an octave, of `scalar` the integer itself."""


def encode(plan: Plan, places: Sequence[Place]) -> bytes:
    """The index; `places` are in the order of the plan's tensors."""
    writer = StackWriter()
    writer.uint(len(plan))
    reasons = tuple(dict.fromkeys(t.reason for t in plan))
    text.put(writer, "\n".join(map(_escaped, [plan.method, *(t.name for t in plan), *reasons])))
    _put_budget(writer, plan)
    index = _Tensors(reasons, {t.name: k for k, t in enumerate(plan)})
    for tensor, place in zip(plan, places, strict=True):
        index.put(writer, tensor, place)
    fine = [p.number for p in places if p.kind == "fine"]
    numbers.put(writer, fine)
    for name in COLUMNS:
        _put_column(writer, name, plan.tensors)
    return writer.finish()


def decode(data: bytes | memoryview) -> tuple[Plan, list[Place]]:
    """The inverse of `encode`.

    Raises:
        CorruptFileError: the bytes are no index, or hold a plan that cannot be.
        NewerFormatError: a kind of tensor or element type that this version does not know.
    """
    reader = StackReader(data)
    number = reader.uint()
    if number > 64 + 2 * len(data):
        raise CorruptFileError("more tensors than the index can name", got=number)
    strings = [_unescaped(s) for s in text.take(reader, 65536 + 64 * len(data)).split("\n")]
    if len(strings) < 1 + number:
        raise CorruptFileError("fewer names than tensors", got=len(strings), wanted=1 + number)
    method, names, reasons = strings[0], strings[1 : 1 + number], strings[1 + number :]
    fields = _take_budget(reader)
    index = _Tensors(tuple(reasons), {})
    rows = [index.take(reader, names) for _ in range(number)]
    steps = iter(numbers.take(reader, sum(kind["place"]["kind"] == "fine" for kind in rows)))
    for row in rows:
        if row["place"]["kind"] == "fine":
            row["place"]["number"] = next(steps)
    places = [Place(**row.pop("place")) for row in rows]
    for name in COLUMNS:
        _take_column(reader, name, rows)
    reader.finish()
    return _checked(lambda: Plan(method=method, tensors=tuple(TensorPlan(**row) for row in rows), **fields)), places


class _Tensors:
    """One tensor after the other, each learning from those before."""

    def __init__(self, reasons: tuple[str, ...], numbers: dict[str, int]):
        self.reasons, self.numbers = reasons, numbers
        self.kinds = [Adaptive([8] * 16) for _ in range(16)]
        self.dtypes = Adaptive([4] * 32)
        self.ranks = Adaptive([4] * (MOST_AXES + 1))
        self.same = Adaptive([1, 1])
        self.own = Adaptive([2, 1])
        self.wide = AdaptiveNumber([4] * 41)
        self.small = AdaptiveNumber([4] * 25)
        self.kind = 0
        self.shape: tuple[int, ...] = ()

    def put(self, writer: StackWriter, tensor: TensorPlan, place: Place) -> None:
        kind = KINDS.index(place.kind)
        self.kinds[self.kind].put(writer, kind)
        self.dtypes.put(writer, DTYPE_NAMES.index(tensor.dtype))
        self.small.put(writer, self.reasons.index(tensor.reason))
        self.same.put(writer, int(tensor.shape == self.shape))
        if tensor.shape != self.shape:
            self.ranks.put(writer, len(tensor.shape))
            for length in tensor.shape:
                self.wide.put(writer, length)
        self.kind, self.shape = kind, tensor.shape
        if place.kind == "share":
            self.small.put(writer, self.numbers[str(tensor.like)])
        elif place.kind == "scalar":
            writer.sint(int(place.number))
        else:
            self._put_place(writer, place)

    def _put_place(self, writer: StackWriter, place: Place) -> None:
        if place.kind == "log":
            self.small.put(writer, int(place.number))
        self.wide.put(writer, place.length)
        self.own.put(writer, int(place.checksum is not None))
        if place.checksum is not None:
            writer.number(place.checksum, 32)

    def take(self, reader: StackReader, names: Sequence[str]) -> dict[str, Any]:
        number = len(self.numbers)
        name = names[number]
        self.numbers[name] = number
        self.kind = self.kinds[self.kind].take(reader)
        kind = _of(KINDS, self.kind, "kind of tensor")
        dtype = _of(DTYPE_NAMES, self.dtypes.take(reader), "element type")
        if dtype not in DTYPES:
            raise NewerFormatError(f"tensor {name!r}: this torch has no such type", got=dtype)
        reason = _listed(self.reasons, self.small.take(reader), "reason")
        if not self.same.take(reader):
            self.shape = tuple(self.wide.take(reader) for _ in range(self.ranks.take(reader)))
        row: dict[str, Any] = {"name": name, "shape": self.shape, "dtype": dtype, "reason": reason}
        row["action"] = "compress" if kind in COMPRESSED else "share" if kind == "share" else "keep"
        row |= {"codebook": kind} if kind in COMPRESSED else {}
        row["place"] = {"kind": kind, "length": 0}
        if kind == "share":
            row["like"] = _listed(names, self.small.take(reader), "shared tensor")
        elif kind == "scalar":
            row["place"]["number"] = reader.sint()
        else:
            row["place"] |= self._take_place(reader, kind)
        return row

    def _take_place(self, reader: StackReader, kind: str) -> dict[str, Any]:
        number = self.small.take(reader) if kind == "log" else 0
        length = self.wide.take(reader)
        return {"number": number, "length": length, "checksum": reader.number(32) if self.own.take(reader) else None}


def _put_budget(writer: StackWriter, plan: Plan) -> None:
    kind = len(_BUDGETS) if plan.budget is None else _BUDGETS.index(plan.budget.kind)
    writer.put(kind, uniform(len(_BUDGETS) + 1))
    if plan.budget is not None:
        numbers.put(writer, [float(plan.budget.value)])
    numbers.put(writer, [plan.multiplier])
    numbers.put(writer, [plan.residual])
    writer.uint(plan.predicted_bytes)


def _take_budget(reader: StackReader) -> dict[str, Any]:
    kind = reader.take(uniform(len(_BUDGETS) + 1))
    budget = None
    if kind < len(_BUDGETS):
        (value,) = numbers.take(reader, 1)
        budget = _checked(lambda: Budget(_BUDGETS[kind], value))  # type: ignore[arg-type]
    (multiplier,), (residual,) = numbers.take(reader, 1), numbers.take(reader, 1)
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
    writer.put(_PRODUCT if tied else _PLAIN, _COLUMN)
    writer.put(int(everywhere), uniform(2))
    if not tied:
        numbers.put(writer, [float(getattr(t, name)) for t in chosen])


def _take_column(reader: StackReader, name: str, rows: Sequence[dict[str, Any]]) -> None:
    held = reader.take(_COLUMN)
    if held == _DEFAULT:
        return
    everywhere = reader.take(uniform(2))
    chosen = [row for row in rows if everywhere or row["action"] == "compress"]
    if held == _PLAIN:
        for row, value in zip(chosen, numbers.take(reader, len(chosen)), strict=True):
            row[name] = value
    elif held == _PRODUCT:
        for row in chosen:
            row[name] = row.get("rounding", _DEFAULTS["rounding"]) * row.get("step", _DEFAULTS["step"])
    else:
        raise CorruptFileError(f"the column {name} is held in no known way", got=held)


def _of(known: Sequence[str], number: int, what: str) -> str:
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
