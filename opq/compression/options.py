"""The options of one compression, checked before any work is done."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from opq.base.progress import Progress, silent
from opq.compression.method import DataFree, Method, Opq, RateDistortion
from opq.compression.roles import Override
from opq.constraints import Constraint
from opq.errors import OptionError
from opq.plan import Budget

ALPHAS = (0.0, 0.5, 1.0)
"""Exponents of the sensitivities that are tried if the user gives none. A choice: docs/research.md compares them, and
values between them are no better than chance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every compression, whatever the method; `opq.compress` documents each."""

    bits: float | None = None
    ratio: float | None = None
    size: float | None = None
    how: Method = dataclasses.field(default_factory=RateDistortion)
    """The method, with its own options."""
    overrides: Mapping[str, Override] | None = None
    input_size: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    example_inputs: Any = None
    seed: int = 0
    progress: Progress = silent
    dequantize: bool = False
    trust_remote_code: bool = False
    like: str | os.PathLike[str] | None = None
    base: Any = None

    def __post_init__(self) -> None:
        _ = self.budget
        given = [name for name in ("like", "base") if getattr(self, name) is not None]
        if given and not isinstance(self.how, DataFree):
            raise OptionError(f"method={self.how.name!r} does not take {given[0]}=", wanted="method= one of rd, opq")
        if len(given) > 1:
            raise OptionError("like= does not go with base=", remedy="Leave one of them out.")
        if self.like is not None and self.sparsity is not None:
            raise OptionError("like= does not go with sparsity=", wanted="a budget of the file")

        if self.like is not None and isinstance(self.how, DataFree) and self.how.constraints:
            remedy = "Leave one of them out: plans of unchanged tensors are the old file's."
            raise OptionError("like= does not go with constraints=", remedy=remedy)

    @property
    def budget(self) -> Budget | None:
        """The budget of the file; None if the method's own options determine its size."""
        return self.how.budget(bits=self.bits, ratio=self.ratio, size=self.size)

    @property
    def method(self) -> str:
        """The method's name."""
        return self.how.name

    # --- options of the methods that need no data ----------------------------------------------

    @property
    def data_free(self) -> DataFree:
        """The method, which must be one that needs no data."""
        assert isinstance(self.how, DataFree), "the caller runs the published methods by themselves"
        return self.how

    @property
    def constraints(self) -> Sequence[Constraint]:
        return self.data_free.constraints

    @property
    def sensitivities(self) -> Mapping[str, float] | None:
        return self.data_free.sensitivities

    @property
    def probe(self) -> bool | Literal["quick"] | None:
        return self.data_free.probe

    @property
    def calibration(self) -> Iterable[Any] | str | os.PathLike[str] | None:
        return self.data_free.calibration

    @property
    def alpha(self) -> float | None:
        return self.data_free.alpha

    @property
    def trellis(self) -> bool:
        """Whether the tensors of a file may be quantized on a trellis."""
        how = self.how
        return isinstance(how, RateDistortion) and how.trellis is not False and not how.constraints

    @property
    def trellis_asked(self) -> bool:
        """Whether the user asked for a trellis."""
        return isinstance(self.how, RateDistortion) and bool(self.how.trellis)

    @property
    def by_outputs(self) -> bool:
        """Whether tensors may have steps by row, and be turned so that rows are outputs."""
        return isinstance(self.how, RateDistortion) and not self.how.constraints

    @property
    def weighs(self) -> bool:
        """Whether tensors count by what their weights tell, where there is no probe; in the paper all count alike."""
        return isinstance(self.how, RateDistortion)

    @property
    def sparsity(self) -> float | None:
        """The fraction to prune, if it is given; None if it is to be found."""
        return self.how.sparsity if isinstance(self.how, Opq) else None
