"""The options of one compression, checked before any work is done."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from opq.base.progress import Progress, silent
from opq.compression.roles import Override
from opq.constraints import Constraint
from opq.errors import OptionError
from opq.plan import Budget

DATA_FREE = ("rd", "opq")
PUBLISHED = ("clipq", "kmeans", "lamp", "magnitude", "olmp", "pq")
"""The other published methods; `opq.methods` holds them."""
METHODS = (*DATA_FREE, *PUBLISHED)
ALPHAS = (0.0, 0.5, 1.0)
"""Exponents of the sensitivities to choose from where the user names none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `opq.compress` and `opq.solve` take; see `opq.compress` for the meaning of each."""

    bits: float | None = None
    ratio: float | None = None
    size: float | None = None
    method: Literal["rd", "opq", "clipq", "kmeans", "lamp", "magnitude", "olmp", "pq"] = "rd"
    sparsity: float | None = None
    overrides: Mapping[str, Override] | None = None
    constraints: Sequence[Constraint] = ()
    sensitivities: Mapping[str, float] | None = None
    probe: bool | None = None
    calibration: Iterable[Any] | None = None
    input_size: Sequence[int] | None = None
    example_inputs: Any = None
    alpha: float | None = None
    trellis: bool = False
    seed: int = 0
    progress: Progress = silent
    data: Any = None
    evaluate: Callable[[Any], float] | None = None
    checkpoint: str | os.PathLike[str] | None = None
    method_options: Any = None
    dequantize: bool = False
    trust_remote_code: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """The options of a call; raises `OptionError` for a name that does not exist."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                remedy = f"Did you mean {near[0]}=?" if near else f"The options are {', '.join(known)}."
                raise OptionError(f"unknown option {name!r}", remedy=remedy)
        return cls(**{name: value for name, value in given.items() if name != "progress" or value is not None})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError("unknown method=", got=repr(self.method), wanted=" or ".join(METHODS))
        self._check_method()
        if self.sparsity is not None:
            self._check_sparsity()
        elif self.method == "opq" and self.constraints:
            raise OptionError("constraints= with method='opq' bound densities", wanted="sparsity= and bits= as well")
        for constraint in self.constraints:
            if not isinstance(constraint, Constraint):
                wanted = "what the functions of opq.constraints make"
                raise OptionError("constraints= holds something else", got=repr(constraint), wanted=wanted)
        if not isinstance(self.trellis, bool):
            raise OptionError("trellis=", got=repr(self.trellis), wanted="True or False")
        if self.trellis and self.constraints:
            fact = "trellis= does not go with constraints=, which speak of steps and zeros on plain grids"
            raise OptionError(fact, remedy="Leave one of them out.")
        _ = self.budget
        if self.alpha is not None and not (isinstance(self.alpha, (int, float)) and 0 <= self.alpha <= 1):
            raise OptionError("alpha= is out of range", got=repr(self.alpha), wanted="a number from 0 to 1")
        for name, a in (self.sensitivities or {}).items():
            if not (isinstance(a, (int, float)) and math.isfinite(a) and a > 0):
                raise OptionError(f"sensitivities[{name!r}]", got=repr(a), wanted="a positive number")
        if self.probe is False and self.calibration is not None:
            raise OptionError("calibration= needs the probe", got="probe=False", wanted="probe=True")

    def _check_method(self) -> None:
        """Options that the method has no use for."""
        published, data_free = self.method in PUBLISHED, self.method in DATA_FREE
        idle: tuple[str, ...] = ("data", "evaluate", "checkpoint", "method_options") if data_free else ()
        idle += ("constraints", "sensitivities", "calibration", "probe", "sparsity") if published else ()
        idle += () if self.method == "rd" else ("trellis",)
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        given = [name for name in idle if getattr(self, name) is not fields[name] and getattr(self, name) is not False]
        if given:
            other = ", ".join(PUBLISHED if data_free else DATA_FREE)
            wanted = {"sparsity": "sparsity in method_options=", "trellis": "method='rd'"}
            raise OptionError(
                f"method={self.method!r} does not take {given[0]}=",
                wanted=wanted.get(given[0], f"method= one of {other}"),
            )

    def _check_sparsity(self) -> None:
        if self.method != "opq":
            raise OptionError("sparsity= goes with method='opq'", got=f"method={self.method!r}")
        if not (isinstance(self.sparsity, (int, float)) and 0 <= self.sparsity < 1):
            raise OptionError("sparsity= is out of range", got=repr(self.sparsity), wanted="0 <= sparsity < 1")
        if self.bits is None or self.ratio is not None or self.size is not None:
            raise OptionError(
                "sparsity= goes with bits= per kept weight alone",
                got=f"bits={self.bits}, ratio={self.ratio}, size={self.size}",
                remedy="Pass sparsity= with bits=, or leave sparsity= out and give one budget of the file.",
            )

    @property
    def budget(self) -> Budget | None:
        """The budget of the file; None where sparsity and bits per kept weight, or a method's own, say it all."""
        if self.method in PUBLISHED and self.bits is self.ratio is self.size is None:
            return None
        if self.sparsity is not None:
            Budget("bits", self.bits or 0)
            return None
        return Budget.of(bits=self.bits, ratio=self.ratio, size=self.size)
