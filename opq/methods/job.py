"""What the published methods share from beginning to end: roles, the training loop, the Result."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from opq.base.dtypes import dtype_name
from opq.compression.options import Options
from opq.compression.result import Result
from opq.compression.roles import Role, assign
from opq.errors import EmptyModelError, NonFiniteError
from opq.file import writer
from opq.file.kept import keep
from opq.file.stored import raw_bytes
from opq.methods.coded import Coded
from opq.methods.options import Settings
from opq.methods.training_copy import Live, check_data
from opq.models.wrappers import unwrapped
from opq.plan import Plan, TensorPlan, as_stored
from opq.sources.base import Source
from opq.training.loop import Batches, Loop, Training
from opq.training.objective import Objective


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One call of one method."""

    source: Source
    options: Options

    @property
    def settings(self) -> Settings:
        """The method's own options."""
        assert isinstance(self.options.how, Settings), "the caller asks for a published method"
        return self.options.how

    @functools.cached_property
    def roles(self) -> tuple[Role, ...]:
        """The role of every tensor, as for `rd`."""
        return assign(self.source.specs, self.options.overrides)

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The original values of the tensors to compress, float32."""
        found = {r.name: self.source.tensor(r.name).float() for r in self.roles if r.action == "compress"}
        for name, w in found.items():
            if not bool(w.isfinite().all()):
                raise NonFiniteError(f"tensor {name!r} holds NaN or infinity")
        if not found:
            raise EmptyModelError(f"{self.source.label} holds no tensor to compress")
        return found

    def checkpoint(self, stage: str) -> Path | None:
        """The checkpoint of a stage: the user's path with the stage's name appended."""
        path = self.settings.checkpoint
        return None if path is None else Path(f"{os.fspath(path)}.{stage}")

    def signature(self, settings: Settings) -> str:
        """Identifies weights, method, settings, teacher and seed, so that only the same search or training resumes."""
        options = self.options
        parts = [_digests(self.weights), options.method, options.seed, str(options.budget)]
        parts.append(str(dataclasses.replace(settings, checkpoint=None)))
        if settings.teacher is not None:
            parts.append(_digests(settings.teacher.state_dict()))
        return json.dumps(parts)

    def live(self) -> Live:
        """A copy of the model to train, after it is checked that the data fits it.

        Raises:
            DataError: the data is missing or of the wrong shape.
            SourceError: the source is bare weights.
        """
        model = self.source.build()
        check_data(self.settings.data, model, self.options.method, self.settings.teacher)
        return Live.copy_of(model)

    def train(self, live: Live, stage: str, optimizer: torch.optim.Optimizer, batches: Batches | None = None) -> None:
        """Trains the copy in place by the loop of `opq.finetune`; an interrupted training resumes exactly.

        Args:
            stage: a name for the progress and the checkpoint.
            batches: used instead of the user's data.

        Raises:
            MismatchError: the checkpoint is of other weights or options.
        """
        settings, options = self.settings, self.options
        torch.manual_seed(options.seed)
        Loop(live.model, Plan(method=f"{stage} {self.signature(settings)}", tensors=()),
             _given(settings.data) if batches is None else batches,
             Training(epochs=settings.epochs, distill=settings.distill),
             objective=Objective("cross_entropy", self._teacher(), settings.distill), optimizer=optimizer,
             evaluate=None, checkpoint=self.checkpoint(stage),
             progress=lambda _, done, total: options.progress(stage, done, total)).train()  # fmt: skip

    def _teacher(self) -> nn.Module | None:
        """A copy of the user's teacher or of the original network, in inference mode; None if nothing is distilled."""
        if not self.settings.distill:
            return None
        teacher = self.source.build() if self.settings.teacher is None else self.settings.teacher
        return copy.deepcopy(unwrapped(teacher)).requires_grad_(False).eval()

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
            roles: used instead of the usual ones.
        """
        plan = Plan(
            method=self.options.method,
            budget=self.options.budget,
            tensors=tuple(_planned(role, coded.get(role.name)) for role in roles or self.roles),
            predicted_bytes=round(sum(c.fields["rate"] * c.weights.numel() for c in coded.values()) / 8),
        )
        plan = as_stored(plan)
        packed = writer.pack(plan, [*(c.stored for c in coded.values()), *keep(self.source, plan, changed)])
        return Result(plan=plan, packed=packed, label=self.source.label, elements=self.source.elements,
                      source_bytes=self.source.bytes)  # fmt: skip

    def kept(self, live: Live) -> dict[str, torch.Tensor]:
        """The trained values of the kept tensors."""
        return {r.name: live.seen(r.name) for r in self.roles if r.action == "keep" and r.name in live.sites}


def _given(data: Batches | None) -> Batches:
    assert data is not None, "looked at by check_data"
    return data


def _digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    return {name: zlib.crc32(raw_bytes(w)) for name, w in tensors.items()}


def _planned(role: Role, coded: Coded | None) -> TensorPlan:
    spec = role.spec
    return TensorPlan(name=role.name, shape=spec.shape, dtype=dtype_name(spec.dtype), action=role.action,
                      reason=role.reason,
                      exact=role.exact, like=spec.like, **(coded.fields if coded is not None else {}))  # fmt: skip
