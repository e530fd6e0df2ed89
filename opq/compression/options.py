"""The options of one compression, checked before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opq.base.progress import Progress, silent
from opq.compression.method import DataFree, Method, Opq, RateDistortion
from opq.compression.roles import Override
from opq.constraints import Constraint
from opq.plan import Budget

ALPHAS = (0.0, 0.5, 1.0)
"""Exponents of the sensitivities to choose from where the user names none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the calls that compress take, whatever the method; see `opq.compress` for the meaning of each."""

    bits: float | None = None
    ratio: float | None = None
    size: float | None = None
    how: Method = dataclasses.field(default_factory=RateDistortion)
    """The method, with the options that are its own."""
    overrides: Mapping[str, Override] | None = None
    input_size: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    example_inputs: Any = None
    seed: int = 0
    progress: Progress = silent
    dequantize: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        _ = self.budget

    @property
    def budget(self) -> Budget | None:
        """The budget of the file; None where the method's own options set its size."""
        return self.how.budget(bits=self.bits, ratio=self.ratio, size=self.size)

    @property
    def method(self) -> str:
        """The method's name."""
        return self.how.name

    # --- of the methods that need no data ------------------------------------------------------

    @property
    def data_free(self) -> DataFree:
        """The method, where it is one that needs no data."""
        assert isinstance(self.how, DataFree), "the caller runs the published methods by themselves"
        return self.how

    @property
    def constraints(self) -> Sequence[Constraint]:
        return self.data_free.constraints

    @property
    def sensitivities(self) -> Mapping[str, float] | None:
        return self.data_free.sensitivities

    @property
    def probe(self) -> bool | None:
        return self.data_free.probe

    @property
    def calibration(self) -> Iterable[Any] | None:
        return self.data_free.calibration

    @property
    def alpha(self) -> float | None:
        return self.data_free.alpha

    @property
    def trellis(self) -> bool:
        """Whether paths of a trellis may be used."""
        return isinstance(self.how, RateDistortion) and self.how.trellis

    @property
    def sparsity(self) -> float | None:
        """The fraction pruned, where it is given and not found."""
        return self.how.sparsity if isinstance(self.how, Opq) else None
