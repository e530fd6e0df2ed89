"""The rate-distortion curves of a group of tensors as one curve, for files of many tensors.

For a given multiplier, every tensor of a group has the operating point where its weighted slope equals the multiplier.
So the rates and the weighted errors of the group add up to a curve with the same slopes:
`R(lambda) = sum n_i R_i / sum n_i`, `D(lambda) = sum a_i n_i D_i / sum n_i`, with sensitivity 1. A page that solves
with the curves of groups gets the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from opq.report.figures import POINTS, Drawn, samples

CURVES = 150
"""The most curves that a page draws and solves with. A choice that limits the size of the page."""


def curves(tensors: Sequence[Drawn], *, most: int = CURVES) -> list[dict[str, Any]]:
    """The curves of tensors as a page's script reads them: one for each tensor, or if there are many for each group.

    Tensors whose names differ only in numbers form a group; if there are still too many, the smallest groups are one.

    Args:
        most: the most curves.
    """
    own = [t for t in tensors if t.curve is not None]
    if len(own) <= most:
        return [_curve(t) for t in own]
    alike: dict[str, list[Drawn]] = {}
    for tensor in own:
        alike.setdefault(re.sub(r"\d+", "*", tensor.plan.name), []).append(tensor)
    large = sorted(alike, key=lambda name: -sum(t.plan.size for t in alike[name]))[: most - 1]
    rest = [t for name, group in alike.items() if name not in set(large) for t in group]
    named = [(name, group) for name, group in alike.items() if name in set(large)]
    return [_merged(*one) for one in named + ([("all others", rest)] if rest else [])]


def reasons(tensors: Sequence[Drawn]) -> list[list[Any]]:
    """The tensors that were not compressed, by reason: reason, number of tensors, elements, bytes in the file."""
    found: dict[str, list[Any]] = {}
    for tensor in tensors:
        plan = tensor.plan
        if plan.action != "compress":
            why = "shares another tensor's storage" if plan.action == "share" else plan.reason
            row = found.setdefault(why, [why, 0, 0, 0])
            row[1:] = [row[1] + 1, row[2] + plan.size, row[3] + tensor.bytes]
    return list(found.values())


def _curve(tensor: Drawn) -> dict[str, Any]:
    assert tensor.curve is not None
    plan = tensor.plan
    held = {k: v for k, v in samples(tensor.curve).items() if k != "step"}
    return {
        "name": plan.name,
        "size": plan.size,
        "bytes": tensor.bytes,
        "entropy": tensor.entropy_bytes,
        "a": plan.sensitivity,
        "curve": held,
    }


def _merged(name: str, group: Sequence[Drawn]) -> dict[str, Any]:
    if len(group) == 1:
        return _curve(group[0])
    members = [_curve(t) for t in group]
    sizes = np.array([m["size"] for m in members], float)
    log_a = np.log([m["a"] for m in members])
    slopes = [np.array(m["curve"]["slope"]) + a for m, a in zip(members, log_a, strict=True)]
    levels = np.quantile(np.concatenate(slopes), np.linspace(1, 0, POINTS))

    def added(what: str, scale: Any) -> Any:
        each = [np.interp(-levels, -s, m["curve"][what]) for s, m in zip(slopes, members, strict=True)]
        return scale @ np.array(each) / sizes.sum()

    held = {
        "rate": added("rate", sizes),
        "slope": levels,
        "distortion": added("distortion", sizes * np.exp(log_a)),
        "density": added("density", sizes),
    }
    kept = np.diff(held["rate"], prepend=-1.0) > 1e-9
    return {
        "name": f"{name} ({len(group)} tensors)",
        "size": int(sizes.sum()),
        "bytes": sum(m["bytes"] for m in members),
        "entropy": sum(m["entropy"] for m in members),
        "a": 1.0,
        "curve": {k: [float(f"{x:.5g}") for x in v[kept]] for k, v in held.items()},
    }
