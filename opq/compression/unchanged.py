"""Tensors that an older file of the network holds already: they keep their plan and their bytes.

A tensor has not changed where coding it again by the old plan, in the way of this compression, gives the old codes:
then the old bytes are what this compression would write, and nothing about the old weights had to be stored. After a
probe that asks for the old moments too, so that what lies behind a layer that changed is coded anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from opq.base.dtypes import dtype_name
from opq.compression.coders import Coder, CodesByName
from opq.compression.in_file import of_older, older_codes
from opq.compression.roles import Role
from opq.file.folder_reader import FolderReader
from opq.file.kept import keep
from opq.file.reader import Reader
from opq.file.stored import Stored
from opq.file.writer import encoded
from opq.plan import LARGEST_CODE, Plan, TensorPlan
from opq.sources.base import Source


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Unchanged:
    """What a file takes over from an older one."""

    plans: Mapping[str, TensorPlan] = dataclasses.field(default_factory=dict)
    """Of compressed tensors."""
    codes: CodesByName = dataclasses.field(default_factory=dict)
    bytes: int = 0
    """Of the payloads of these codes."""
    items: Mapping[str, Stored] = dataclasses.field(default_factory=dict)
    """Kept tensors as they were stored."""
    head: Plan | None = None
    """The old plan without its tensors, for a file in which all of them are as they were."""

    @classmethod
    def of(cls, old: Reader | FolderReader, source: Source, roles: Iterable[Role], coder: Coder) -> Unchanged:
        """Compares a source with an older file.

        Args:
            coder: how this compression makes codes.
        """
        listed = tuple(roles)
        like = [role for role in listed if _is_like(role, old.plan)]
        plans = [plan for role in like if role.action == "compress" and (plan := _planned(role, old, source))]
        same: CodesByName = {}
        for name, codes in coder.codes(plans):
            if np.array_equal(codes, older_codes(source, old, name)):
                same[name] = codes
        sizes = old.sizes
        kept = tuple(old.plan[role.name] for role in like if role.action == "keep")
        return cls(
            plans={plan.name: plan for plan in plans if plan.name in same},
            codes=same,
            bytes=sum(sizes[name] for name in same),
            items=_kept(old, source, old.plan.replace(tensors=kept)),
            head=old.plan.replace(tensors=()),
        )


def _is_like(role: Role, old: Plan) -> bool:
    """Whether the older file treats a tensor as this one will."""
    if role.name not in old:
        return False
    plan, spec = old[role.name], role.spec
    alike = (plan.shape, plan.dtype, plan.action) == (spec.shape, dtype_name(spec.dtype), role.action)
    return alike and (role.action != "compress" or plan.stepped)


def _planned(role: Role, old: Reader | FolderReader, source: Source) -> TensorPlan | None:
    """The old plan of a tensor; None if rows are others or scaled otherwise, or 16 bits do not hold the codes by it."""
    plan = of_older(source, old, role.name)
    values = source.tensor(role.name)
    if plan is None or (values.numel() and float(values.double().abs().max()) >= LARGEST_CODE * plan.step):
        return None
    return plan


def _kept(old: Reader | FolderReader, source: Source, plan: Plan) -> dict[str, Stored]:
    """The kept tensors whose bytes come out as they were; those of a BatchNorm together or not at all."""
    items = {item.name: item for item in keep(source, plan, {}, whole=old.plan)}
    found = {name: item for name, item in items.items() if _is_same(old, item, plan[name])}
    for norm in source.batchnorms.values():
        names = {n for n in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if n is not None}
        if not names <= set(found):
            found = {name: item for name, item in found.items() if name not in names}
    return found


def _is_same(old: Reader | FolderReader, item: Stored, plan: TensorPlan) -> bool:
    reader = old.shard(item.name) if isinstance(old, FolderReader) else old
    made, place = encoded(item, plan), reader._places[item.name]
    alike = (made.place.kind, made.place.number) == (place.kind, place.number)
    return alike and made.payload == bytes(reader._payload(item.name))
