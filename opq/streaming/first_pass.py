"""Pass one: from every tensor to its curve, source shards divided among the ranks; then the allocation problem."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from opq.base import compiled
from opq.compression.by_outputs import ByOutputs, Told, of_rows
from opq.compression.coders import probe_source
from opq.compression.copies import tied
from opq.compression.in_file import head
from opq.compression.least_rates import LeastRates
from opq.compression.options import Options
from opq.compression.prior import guessed
from opq.compression.problem import Problem
from opq.compression.roles import Role, assign
from opq.compression.trellised import TRIED, in_numpy, may_follow, pays, sample
from opq.errors import PatternError
from opq.probing.sensitivity import weights
from opq.sources.base import Source
from opq.streaming.chunks import tensors_of
from opq.streaming.measure import Measure, measure, packed, scale_square, scales_of, ties, unpacked
from opq.streaming.paths import block
from opq.streaming.task import Task


def prepared(task: Task) -> tuple[Task, Problem[Measure]]:
    """The task, in which equal tensors are now tied, and the allocation problem."""
    roles = roles_of(task.source, task.options)
    found = measures(task, [role for role in roles if role.action == "compress"])
    same = json.loads(task.team.first(lambda: json.dumps(ties(task.source, found, task.tensors.whole)).encode()))
    if same:
        task = dataclasses.replace(task, source=tied(task.source, same))
        roles = roles_of(task.source, task.options)
    found = {r.name: found[r.name] for r in roles if r.action == "compress"}
    with task.clock("solve"):
        told = probed(task)
    task, scaled = by_rows(task, roles, told)
    found |= measures(task, [role for role in roles if role.name in scaled])
    layouts = {} if task.carried is None else task.carried.layouts
    transposed = {name for name, layout in layouts.items() if layout.transposed}
    trellised = may_follow(roles, transposed.__contains__) if task.options.trellis else frozenset()
    compiled.prepare(in_numpy(roles, trellised, fed=task.carried is not None), task.options.progress)
    with task.clock("curves"):
        rates = least_rates(task, trellised, found)
    with task.clock("solve"):
        return task, Problem(
            options=task.options,
            roles=roles,
            stats=found,
            sensitivities=sensitivities(task, roles, found, told),
            curves={name: one.curve for name, one in found.items()},
            trellised=rates,
        )


def probed(task: Task) -> Told | None:
    """What a probe tells, in blocks or of the whole model; None without one."""
    if task.carried is not None:
        return task.carried.found(task.source)
    return probe_source(task.source, task.options) if task.options.probe else None


def by_rows(task: Task, roles: Sequence[Role], told: Told | None) -> tuple[Task, frozenset[str]]:
    """The task with rows scaled by what the probe tells, and the tensors whose rows these are."""
    if told is None or not task.options.by_outputs:
        return task, frozenset()
    source = ByOutputs.of(task.source, roles, told, turning=False, looking=False)
    if not isinstance(source, ByOutputs):
        return task, frozenset()
    return dataclasses.replace(task, source=source, tensors=tensors_of(source)), frozenset(source.exponents)


def least_rates(task: Task, names: frozenset[str], found: Mapping[str, Measure]) -> LeastRates:
    """Of the tensors that may be on a trellis, the rate from which on it pays, as for a single file.

    One process compares for all, at every rate, since all must plan alike.
    """

    def one(name: str, rate: float) -> bool:
        spec = task.source.by_name[name]
        width = spec.size // spec.shape[0]
        pieces = [block(lambda a, b: task.tensors.read(name, a, b), width, *piece) for piece in sample(spec.shape)]
        return pays(torch.cat(pieces), found[name].curve, found[name].max_abs, rate)

    def work() -> bytes:
        every = LeastRates(names, TRIED, one)
        return json.dumps(dict(zip(every, task.pool.ordered(every.__getitem__, every), strict=True))).encode()

    return LeastRates.of(json.loads(task.team.first(work)))


def roles_of(source: Source, options: Options) -> tuple[Role, ...]:
    """As in `opq.compression.roles.assign`; in addition, the scales of float8 weights are kept."""
    scales = set(scales_of(source).values())
    return tuple(
        dataclasses.replace(role, action="keep", reason="scales of float8 weights", exact=True)
        if role.name in scales and role.action == "compress" and not role.asked
        else role
        for role in assign(source.specs, options.overrides)
    )


def measures(task: Task, roles: Sequence[Role]) -> dict[str, Measure]:
    """The measures of every compressed tensor, in the source's order; each rank measures whole source shards."""
    groups: dict[Path | None, list[Role]] = {}
    for role in roles:
        groups.setdefault(task.source.files.get(role.name), []).append(role)
    listed = list(groups.values())
    mine = task.team.mine([sum(role.spec.nbytes for role in group) for group in listed])

    def work() -> bytes:
        found: dict[str, Measure] = {}
        for k in mine:
            found |= _shard(task, listed[k], len(found), len(roles))
        return packed(found)

    gathered: dict[str, Measure] = {}
    for part in task.team.each(work):
        gathered |= unpacked(part)
    return {role.name: gathered[role.name] for role in roles}


def _shard(task: Task, roles: Sequence[Role], done: int, total: int) -> dict[str, Measure]:
    """The measures of one source shard: those of an earlier run, or new ones, which are kept for a later run."""
    specs = [role.spec for role in roles]
    kept_as = task.identities.measures(specs, b"".join(head(task.source, role.name) for role in roles))
    if (before := task.work.get(kept_as)) is not None:
        return unpacked(before)
    found = {}
    for name, one in measure(specs, task.tensors, task.pool, task.clock):
        found[name] = one
        task.options.progress("statistics", done + len(found), total)
    task.work.put(kept_as, packed(found))
    return found


def sensitivities(task: Task, roles: Sequence[Role], found: dict[str, Measure], told: Told | None) -> dict[str, float]:
    """`a_i` of every compressed tensor: as given, else by the probe, else by what the weights alone tell."""
    source, options = task.source, task.options
    given = options.sensitivities or {}
    if unknown := sorted(set(given) - set(found)):
        raise PatternError("sensitivities= names no compressed tensor", got=", ".join(unknown[:5]))
    alpha = 1.0 if options.alpha is None else options.alpha
    if told is not None:
        a = _alike(source, found) | weights(of_rows(source, told.sensitivity), found, alpha)
    else:
        a = guessed(source, found, options.budget) if options.weighs and not given else _alike(source, found)
    a |= given
    return a | {r.name: r.sensitivity for r in roles if r.name in a and r.sensitivity is not None}


def _alike(source: Source, found: Mapping[str, Measure]) -> dict[str, float]:
    """1 for every tensor; for float8, whose weights are codes times scales, the mean square of the scales."""
    scales = scales_of(source)
    return {name: scale_square(source, scales[name]) if name in scales else 1.0 for name in found}
