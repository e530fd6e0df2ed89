"""What the options of the published methods share, and their checks, made before any work."""

from __future__ import annotations

import dataclasses
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from torch import nn

from opq.compression.method import Method
from opq.errors import OptionError
from opq.plan import Budget
from opq.training.loop import Batches

if TYPE_CHECKING:
    from opq.compression.result import Result
    from opq.methods.job import Job

Own = TypeVar("Own", bound="Settings")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Settings(Method, ABC):
    """The options of all published methods: what data to train or search with, and how."""

    keywords: ClassVar[tuple[str, ...]] = ("data", "evaluate", "checkpoint")

    data: Batches | None = dataclasses.field(default=None, repr=False, compare=False)
    evaluate: Callable[[nn.Module], Any] | None = dataclasses.field(default=None, repr=False, compare=False)
    checkpoint: str | os.PathLike[str] | None = None
    epochs: int = 0
    lr: float = 1e-3
    distill: float = 0.0
    teacher: nn.Module | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._number("epochs", 0, math.inf, whole=True)
        self._number("lr", 0, math.inf)
        self._number("distill", 0, 1)
        self._check("teacher", self.teacher is None or isinstance(self.teacher, nn.Module), "a module or None")
        self._check("distill", self.teacher is None or self.distill > 0, "above 0 where a teacher is given")

    @abstractmethod
    def run(self, job: Job) -> Result:
        """The result of the method."""

    def budget(self, *, bits: float | None, ratio: float | None, size: float | None) -> Budget | None:
        if bits is ratio is size is None:
            return None
        return super().budget(bits=bits, ratio=ratio, size=size)

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise OptionError(place(type(self), name), got=repr(getattr(self, name)), wanted=wanted)

    def _number(self, name: str, low: float, high: float, *, whole: bool = False, open_end: bool = False) -> None:
        value, kinds = getattr(self, name), (int,) if whole else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        end = "" if math.isinf(high) else f" to {'below ' if open_end else ''}{high:g}"
        wanted = f"{'an integer' if whole else 'a number'} from {low:g}{end}"
        self._check(name, fits and not (open_end and value == high), wanted)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SizedByItself(Settings):
    """Options of the methods whose file size follows from their own options, so that they take no budget."""

    sized_by: ClassVar[str]
    """The options that determine the size, in words."""

    def budget(self, *, bits: float | None, ratio: float | None, size: float | None) -> Budget | None:
        found = super().budget(bits=bits, ratio=ratio, size=size)
        if found is not None:
            fact, remedy = "takes no budget of the file", f"Leave the budget out: {self.sized_by} set the size."
            raise OptionError(f"method={self.name!r} {fact}", got=found.kind, remedy=remedy)
        return None


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Pruning(Settings):
    """Options of the methods that first prune by magnitude."""

    sparsity: float | None = None
    scope: Literal["tensor", "network"] = "network"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity is not None:
            self._number("sparsity", 0, 1, open_end=True)
        self._check("scope", self.scope in ("tensor", "network"), "'tensor' or 'network'")


def place(kind: type[Settings], name: str) -> str:
    """How an error message names an option."""
    return f"{kind.__name__}({name}=)"


def read(kind: type[Own], given: Any) -> Own:
    """The method described by `method_options=`: a mapping of fields, an instance, or None for the defaults."""
    if isinstance(given, kind):
        return given
    known = {f.name for f in dataclasses.fields(kind)} - set(kind.keywords)
    if given is not None and not isinstance(given, Mapping):
        raise OptionError("method_options= is not understood", got=type(given).__name__, wanted="a mapping")
    unknown = sorted(set(given or {}) - known)
    if unknown:
        raise OptionError("method_options= has unknown names", got=", ".join(unknown), wanted=", ".join(sorted(known)))
    try:
        return kind(**(given or {}))
    except OptionError as error:
        named = {place(kind, name): f"method_options[{name!r}]" for name in known}
        fact = named.get(error.fact, error.fact)
        raise type(error)(fact, got=error.got, wanted=error.wanted, remedy=error.remedy) from None
