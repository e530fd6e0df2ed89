"""How tensors that are not compressed are stored: nothing skipped, each as small as is harmless."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from opq.container import Raw, Stored
from opq.plan import Plan
from opq.sources import Source


def keep(source: Source, plan: Plan, changed: Mapping[str, torch.Tensor]) -> list[Stored]:
    """The stored form of every kept tensor; `changed` holds new values by name."""
    names = [t.name for t in plan if t.action == "keep"]
    return [Raw(name, changed.get(name, source.tensor(name))) for name in names]
