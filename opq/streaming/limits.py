"""How much is worked on at once, and how often something is repeated. All these numbers are choices: those of weights
trade memory for speed, the others time for a size nearer to the budget."""

from __future__ import annotations

import dataclasses

from opq.compression.budget import WINDOW


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The numerical limits of one compression of a folder."""

    cached: int = 1 << 27
    """The most weights of a tensor whose codes are kept in memory between the sweeps."""
    alone: int = 1 << 27
    """Tensors of more weights are coded one at a time, their chunks in parallel."""
    slab: int = 1 << 22
    """Weights that error feedback sweeps at once."""
    fed_blocks: int = 8
    """The number of blocks in which the bits that error feedback adds are measured."""
    samplings: int = 4
    """How often, at most, samples are taken while the solution still changes: what classes save depends on the rate."""
    rounds: int = 6
    """How often, at most, pass two is run."""
    window: float = WINDOW
    """The fraction of the budget that should be used at least."""


LIMITS = Limits()
