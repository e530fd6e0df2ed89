"""What every published method starts from and ends in: the roles of the tensors, and a Result of what is stored."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from opq import container
from opq.dtypes import dtype_name
from opq.errors import EmptyModelError, NonFiniteError
from opq.index import rounded
from opq.keep import keep
from opq.methods.coded import Coded
from opq.methods.live import Live, check_data
from opq.methods.settings import Settings
from opq.options import Options
from opq.plan import Plan, TensorPlan
from opq.result import Result
from opq.roles import Role, assign
from opq.sources import Source


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One call of one method."""

    source: Source
    options: Options
    settings: Settings

    @functools.cached_property
    def roles(self) -> tuple[Role, ...]:
        """The part that every tensor plays, as for `rd`."""
        return assign(self.source.specs, self.options.overrides)

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors to compress, float32, as they came."""
        found = {r.name: self.source.tensor(r.name).float() for r in self.roles if r.action == "compress"}
        for name, w in found.items():
            if not bool(w.isfinite().all()):
                raise NonFiniteError(f"tensor {name!r} holds NaN or infinity")
        if not found:
            raise EmptyModelError(f"{self.source.label} holds no tensor to compress")
        return found

    @property
    def checkpoint(self) -> Path | None:
        """The path that names of the stages are added to."""
        return None if self.options.checkpoint is None else Path(self.options.checkpoint)

    def live(self) -> Live:
        """A copy of the model to train on, once the data is known to fit it.

        Raises:
            DataError: the data is missing or of the wrong shape.
            SourceError: the source is bare weights.
        """
        model = self.source.build()
        check_data(self.options.data, model, self.options.method)
        return Live.copy_of(model)

    def teacher(self) -> nn.Module:
        """The dense network, in inference mode, a copy."""
        return copy.deepcopy(self.source.build()).requires_grad_(False).eval()

    def result(
        self,
        coded: Mapping[str, Coded],
        changed: Mapping[str, torch.Tensor],
        roles: Iterable[Role] | None = None,
    ) -> Result:
        """The file of coded tensors.

        Args:
            coded: every compressed tensor.
            changed: new values of kept tensors, by name.
            roles: in place of the usual ones.
        """
        plan = Plan(
            method=self.options.method,
            budget=self.options.budget,
            tensors=tuple(_planned(role, coded.get(role.name)) for role in roles or self.roles),
            predicted_bytes=round(sum(c.fields["rate"] * c.weights.numel() for c in coded.values()) / 8),
        )
        plan = rounded(plan)
        packed = container.pack(plan, [*(c.stored for c in coded.values()), *keep(self.source, plan, changed)])
        return Result(plan=plan, packed=packed, label=self.source.label, elements=self.source.elements,
                      source_bytes=self.source.bytes)  # fmt: skip

    def kept(self, live: Live) -> dict[str, torch.Tensor]:
        """The kept tensors as trained."""
        return {r.name: live.seen(r.name) for r in self.roles if r.action == "keep" and r.name in live.sites}


def _planned(role: Role, coded: Coded | None) -> TensorPlan:
    spec = role.spec
    return TensorPlan(name=role.name, shape=spec.shape, dtype=dtype_name(spec.dtype), action=role.action,
                      reason=role.reason, like=spec.like, **(coded.fields if coded is not None else {}))  # fmt: skip
