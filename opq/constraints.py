"""Constraints on an allocation beyond the budget, all linear in the rates and densities of the tensors.

For example::

    opq.compress(model, bits=3, constraints=[
        constraints.bits("head.*", min=4),
        constraints.sparsity("*.fc", min=0.8),
        constraints.macs(2e8, per_tensor=dense_macs),
        constraints.equal_steps("*.attn.*"),
        constraints.code_bits("*", max=8),
    ])

Patterns are globs over tensor names (`fnmatch`, case-sensitive). They match compressed tensors only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from opq.base.arrays import Floats
from opq.errors import OptionError, PatternError


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One linear constraint: `low <= sum_i rate_i R_i + density_i s_i <= high`; coefficients (tensors,)."""

    label: str
    rate: Floats
    density: Floats
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Constraint:
    """A constraint, made by one of the functions below."""

    label: str
    """The call that made it."""
    pattern: str
    on: Literal["rate", "density", "step", "code"]
    scope: Literal["each", "total", "equal"]
    """Whether the limits hold for every matched tensor, for their weighted sum, or all are to be equal."""
    low: float = -math.inf
    high: float = math.inf
    weights: Mapping[str, float] | None = None
    """For a sum: the weight of each tensor, by default its size n_i."""

    def __repr__(self) -> str:
        return self.label

    def matches(self, names: Sequence[str]) -> list[int]:
        """Indices of the tensors whose names match the pattern.

        Raises:
            PatternError: there are none.
        """
        found = [i for i, name in enumerate(names) if fnmatchcase(name, self.pattern)]
        if not found:
            some = ", ".join(list(names)[:5])
            raise PatternError(f"{self.label}: the pattern matches no compressed tensor", wanted=f"names like {some}")
        return found

    def rows(self, names: Sequence[str], sizes: Sequence[int]) -> list[Row]:
        """The linear constraints on rates and densities; none for steps and codes, which go by other functions."""
        found = self.matches(names)
        if self.on in ("step", "code"):
            return []
        if self.scope == "each":
            return [self._row({i: 1.0}, len(names), self.low, self.high, f" on {names[i]}") for i in found]
        if self.scope == "equal":
            return [self._row({i: 1.0, found[0]: -1.0}, len(names), 0.0, 0.0) for i in found[1:]]
        return [self._row(self._weights(found, names, sizes), len(names), self.low, self.high)]

    def _weights(self, found: Sequence[int], names: Sequence[str], sizes: Sequence[int]) -> dict[int, float]:
        if self.weights is None:
            return {i: float(sizes[i]) for i in found}
        missing = sorted(set(self.weights) - set(names))
        if missing:
            raise PatternError(f"{self.label}: no compressed tensor of this name", got=", ".join(missing[:5]))
        return {i: float(self.weights[names[i]]) for i in found if names[i] in self.weights}

    def _row(self, weights: Mapping[int, float], count: int, low: float, high: float, where: str = "") -> Row:
        coefficients, none = np.zeros(count), np.zeros(count)
        coefficients[list(weights)] = list(weights.values())
        pair = (coefficients, none) if self.on == "rate" else (none, coefficients)
        return Row(self.label + where, *pair, low, high)


def bits(pattern: str, *, min: float = 0.0, max: float = math.inf) -> Constraint:
    """Limits on the bits per weight of every tensor that matches the pattern.

    Example:
        >>> import opq
        >>> plan = opq.solve("demo:digits", bits=3, probe=False, constraints=[opq.constraints.bits("0.*", min=6)])
        >>> round(plan["0.weight"].rate, 2) >= 6
        True
    """
    label = _label("bits", pattern, min, max)
    _ordered(label, min, max, math.inf)
    return Constraint(label=label, pattern=pattern, on="rate", scope="each", low=min, high=max)


def sparsity(pattern: str, *, min: float = 0.0, max: float = 1.0) -> Constraint:
    """Limits on the fraction of zeros of every tensor that matches the pattern."""
    label = _label("sparsity", pattern, min, max)
    _ordered(label, min, max, 1.0)
    return Constraint(label=label, pattern=pattern, on="density", scope="each", low=1 - max, high=1 - min)


def total_bits(pattern: str, *, min: float = 0.0, max: float = math.inf) -> Constraint:
    """Limits on the bits of the codes of all matching tensors together."""
    label = _label("total_bits", pattern, min, max)
    _ordered(label, min, max, math.inf)
    return Constraint(label=label, pattern=pattern, on="rate", scope="total", low=min, high=max)


def nonzeros(pattern: str, *, min: float = 0.0, max: float = math.inf) -> Constraint:
    """Limits on the number of nonzero weights of all matching tensors together."""
    label = _label("nonzeros", pattern, min, max)
    _ordered(label, min, max, math.inf)
    return Constraint(label=label, pattern=pattern, on="density", scope="total", low=min, high=max)


def macs(max: float, *, per_tensor: Mapping[str, float]) -> Constraint:
    """A limit on the multiply-accumulates that remain when zeros are skipped: `sum_i macs_i s_i <= max`.

    Args:
        max: the limit.
        per_tensor: multiply-accumulates of each dense tensor, by name; tensors not named are not counted.
    """
    label = f"macs({max:g}, per_tensor=<{len(per_tensor)} tensors>)"
    _ordered(label, 0.0, max, math.inf)
    return Constraint(label=label, pattern="*", on="density", scope="total", high=max, weights=dict(per_tensor))


def equal_bits(pattern: str) -> Constraint:
    """The same bits per weight for all matching tensors."""
    return Constraint(label=f"equal_bits({pattern!r})", pattern=pattern, on="rate", scope="equal")


def equal_steps(pattern: str) -> Constraint:
    """The same step, that is the same codebook, for all matching tensors."""
    return Constraint(label=f"equal_steps({pattern!r})", pattern=pattern, on="step", scope="equal")


def code_bits(pattern: str, *, max: int) -> Constraint:
    """Integer codes that fit so many bits, sign and all: up to 127 in magnitude for 8 bits, 7 for 4.

    It bounds the step from below, by the largest weight: `step >= max|w| / (2^(max-1) - 1)`. What the entropy coder
    makes of the codes is as small as ever; the bound is for layouts of other tools, whose codes have one width. With
    it an export to compressed-tensors holds every Linear weight exactly. No cvxpy is needed for it.

    Args:
        max: 2 to 15 bits.

    Example:
        >>> import opq
        >>> few = opq.constraints.code_bits("*", max=4)
        >>> result = opq.compress("demo:digits", bits=4, probe=False, constraints=[few])
        >>> with opq.Reader(result.packed) as reader:
        ...     max(abs(reader.codes(t.name)).max() for t in reader.plan.compressed) <= 7
        True
    """
    label = f"code_bits({pattern!r}, max={max})"
    if isinstance(max, bool) or not isinstance(max, int) or not 2 <= max <= 15:
        raise OptionError(f"{label} has no meaning", wanted="a whole number of bits from 2 to 15")
    return Constraint(label=label, pattern=pattern, on="code", scope="each", high=max)


def largest_codes(constraints: Sequence[Constraint], names: Sequence[str]) -> dict[str, int]:
    """The largest magnitude of the codes of each tensor that a constraint bounds it of; the smallest of several."""
    largest: dict[str, int] = {}
    for constraint in (c for c in constraints if c.on == "code"):
        most = (1 << int(constraint.high) - 1) - 1
        for i in constraint.matches(names):
            largest[names[i]] = min(most, largest.get(names[i], most))
    return largest


def group_steps(constraints: Sequence[Constraint], names: Sequence[str]) -> list[tuple[int, ...]]:
    """The tensors in groups that share a step, in order; groups of overlapping patterns are merged."""
    leader = list(range(len(names)))
    for constraint in constraints:
        if constraint.on == "step":
            joined = {leader[i] for i in constraint.matches(names)}
            leader = [min(joined) if group in joined else group for group in leader]
    return [tuple(i for i, group in enumerate(leader) if group == first) for first in sorted(set(leader))]


def _label(kind: str, pattern: str, low: float, high: float) -> str:
    return f"{kind}({pattern!r}, min={low:g}, max={high:g})"


def _ordered(label: str, low: float, high: float, most: float) -> None:
    if not 0 <= low <= high <= most:
        raise OptionError(f"{label} has no meaning", wanted=f"0 <= min <= max <= {most:g}")
