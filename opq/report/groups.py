"""Many tensors as few: the rate-distortion curves of a group are one curve.

Under one multiplier every tensor of a group sits where its own weighted slope is that multiplier, so the rates and the
weighted errors of the group add up to a curve with the same slopes: `R(lambda) = sum n_i R_i / sum n_i`,
`D(lambda) = sum a_i n_i D_i / sum n_i`, sensitivity 1. A page that solves with the groups' curves gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from opq.report.figures import POINTS, Drawn, samples

CURVES = 150
"""Curves that a page draws and solves with."""


def curves(tensors: Sequence[Drawn]) -> list[dict[str, Any]]:
    """The curves of tensors as a page's script reads them: one a tensor, or one a group where there are many.

    Tensors whose names differ in numbers only are a group; beyond `CURVES` of them the smallest are one.
    """
    own = [t for t in tensors if t.curve is not None]
    if len(own) <= CURVES:
        return [_curve(t) for t in own]
    alike: dict[str, list[Drawn]] = {}
    for tensor in own:
        alike.setdefault(re.sub(r"\d+", "*", tensor.plan.name), []).append(tensor)
    large = sorted(alike, key=lambda name: -sum(t.plan.size for t in alike[name]))[: CURVES - 1]
    rest = [t for name, group in alike.items() if name not in set(large) for t in group]
    named = [(name, group) for name, group in alike.items() if name in set(large)]
    return [_merged(*one) for one in named + ([("all others", rest)] if rest else [])]


def reasons(tensors: Sequence[Drawn]) -> list[list[Any]]:
    """What was not compressed, by reason: the reason, tensors, elements, bytes in the file."""
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
