"""Where the tensors of a plan are in a model: by module and attribute."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from opq.errors import MismatchError
from opq.plan import Plan
from opq.training.fixed_grid import FixedGrid

Site = tuple[nn.Module, str]
"""A module and the name of one of its own tensors."""


def grids(module: nn.Module) -> dict[str, FixedGrid]:
    """The grids on a module's own tensors, by attribute."""
    if not parametrize.is_parametrized(module):
        return {}
    stacks: Any = module.parametrizations
    return {attribute: stack[0] for attribute, stack in stacks.items() if isinstance(stack[0], FixedGrid)}


def plain(module: nn.Module, attribute: str) -> torch.Tensor:
    """A module's own tensor; if a grid is attached, the plain weight behind it."""
    stacks: Any = module.parametrizations if attribute in grids(module) else {}
    own: Any = module._parameters if attribute in module._parameters else module._buffers
    tensor: torch.Tensor = stacks[attribute].original if stacks else own[attribute]
    return tensor


def tensors(model: nn.Module) -> dict[str, Site]:
    """The site of each tensor of the state dict, with the names and the order that it has without grids."""
    sites: dict[str, Site] = {}
    ours: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        if path.startswith(ours or "\0"):
            continue
        prefix = f"{path}." if path else ""
        ours += tuple(f"{prefix}parametrizations.{attribute}" for attribute in grids(module))
        buffers = [k for k in module._buffers if k not in module._non_persistent_buffers_set]
        for attribute in dict.fromkeys([*order(module), *module._parameters, *buffers, *grids(module)]):
            if attribute in grids(module) or plain(module, attribute) is not None:
                sites[f"{prefix}{attribute}"] = module, attribute
    return sites


def order(module: nn.Module) -> tuple[str, ...]:
    """The order of a module's own parameters before grids were attached."""
    names: tuple[str, ...] = module.__dict__.get("_opq_order", tuple(module._parameters))
    return names


def find(model: nn.Module, plan: Plan) -> dict[str, list[Site]]:
    """For every compressed tensor of the plan, all its sites; several if it is tied.

    Raises:
        MismatchError: names, shapes or ties of plan and model differ; they are listed.
    """
    where = tensors(model)
    wrong = _wrong_names({name: tuple(plain(*site).shape) for name, site in where.items()}, plan)
    if not wrong:
        holders: dict[int, list[str]] = {}
        for name, site in where.items():
            holders.setdefault(id(plain(*site)), []).append(name)
        wrong = _wrong_ties(list(holders.values()), plan)
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise MismatchError("the plan is for another model", got="; ".join(wrong[:8]) + more)
    compressed = {t.name for t in plan.compressed}
    return {n: [where[k] for k in names] for names in holders.values() for n in names if n in compressed}


def _wrong_names(found: dict[str, tuple[int, ...]], plan: Plan) -> list[str]:
    wanted = {t.name: t.shape for t in plan}
    wrong = [f"{n} is {list(found[n])}, planned {list(s)}" for n, s in wanted.items() if found.get(n, s) != s]
    wrong += [f"{n} {list(s)} is not in the model" for n, s in wanted.items() if n not in found]
    return wrong + [f"{n} {list(s)} is not in the plan" for n, s in found.items() if n not in wanted]


def _wrong_ties(groups: list[list[str]], plan: Plan) -> list[str]:
    """Tensors that are tied in the model but not in the plan, or the other way round."""
    group_of = {name: names for names in groups for name in names}
    wrong = []
    for t in plan.compressed:
        own = [n for n in group_of[t.name] if n != t.name and plan[n].action != "share"]
        wrong += [f"{t.name} and {n} are one tensor in the model, two in the plan" for n in own]
        tied = [p.name for p in plan if p.like == t.name and p.name not in group_of[t.name]]
        wrong += [f"{t.name} and {n} are two tensors in the model, one in the plan" for n in tied]
    return wrong
