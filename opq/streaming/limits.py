"""How much is worked on at once, and how often something is tried."""

from __future__ import annotations

import dataclasses

from opq.compression.budget import WINDOW


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The numbers that one compression of a folder works by."""

    cached: int = 1 << 27
    """Weights whose codes are kept in memory between the sweeps of a tensor."""
    alone: int = 1 << 27
    """Tensors of more weights are coded one at a time, their chunks in parallel."""
    slab: int = 1 << 22
    """Weights that error feedback sweeps at once."""
    fed_blocks: int = 8
    """Blocks in which it is measured what error feedback adds to the bits."""
    samplings: int = 4
    """Samples are taken anew, so often at most, while the solution moves: what classes save is a fraction of the rate
    that depends on the rate."""
    rounds: int = 6
    """How often pass two is run, at most."""
    window: float = WINDOW
    """Part of the budget that is used at least, where it can be."""


LIMITS = Limits()
