"""Which tensors are compressed, kept or shared, and why: every tensor of a model has exactly one role."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from opq.base.dtypes import dtype_name
from opq.errors import OptionError, PatternError
from opq.plan import Action
from opq.sources.base import TensorSpec

SMALLEST = 64
"""Weights of the smallest tensor that is compressed by default. A choice: below, tables take more than is saved."""

Override = Literal["keep", "compress"] | Mapping[str, float]
"""What a user may ask for the tensors that match a glob pattern: `"keep"`; `"compress"`, for tensors that would be kept
by default; or numbers: `bits`, `min_bits`, `max_bits` (bits per weight), `sensitivity` (replaces `a_i`)."""

_NUMBERS = ("bits", "min_bits", "max_bits", "sensitivity")


@dataclasses.dataclass(frozen=True, slots=True)
class Role:
    """What is to happen to one tensor, before the optimisation decides how."""

    spec: TensorSpec
    action: Action
    reason: str
    """Why, in words, for the report."""
    exact: bool = False
    """Whether a kept vector is stored bit for bit instead of on a fine grid."""
    asked: bool = False
    """Whether a pattern of `overrides` matches it."""
    min_bits: float = 0.0
    max_bits: float = float("inf")
    sensitivity: float | None = None
    """The user's `a_i`, which replaces that of the probe."""

    @property
    def name(self) -> str:
        return self.spec.name


def assign(specs: Sequence[TensorSpec], overrides: Mapping[str, Override] | None = None) -> tuple[Role, ...]:
    """The role of every tensor, in the source's order.

    Compressed are floating-point tensors of two or more dimensions and at least `SMALLEST` elements. Shared are names
    of tensors whose storage has another name already. All others are kept. `overrides` maps glob patterns to
    `Override`s; where several patterns match, the last one counts, field by field.

    Raises:
        PatternError: a pattern matches no tensor.
        OptionError: an override has no meaning.
    """
    overrides = {p: _checked(p, o) for p, o in (overrides or {}).items()}
    for pattern in overrides:
        if not any(fnmatchcase(spec.name, pattern) for spec in specs):
            names = ", ".join(spec.name for spec in specs[:5])
            raise PatternError(f"overrides: pattern {pattern!r} matches no tensor", wanted=f"names like {names}")
    return tuple(_role(spec, overrides) for spec in specs)


def _role(spec: TensorSpec, overrides: Mapping[str, Override]) -> Role:
    if spec.like is not None:
        return Role(spec, "share", f"same storage as {spec.like}")
    role = _default(spec)
    for pattern, override in overrides.items():
        if fnmatchcase(spec.name, pattern):
            role = _overridden(role, pattern, override)
    return role


def _default(spec: TensorSpec) -> Role:
    if not spec.dtype.is_floating_point:
        return Role(spec, "keep", f"not floating point ({str(spec.dtype).removeprefix('torch.')})")
    if dtype_name(spec.dtype) == "F8_E8M0":
        return Role(spec, "keep", "exponents without sign", exact=True)
    if spec.exact:
        return Role(spec, "keep", spec.exact, exact=True)
    if len(spec.shape) < 2:
        return Role(spec, "keep", "one-dimensional" if spec.shape else "a scalar")
    if spec.size < SMALLEST:
        return Role(spec, "keep", f"small: {spec.size} weights")
    if spec.kind == "buffer":
        return Role(spec, "keep", "a buffer, not a weight")
    return Role(spec, "compress", f"{len(spec.shape)}-D weight")


def _overridden(role: Role, pattern: str, override: Override) -> Role:
    role = dataclasses.replace(role, asked=True, exact=False)
    if override == "keep":
        return dataclasses.replace(role, action="keep", reason=f"override {pattern!r}", exact=True)
    if not role.spec.dtype.is_floating_point or role.spec.size == 0:
        raise OptionError(
            f"overrides[{pattern!r}] compresses tensor {role.name!r}",
            got=f"{role.spec.size} elements of {role.spec.dtype}",
            wanted="a floating-point tensor with elements",
            remedy="Narrow the pattern.",
        )
    reason = f"{role.reason}, override {pattern!r}"
    if override == "compress":
        return dataclasses.replace(role, action="compress", reason=reason)
    numbers: dict[str, Any] = dict(override)
    if "bits" in numbers:
        numbers["min_bits"] = numbers["max_bits"] = numbers.pop("bits")
    return dataclasses.replace(role, action="compress", reason=reason, **numbers)


def _checked(pattern: str, override: Override) -> Override:
    if override in ("keep", "compress"):
        return override
    wanted = f'"keep", "compress" or a mapping with some of {", ".join(_NUMBERS)}'
    if not isinstance(override, Mapping) or not override or not set(override) <= set(_NUMBERS):
        raise OptionError(f"overrides[{pattern!r}]", got=repr(override), wanted=wanted)
    for key, value in override.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise OptionError(f"overrides[{pattern!r}][{key!r}]", got=repr(value), wanted="a positive number")
    if override.get("min_bits", 0.0) > override.get("max_bits", float("inf")):
        raise OptionError(
            f"overrides[{pattern!r}]: min_bits above max_bits", got=override, wanted="min_bits <= max_bits"
        )
    return override
