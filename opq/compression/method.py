"""Methods as objects: what a method of compression is, and the two that need no data, `rd` and `opq`.

An option that has a meaning for one method only is a field of that method's class, so that the classes themselves
determine which options go together. The other published methods are in `opq.methods`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from opq.compression.roles import Role
from opq.constraints import Constraint
from opq.errors import OptionError, PatternError
from opq.plan import Budget


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Method:
    """One method of compression and its own options: what `method=` of `opq.compress` takes."""

    name: ClassVar[str]
    """Its name, as in `method="..."`, in the plan and in the file."""
    keywords: ClassVar[tuple[str, ...]] = ()
    """The fields that `opq.compress` also takes as its own keywords."""

    def budget(self, *, bits: float | None, ratio: float | None, size: float | None) -> Budget | None:
        """The budget of the file; None if the method's own options determine its size.

        Raises:
            BudgetError, OptionError: the three have no meaning for the method.
        """
        return Budget.of(bits=bits, ratio=ratio, size=size)

    def check_roles(self, roles: Iterable[Role]) -> None:
        """Raises `OptionError` if an option has no meaning for the tensors of this network."""

    @classmethod
    def default(cls, field: str) -> Any:
        """The default value of a field."""
        return next(f.default for f in dataclasses.fields(cls) if f.name == field)

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, except live objects (data, functions, modules)."""
        given = {f.name: (getattr(self, f.name), _default(f)) for f in dataclasses.fields(self) if f.repr}
        return {name: value for name, (value, default) in given.items() if value != default}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.changed().items())})"

    def to_json(self) -> str:
        """The method as JSON; `opq.methods.from_json` gives it back.

        Raises:
            OptionError: an option is a live object (data, a function, a module), which cannot be written as text.
        """
        live = [f.name for f in dataclasses.fields(self) if not f.repr and getattr(self, f.name) is not None]
        if live:
            remedy = "Leave it out, and give it anew when the method is read back."
            raise OptionError(f"{live[0]}= cannot be written as JSON", wanted="numbers and texts", remedy=remedy)
        return json.dumps({"method": self.name, **self.changed()}, default=_plain, allow_nan=False)

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise OptionError(f"{name}= is out of range", got=repr(getattr(self, name)), wanted=wanted)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if isinstance(value, Constraint):
        return {f.name: v for f in dataclasses.fields(value) if (v := getattr(value, f.name)) != _default(f)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise OptionError(f"a {type(value).__name__} cannot be written as JSON", wanted="numbers and texts")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class DataFree(Method):
    """The options of all methods that need no data."""

    keywords: ClassVar[tuple[str, ...]] = ("constraints", "sensitivities", "probe", "calibration", "alpha")

    constraints: Sequence[Constraint] = ()
    sensitivities: Mapping[str, float] | None = None
    probe: bool | Literal["quick"] | None = None
    calibration: Iterable[Any] | str | os.PathLike[str] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    alpha: float | None = None

    def __post_init__(self) -> None:
        for constraint in self.constraints:
            if not isinstance(constraint, Constraint):
                wanted = "what the functions of opq.constraints make"
                raise OptionError("constraints= holds something else", got=repr(constraint), wanted=wanted)
        alpha = self.alpha
        self._check("alpha", alpha is None or _is_number(alpha, 0, 1), "a number from 0 to 1")
        if self.sensitivities is not None and not isinstance(self.sensitivities, Mapping):
            wanted = "numbers by the names of tensors, such as opq.probe(model).sensitivity"
            raise OptionError("sensitivities=", got=f"a {type(self.sensitivities).__name__}", wanted=wanted)
        for name, a in (self.sensitivities or {}).items():
            if not (_is_number(a, 0, math.inf) and math.isfinite(a) and a > 0):
                raise OptionError(f"sensitivities[{name!r}]", got=repr(a), wanted="a positive number")
        if not (self.probe is None or isinstance(self.probe, bool) or self.probe == "quick"):
            raise OptionError("probe=", got=repr(self.probe), wanted='True, False, "quick" or None')
        if self.probe is False and self.calibration is not None:
            raise OptionError("calibration= needs the probe", got="probe=False", wanted="probe=True")

    def check_roles(self, roles: Iterable[Role]) -> None:
        unknown = sorted(set(self.sensitivities or ()) - {role.name for role in roles if role.action == "compress"})
        if unknown:
            raise PatternError("sensitivities= names no compressed tensor", got=", ".join(unknown[:5]))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RateDistortion(DataFree):
    """`rd`, the default: the joint rate-distortion optimum under a budget of the file. docs/mathematics.md.

    Args:
        trellis: whether tensors that get 1.25 bits per weight or more are quantized on a trellis, which gives the
            smallest error for a size. None: unless there are `constraints`, which speak of plain grids; `opq.solve`
            then stays on plain grids, because these are what fine-tuning starts from.
        alpha: exponent of the probe's sensitivities, 0 to 1; None: chosen by the predicted error of the outputs.
        constraints: objects of `opq.constraints`, solved through cvxpy.
        sensitivities: `a_i` by tensor name, used instead of the probe's; tensors not named have 1.
        probe: whether to measure sensitivities on synthetic inputs, feed quantization errors back and re-normalise
            BatchNorm; None: if the source has a model that can be run. "quick": as True, but a language model
            draws the words of its texts all at once, not one after the other.
        calibration: batches of real inputs, used instead of synthetic ones; or a tensor, or pictures: a folder or an
            `.npz` file.

    Raises:
        OptionError: a value or a combination of values has no meaning.
    """

    name: ClassVar[str] = "rd"
    keywords: ClassVar[tuple[str, ...]] = (*DataFree.keywords, "trellis")

    trellis: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.trellis is None or isinstance(self.trellis, bool)):
            raise OptionError("trellis=", got=repr(self.trellis), wanted="True, False or None")
        if self.trellis and self.constraints:
            fact = "trellis= does not go with constraints=, which speak of steps and zeros on plain grids"
            raise OptionError(fact, remedy="Leave one of them out.")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Opq(DataFree):
    """`opq`: the two steps of the paper (Hu et al., AAAI 2021), pruning and then quantization. docs/mathematics.md.

    Args:
        sparsity: fraction of weights that is pruned, from 0 to below 1; the budget is then `bits=` per kept weight, as
            in the paper. None: the sparsity that meets the budget of the file.
        alpha: exponent of the probe's sensitivities, 0 to 1; None: chosen by the predicted error of the outputs.
        constraints: objects of `opq.constraints` on densities, with `sparsity`.
        sensitivities: `a_i` by tensor name, used instead of the probe's; tensors not named have 1.
        probe: whether to measure sensitivities on synthetic inputs, feed quantization errors back and re-normalise
            BatchNorm; None: if the source has a model that can be run. "quick": as True, but a language model
            draws the words of its texts all at once, not one after the other.
        calibration: batches of real inputs, used instead of synthetic ones; or a tensor, or pictures: a folder or an
            `.npz` file.

    Raises:
        OptionError: a value or a combination of values has no meaning.
    """

    name: ClassVar[str] = "opq"
    keywords: ClassVar[tuple[str, ...]] = (*DataFree.keywords, "sparsity")

    sparsity: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        s = self.sparsity
        self._check("sparsity", s is None or (_is_number(s, 0, 1) and s < 1), "0 <= sparsity < 1")
        if s is None and self.constraints:
            raise OptionError("constraints= with method='opq' bound densities", wanted="sparsity= and bits= as well")
        if any(constraint.on == "code" for constraint in self.constraints):
            raise OptionError("method='opq' has codes of any size", got="code_bits(...)", remedy="Use method='rd'.")

    def budget(self, *, bits: float | None, ratio: float | None, size: float | None) -> Budget | None:
        if self.sparsity is None:
            return super().budget(bits=bits, ratio=ratio, size=size)
        if bits is None or ratio is not None or size is not None:
            raise OptionError(
                "sparsity= goes with bits= per kept weight alone",
                got=f"bits={bits}, ratio={ratio}, size={size}",
                remedy="Pass sparsity= with bits=, or leave sparsity= out and give one budget of the file.",
            )
        Budget("bits", bits)
        return None

    def check_roles(self, roles: Iterable[Role]) -> None:
        roles = tuple(roles)
        super().check_roles(roles)
        bounded = [role.name for role in roles if (role.min_bits, role.max_bits) != (0.0, math.inf)]
        if bounded:
            raise OptionError(
                "overrides= bounds the bits of a tensor",
                got=f"method='opq' and {bounded[0]!r}",
                wanted="method='rd'",
                remedy="Use method='rd', or constraints= on sparsity with sparsity= and bits=.",
            )


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and low <= value <= high
