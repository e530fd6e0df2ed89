"""The Plan: what is decided for every tensor, before any tensor is changed. A plan is immutable.

Letters: `a` sensitivity, `step` = Delta, `threshold` = half the dead zone in units of the weight,
`rate` in bits per weight, `distortion` the mean squared error per weight, `multiplier` = lambda.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from opq.base import tables
from opq.base.dtypes import torch_dtype
from opq.base.format_v1 import BUDGET_KINDS
from opq.base.format_v1 import COLUMNS as COLUMNS
from opq.base.format_v1 import LARGEST_CODE as LARGEST_CODE
from opq.base.rounding import rounded
from opq.base.tables import Column, counted, printable, some
from opq.errors import BudgetError, MismatchError, OptionError

SMALLEST_BUDGET, LARGEST_BUDGET = 1e-30, 1e30
"""The range of a budget's number. A choice: wider than any use, and products of such numbers do not overflow."""
LARGEST_FILE = 2.0**40
"""Bytes to which a larger budget is reduced. A choice: 1 TiB is more than one file ever needs."""

Action = Literal["compress", "keep", "share"]
BudgetKind = Literal["bits", "ratio", "size"]


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """How small the file has to be.

    `bits` is 8 x bytes of the file / elements of the source's floating-point tensors, tied tensors counted once;
    `ratio` is bytes of the source's tensors / bytes of the file; `size` is bytes of the file.
    """

    kind: BudgetKind
    value: float

    def __post_init__(self) -> None:
        if isinstance(self.value, np.generic):
            object.__setattr__(self, "value", self.value.item())
        if self.kind not in BUDGET_KINDS:
            raise BudgetError("unknown budget", got=repr(self.kind), wanted="bits, ratio or size")
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise BudgetError(
                f"{self.kind}= is not a number",
                got=repr(self.value),
                wanted="a positive number",
                remedy=f"Pass a number, for example {self.kind}=3.",
            )
        if not (math.isfinite(self.value) and self.value > 0):
            raise BudgetError(
                f"{self.kind}= is not positive and finite",
                got=self.value,
                wanted="a positive number",
                remedy=f"Pass a positive number, for example {self.kind}=3.",
            )
        if not SMALLEST_BUDGET <= self.value <= LARGEST_BUDGET:
            wanted = f"a number from {SMALLEST_BUDGET:g} to {LARGEST_BUDGET:g}"
            raise BudgetError(f"{self.kind}= is beyond all bounds", got=self.value, wanted=wanted,
                              remedy=f"Pass a number of use, for example {self.kind}=3.")  # fmt: skip

    @classmethod
    def of(cls, *, bits: float | None = None, ratio: float | None = None, size: float | None = None) -> Budget:
        """The budget from the one option that is given; raises `BudgetError` unless exactly one is."""
        given = {k: v for k, v in {"bits": bits, "ratio": ratio, "size": size}.items() if v is not None}
        if len(given) != 1:
            got = ", ".join(f"{k}={v}" for k, v in given.items()) or "none of them"
            raise BudgetError("the budget is not one option", got=got, wanted="exactly one of bits=, ratio=, size=")
        ((kind, value),) = given.items()
        return cls(kind, value)  # type: ignore[arg-type]

    def bytes(self, *, elements: int, source_bytes: int) -> float:
        """The file size in bytes that this budget allows."""
        sizes = {"bits": self.value * elements / 8, "ratio": source_bytes / self.value, "size": float(self.value)}
        return min(sizes[self.kind], LARGEST_FILE)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """What happens to one tensor.

    A compressed weight `w` becomes the integer `sign(w) max(1, floor(|w|/step + 1 - rounding))` where
    `|w| >= threshold`, else 0; it is decoded as `step` times that integer. Method `rd` has
    `threshold = rounding * step` (a uniform threshold quantizer with dead zone); the paper's `opq` has
    `rounding = 1/2` and a separate threshold. On a `trellis` the integers are those of
    `opq.quantizing.trellis.nearest`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    """The source's element type by its safetensors name: F32, F16, BF16, F64, I64, ..."""
    action: Action
    reason: str
    """The reason for the action, in words, for the report. No code depends on it."""
    like: str | None = None
    """For `share`: the tensor that holds the values."""
    codebook: str = "grid"
    """`grid` (multiples of the step), `trellis` (multiples that form a path of the trellis), `trellis-turned` (the same
    where the first axis counts no outputs), `grid-rows`, `trellis-rows`, `grid-turned-rows` and `trellis-turned-rows`
    (with a step for each row, of which `step` is the median row's), `grid-columns` and `trellis-columns` (the same,
    times a factor for each column), `table` (a list of values) or `product` (a list of vectors)."""
    step: float = 0.0
    threshold: float = 0.0
    rounding: float = 0.5
    sensitivity: float = 1.0
    rate: float = 0.0
    """Predicted bits per weight of the coded integers."""
    density: float = 1.0
    """Predicted fraction of weights that are not zero; on a trellis, of the plain grid that it takes the place of."""
    distortion: float = 0.0
    """Predicted mean squared error per weight."""
    exact: bool = dataclasses.field(default=False, compare=False)
    """For `keep`: stored bit for bit, because the user wishes it or because the numbers must not change. Ignored when
    plans are compared: a file shows how a vector is stored, not whether it could have been stored in another way."""
    largest: int = dataclasses.field(default=LARGEST_CODE, compare=False)
    """The largest magnitude that a code may have, where the user bounds it. Not compared: no file holds it."""

    def __post_init__(self) -> None:
        if self.action not in ("compress", "keep", "share"):
            raise OptionError(
                f"tensor {self.name!r}: unknown action", got=self.action, wanted="compress, keep or share"
            )
        if self.stepped and not (self.step > 0 and math.isfinite(self.step)):
            raise OptionError(f"tensor {self.name!r}: bad step", got=self.step, wanted="a positive number")
        if (self.action == "share") != (self.like is not None):
            raise OptionError(f"tensor {self.name!r}: `like` goes with action 'share'", got=self.like)

    def __repr__(self) -> str:
        """The call that makes it, in one line: what has its default is left out."""
        given = {name: float(v) if isinstance(v, float) else v for name, v in _spare(self).items()}
        return f"TensorPlan({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @property
    def stepped(self) -> bool:
        """Whether the tensor is compressed to multiples of a step, one for the tensor or one for each row."""
        return self.action == "compress" and self.codebook.startswith(("grid", "trellis"))

    @property
    def on_trellis(self) -> bool:
        """Whether its codes form paths of a trellis."""
        return self.codebook.startswith("trellis")

    @property
    def by_row(self) -> bool:
        """Whether each row has a step of its own, which the file's payload holds."""
        return self.codebook.endswith(("-rows", "-columns"))

    @property
    def by_column(self) -> bool:
        """Whether each column has a factor of its own, which the file's payload holds."""
        return self.codebook.endswith("-columns")

    @property
    def turned(self) -> bool:
        """Whether its codes are stored as those of a matrix (outputs, inputs), as the file's payload says."""
        return "-turned" in self.codebook or self.by_column

    @property
    def vector(self) -> bool:
        """Whether it is kept and may be stored on a fine grid: one-dimensional, floating point, not `exact`."""
        return self.action == "keep" and not self.exact and is_vector(self.shape, self.dtype)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether the source's element type is a floating-point type."""
        return torch_dtype(self.dtype).is_floating_point

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor in the source's element type."""
        return self.size * torch_dtype(self.dtype).itemsize

    @property
    def dead_zone(self) -> float:
        """Half the dead zone in steps, theta."""
        return self.threshold / self.step if self.step else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The decisions for a whole model: a value that every later stage reads and none changes.

    `plan[name]` and `name in plan` take constant time.
    """

    method: str
    tensors: tuple[TensorPlan, ...]
    budget: Budget | None = None
    multiplier: float = 0.0
    """The dual scalar lambda: how much distortion one more bit takes away, the same in every tensor."""
    residual: float = 0.0
    """Relative violation of the Karush-Kuhn-Tucker conditions by this plan."""
    predicted_bytes: int = 0
    """Predicted size of the file."""
    basis: str = dataclasses.field(default="", compare=False)
    """What was decided by, in words: a probe of the model and what came of it, or the weights alone, and why. Not
    compared, and no code depends on it."""

    def __post_init__(self) -> None:
        if len(self._by_name) != len(self.tensors):
            names = Counter(t.name for t in self.tensors)
            twice = sorted(name for name, times in names.items() if times > 1)
            raise OptionError("a tensor stands twice in the plan", got=", ".join(twice[:5]))

    def __repr__(self) -> str:
        budget = "" if self.budget is None else f", {self.budget.kind}={self.budget.value:g}"
        size = f", {self.predicted_bytes:,} bytes predicted" if self.predicted_bytes else ""
        return f"<opq.Plan {self.method}{budget}: {self.summary}{size}>"

    def __str__(self) -> str:
        """One row a tensor, as wide as the terminal, and what is predicted."""
        drawn = tables.lines(TABLE, rows(self, self.predicted_sizes), tables.width_of_output())
        return "\n".join((*drawn, *self._notes))

    def _repr_html_(self) -> str:
        table = tables.html(TABLE, rows(self, self.predicted_sizes), total=len(self))
        return table + "".join(f"<p>{printable(note)}</p>" for note in self._notes)

    @property
    def _notes(self) -> tuple[str, ...]:
        """The lines below the table."""
        return (repr(self)[len("<opq.") : -1], *((f"By {self.basis}.",) if self.basis else ()))

    @property
    def summary(self) -> str:
        """How many tensors are compressed, kept and shared, in words."""
        count: Counter[str] = Counter(t.action for t in self.tensors)
        others = (f"{count[a]:,} {w}" for a, w in (("keep", "kept"), ("share", "shared")) if count[a])
        return ", ".join((f"{counted(count['compress'], 'tensor')} compressed", *others))

    @property
    def predicted_sizes(self) -> dict[str, int]:
        """Bytes of each tensor in the file as far as the plan foresees them; of a kept one its bytes as they are."""
        return {t.name: round(t.rate * t.size / 8) if t.action == "compress" else t.nbytes for t in self.own}

    def __iter__(self) -> Iterator[TensorPlan]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> TensorPlan:
        if name not in self._by_name:
            raise MismatchError(f"no tensor {name!r} in the plan", wanted=some(self._by_name))
        return self._by_name[name]

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone, for copies and pickles."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @functools.cached_property
    def _by_name(self) -> dict[str, TensorPlan]:
        return {t.name: t for t in self.tensors}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, in file order."""
        return tuple(self._by_name)

    @property
    def own(self) -> tuple[TensorPlan, ...]:
        """The tensors that hold values themselves, in file order: of tied tensors, the first."""
        return tuple(t for t in self.tensors if t.like is None)

    @property
    def elements(self) -> int:
        """Elements of the floating-point tensors, tied tensors counted once."""
        return sum(t.size for t in self.own if t.floating)

    @property
    def source_bytes(self) -> int:
        """Bytes of the dense tensors, tied tensors counted once."""
        return sum(t.nbytes for t in self.own)

    def holder(self, name: str) -> TensorPlan:
        """The tensor that holds the values of this one: itself, or the one that it shares."""
        tensor = self[name]
        return tensor if tensor.like is None else self[tensor.like]

    @property
    def compressed(self) -> tuple[TensorPlan, ...]:
        """The tensors that are pruned and quantized, in file order."""
        return tuple(t for t in self.tensors if t.action == "compress")

    def replace(self, **changes: Any) -> Plan:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, default values left out; floats are preserved exactly."""
        fields: dict[str, Any] = {"method": self.method, "tensors": [_spare(t) for t in self.tensors]}
        fields["budget"] = None if self.budget is None else [self.budget.kind, self.budget.value]
        fields |= {k: getattr(self, k) for k in ("multiplier", "residual", "predicted_bytes")}
        fields |= {"basis": self.basis} if self.basis else {}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of `to_json`; raises `OptionError` on anything else."""
        try:
            fields = json.loads(text)
            budget = fields.pop("budget")
            tensors = tuple(TensorPlan(**{**t, "shape": tuple(t["shape"])}) for t in fields.pop("tensors"))
            return cls(tensors=tensors, budget=None if budget is None else Budget(*budget), **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OptionError("not the JSON of a plan", got=error, remedy="Use what Plan.to_json() wrote.") from error


def is_vector(shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a tensor is one-dimensional and floating point, by its shape and the name of its element type."""
    return len(shape) == 1 and torch_dtype(dtype).is_floating_point


def _spare(tensor: TensorPlan) -> dict[str, Any]:
    """The fields of a tensor's plan that differ from their defaults."""
    fields = dataclasses.fields(tensor)
    return {f.name: v for f in fields if (v := getattr(tensor, f.name)) != f.default}


TABLE = (
    Column("tensor", least=24),
    Column("shape", leaves=4),
    Column("type", leaves=1),
    Column("action", leaves=6),
    Column("step", right=True, leaves=3),
    Column("dead zone", right=True, leaves=2),
    Column("sparsity", right=True, leaves=5),
    Column("bits/weight", right=True),
    Column("bytes", right=True),
    Column("why", least=22, words=True),
)
"""The columns of the report."""


def rows(
    plan: Plan, sizes: Mapping[str, int], densities: Mapping[str, float] | None = None
) -> Iterator[tuple[str, ...]]:
    """The cells of the report, one tuple a tensor, in the order of `TABLE`.

    Args:
        sizes: bytes of each tensor's payload in the file; 0 where it has none of its own.
        densities: measured fractions of weights that are not zero; the plan's predictions by default, which it has of
            plain grids only.
    """
    for tensor in plan:
        size = sizes.get(tensor.name, 0)
        predicted = None if tensor.on_trellis else tensor.density
        density = (densities or {}).get(tensor.name, predicted)
        yield (
            printable(tensor.name),
            "x".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype,
            tensor.action,
            *(_grid(tensor, density) if tensor.action == "compress" else ("", "", "")),
            f"{8 * size / tensor.size:.3f}" if tensor.size and tensor.action != "share" else "",
            f"{size:,}" if tensor.action != "share" else "",
            printable(tensor.reason),
        )


def _grid(tensor: TensorPlan, density: float | None) -> tuple[str, str, str]:
    """Step, dead zone and sparsity."""
    sparsity = "" if density is None else f"{1 - density:.1%}"
    if not tensor.stepped:
        return (tensor.codebook, "", sparsity)
    zone = "trellis" if tensor.on_trellis else f"{tensor.dead_zone:.3f}"
    by = " by output" if tensor.turned else " by row"
    by = " by row and column" if tensor.by_column else by if tensor.by_row else ""
    return (f"{tensor.step:.4g}{by}", zone, sparsity)


def as_stored(plan: Plan) -> Plan:
    """The plan with its numbers rounded so that a file holds each in two or three bytes (the multiplier in four).

    This is done before quantizing: a file can hold any plan exactly, but without rounding numbers take up to eight
    bytes each.
    """
    return plan.replace(
        tensors=tuple(map(_as_stored, plan.tensors)),
        multiplier=rounded(plan.multiplier, 32),
        residual=rounded(plan.residual, 16),
    )


def _as_stored(tensor: TensorPlan) -> TensorPlan:
    step, rounding = rounded(tensor.step, 24), rounded(tensor.rounding, 16)
    tied = math.isclose(tensor.threshold, tensor.rounding * tensor.step, rel_tol=1e-6)
    small: dict[str, Any] = {name: rounded(getattr(tensor, name), 16) for name in COLUMNS[3:]}
    threshold = rounding * step if tied else rounded(tensor.threshold, 24)
    return dataclasses.replace(tensor, step=step, rounding=rounding, threshold=threshold, **small)
