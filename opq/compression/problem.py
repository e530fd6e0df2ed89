"""Statistics, sensitivities and a budget in bits -> the Plan.

`Problem` holds all that the solvers need. `Problem.plan(bits)` is cheap, so that the caller can repeat it when the true
size of the file is known.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from opq.allocation.curve import Curve, Point
from opq.allocation.paper import paper
from opq.allocation.rate_distortion import allocate
from opq.allocation.solution import Allocation
from opq.allocation.stats import TensorStats
from opq.base.calls import warn
from opq.base.dtypes import dtype_name
from opq.base.pool import torch_threads
from opq.base.progress import Progress, silent
from opq.base.stages import stage
from opq.compression.least_rates import NEVER, LeastRates
from opq.compression.options import Options
from opq.compression.roles import Role
from opq.constraints import largest_codes
from opq.errors import OptionError, WeightsWarning
from opq.plan import LARGEST_CODE, Plan, TensorPlan
from opq.quantizing import trellis
from opq.sources.base import Source


class Statistics(Protocol):
    """What a plan needs to know about a tensor besides its curve."""

    @property
    def size(self) -> int:
        """Number of weights."""

    @property
    def max_abs(self) -> float:
        """The largest magnitude."""

    @property
    def mean_abs(self) -> float:
        """The mean magnitude."""


S = TypeVar("S", bound=Statistics, covariant=True)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Problem(Generic[S]):
    """One compression problem: which tensors take part, what they look like and how much each matters."""

    options: Options
    roles: tuple[Role, ...]
    stats: Mapping[str, S]
    """The statistics of every compressed tensor, in the source's order."""
    sensitivities: Mapping[str, float]
    """`a_i` of every compressed tensor."""
    curves: Mapping[str, Curve]
    """Rate and distortion of every compressed tensor; `of` computes them from complete statistics."""
    trellised: LeastRates = dataclasses.field(default_factory=lambda: NEVER)
    """Tensors that may be quantized on a trellis, and the bits per weight on a plain grid from which on they are."""
    fixed: Mapping[str, TensorPlan] = dataclasses.field(default_factory=dict)
    """Compressed tensors whose plans are given; they have no statistics here and take no part in the allocation."""

    @staticmethod
    def of(
        options: Options,
        roles: Sequence[Role],
        *,
        stats: Mapping[str, TensorStats],
        sensitivities: Mapping[str, float],
    ) -> Problem[TensorStats]:
        """The problem of tensors with complete statistics, from which their curves are computed, on plain grids."""
        return Problem(
            options=options,
            roles=tuple(roles),
            stats=stats,
            sensitivities=sensitivities,
            curves={name: Curve.of(found) for name, found in stats.items()},
        )

    def replace(self, *, sensitivities: Mapping[str, float]) -> Problem[S]:
        """The same problem with other sensitivities; the curves are used again."""
        return dataclasses.replace(self, sensitivities=sensitivities)

    def without(self, fixed: Mapping[str, TensorPlan]) -> Problem[S]:
        """The problem of the other tensors, these having their plans."""
        return dataclasses.replace(
            self,
            fixed=fixed,
            stats={name: found for name, found in self.stats.items() if name not in fixed},
            sensitivities={name: a for name, a in self.sensitivities.items() if name not in fixed},
            curves={name: curve for name, curve in self.curves.items() if name not in fixed},
            trellised=self.trellised.without(fixed),
        )

    @property
    def bounds(self) -> list[tuple[float, float]]:
        """The smallest and the largest rate on a plain grid, in bits per weight, that each compressed tensor may have.

        Both are the user's, larger by what a trellis saves where the tensor is then on one; codes of a bounded width
        allow no more than their finest step gives.
        """
        found = [(low, min(high, self._most_bits(name))) for name, (low, high) in self._asked.items()]
        for name, (low, high) in zip(self.stats, found, strict=True):
            if low > high:
                remedy = "Allow its codes more bits, or ask for fewer bits per weight."
                fact = f"tensor {name!r} cannot have so many bits per weight with so small codes"
                raise OptionError(fact, got=f"{low:g}", wanted=f"at most {high:.3g}", remedy=remedy)
        return found

    @functools.cached_property
    def _asked(self) -> dict[str, tuple[float, float]]:
        """The user's bounds of each compressed tensor, as rates on a plain grid."""
        roles = {role.name: role for role in self.roles}
        return {name: self._on_grid(roles[name]) for name in self.stats}

    def _on_grid(self, role: Role) -> tuple[float, float]:
        low, high = role.min_bits, role.max_bits
        if (low, high) == (0.0, math.inf) or not self._may(role.name, high):
            return low, high
        low, high = (bits + self._saved(role.name, bits + trellis.SAVED) for bits in (low, high))
        return min(low, high), high

    def _saved(self, name: str, rate: float) -> float:
        """Bits per weight that a trellis saves at a rate on a plain grid; 0 where it does not pay."""
        point = self.curves[name].at_rate(rate)
        fine = self._fine(name, point)
        return 0.0 if fine is None else trellis.SAVED

    def _fine(self, name: str, point: Point) -> float | None:
        """The step on a trellis in place of a point of the plain grid; None where it does not pay."""
        if not self._may(name, point.rate):
            return None
        return trellis.step(point.rate, point.distortion, self.stats[name].max_abs)

    def _may(self, name: str, rate: float) -> bool:
        """Whether a tensor is on a trellis if it has this rate on a plain grid."""
        return name in self.trellised and self.trellised.reached(name, rate)

    @functools.cached_property
    def _surely_saved(self) -> float:
        """Bits that trellises save even where every tensor has its smallest rate."""
        least = {role.name: role.min_bits for role in self.roles}
        return sum(self.stats[name].size * (low - least[name]) for name, (low, _) in self._asked.items())

    @functools.cached_property
    def largest(self) -> Mapping[str, int]:
        """The largest code of each tensor of which the user bounds it."""
        return largest_codes(self.options.constraints, list(self.stats))

    def _most_bits(self, name: str) -> float:
        if name not in self.largest or not (finest := self.stats[name].max_abs / self.largest[name]):
            return float("inf")
        return float(self.curves[name].rate_at_step(np.array(math.log(finest))))

    @property
    def least_bits(self) -> float:
        """The fewest bits that all codes together can take."""
        least = 0.0
        for curve, stats, (smallest, _) in zip(self.curves.values(), self.stats.values(), self.bounds, strict=True):
            least += stats.size * min(max(smallest, float(curve.rate[0])), float(curve.rate[-1]))
        return least - self._surely_saved

    def allocate(self, bits: float) -> Allocation:
        """The method's operating points for `bits` bits of codes in all; through cvxpy if there are constraints."""
        stats, sizes = list(self.stats.values()), [stats.size for stats in self.stats.values()]
        a = [self.sensitivities[name] for name in self.stats]
        if self.options.method == "opq":
            return paper([s.mean_abs for s in stats], sizes, a, bits)[0]
        curves = list(self.curves.values())
        if all(constraint.on == "code" for constraint in self.options.constraints):
            return allocate(curves, sizes, a, bits, bounds=self.bounds)
        from opq.allocation import convex

        return convex.solve_rd(
            curves, sizes, a, bits, bounds=self.bounds, names=list(self.stats), constraints=self.options.constraints
        )

    def sketch(self) -> Plan:
        """A plan with the right tensors and actions that costs no solving: every tensor has its lowest rate."""
        points = tuple(curve.at_rate(0.0) for curve in self.curves.values())
        return self.planned(Allocation(points, 0.0, 0.0, 0.0))

    def plan(self, bits: float) -> Plan:
        """The plan whose codes take `bits` bits."""
        plan = self.planned(self.allocate(bits + self._surely_saved))
        for _ in range(3 if self.trellised else 0):  # the bits that a trellis saves are allocated, too
            own = [t for t in plan.compressed if t.name in self.stats]
            saved = trellis.SAVED * sum(t.size for t in own if t.on_trellis)
            plan = self.planned(self.allocate(bits + max(saved, self._surely_saved)))
        return plan

    def planned(self, allocation: Allocation) -> Plan:
        """The plan of an allocation."""
        points = dict(zip(self.stats, allocation.points, strict=True))
        self.trellised.look({name: point.rate for name, point in points.items()})
        return Plan(
            method=self.options.method,
            tensors=tuple(self._tensor(role, points.get(role.name)) for role in self.roles),
            budget=self.options.budget,
            multiplier=allocation.multiplier,
            residual=allocation.residual,
        )

    def plain(self, tensor: TensorPlan) -> TensorPlan:
        """The plan of a tensor, with the plain grid of the same error in place of a trellis."""
        if not tensor.on_trellis:
            return tensor
        point = self.curves[tensor.name].at_rate(tensor.rate + trellis.SAVED)
        grid: dict[str, Any] = on_grid(point, self.stats[tensor.name].max_abs)
        return dataclasses.replace(tensor, codebook="grid", **grid)

    def _tensor(self, role: Role, point: Point | None) -> TensorPlan:
        if role.name in self.fixed:
            return self.fixed[role.name]
        fields: dict[str, Any] = {
            "name": role.name,
            "shape": role.spec.shape,
            "dtype": dtype_name(role.spec.dtype),
            "action": role.action,
            "reason": role.reason,
            "exact": role.exact,
            "like": role.spec.like,
        }
        if point is not None:
            largest = self.largest.get(role.name, LARGEST_CODE)
            fields |= on_grid(point, self.stats[role.name].max_abs, largest)
            fields |= {"sensitivity": self.sensitivities[role.name], "largest": largest}
            if self.options.method == "opq":
                fields["rounding"] = 0.5
            if (fine := self._fine(role.name, point)) is not None:
                fields |= {"codebook": "trellis", "step": fine, "threshold": fine / 2, "rounding": 0.5}
                fields["rate"] = point.rate - trellis.SAVED
        return TensorPlan(**fields)


def on_grid(point: Point, max_abs: float, largest: int = LARGEST_CODE) -> dict[str, float]:
    """The fields of a tensor's plan that an operating point of the plain grid sets.

    Args:
        max_abs: the largest magnitude of the weights, which must have a code.
        largest: the largest magnitude of a code.
    """
    return {
        "step": max(point.step, max_abs / largest),
        "threshold": point.threshold,
        "rounding": point.theta,
        "rate": point.rate,
        "density": point.density,
        "distortion": point.distortion,
    }


FAINT = 2.0**-118
"""If the largest magnitude is below this (3e-36), the steps of a grid come near 2^-126, the smallest normal number of
float32. Measured at 6 bits: the error grows from 2 % (at 1e-36) to 100 % (at 1e-39)."""


@stage("statistics")
def gather(source: Source, roles: Sequence[Role], progress: Progress = silent) -> dict[str, TensorStats]:
    """Statistics of every tensor to compress, with only some tensors in memory at a time.

    Each tensor is counted by one thread: torch's own threads wait for each other after every small step, which on a
    busy machine takes many times as long as their work.

    Gives a `WeightsWarning` for a tensor whose weights are all too small for a grid, and for a kept vector that is not
    finite.
    """
    names = [role.name for role in roles if role.action == "compress"]
    found = {}
    with torch_threads() as threads:
        tensors = ((name, source.tensor(name)) for name in names)
        every = threads.weighed(
            lambda item: TensorStats.of(item[1], name=item[0]), tensors, lambda item: item[1].numel()
        )
        for name, stats in zip(names, every, strict=True):
            found[name] = stats
            progress("statistics", len(found), len(names))
    for name, stats in found.items():
        if stats.max_abs < FAINT and (largest := _largest(source.tensor(name))):
            warn(
                f"the weights of tensor {name!r} are at most {largest:.2g} in magnitude, too small for a grid in "
                f"float32: some or all of them become 0. Keep them with overrides={{{name!r}: 'keep'}}, or scale them.",
                WeightsWarning,
            )
    for spec in (role.spec for role in roles if role.action == "keep"):
        vector = len(spec.shape) == 1 and spec.dtype.is_floating_point
        if vector and not bool(torch.isfinite(source.tensor(spec.name).double()).all()):
            warn(f"tensor {spec.name!r} holds NaN or infinity; it is kept bit for bit.", WeightsWarning)
    return found


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.double().abs().max()) if tensor.numel() else 0.0
