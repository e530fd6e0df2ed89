"""Texts in place of random tokens, for a model of which one block is in memory at a time.

To write texts word by word would take all blocks from disk for each word. So all words are drawn at once, as
`opq.probing.texts.drafted` does, a block at a time.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from opq.probing.texts import shaken, temperatures

if TYPE_CHECKING:
    from opq.streaming.block_probe import Carried

DRAWN = 4
"""How often all words are drawn."""
_IDS, _DRAFT = "ids", "draft"


def write(carried: Carried) -> None:
    """Gives the model texts of its own to read; random tokens stay where it has no scores of the next word."""
    if not carried.blocks.writes:
        return
    for turn in range(DRAWN):
        carried.team.each(lambda turn=turn: _turn(carried, turn))  # type: ignore[misc]
        parts = range(carried.blocks.parts)
        carried.blocks.reads(torch.cat([carried.get(_IDS, turn, part)[0] for part in parts]))


def _turn(carried: Carried, turn: int) -> bytes:
    """Draws all words of this process' parts anew."""
    blocks = carried.blocks
    left = carried.left(_IDS, turn, carried.mine(range(blocks.parts)))
    for part in left:
        carried.put(_DRAFT, 0, part, carried.alone(blocks.front, part))
    for k in range(len(blocks) if left else 0):
        with carried.filled(k):
            carried.each(left, functools.partial(_onwards, carried, k))
    for part in left:
        carried.put(_IDS, turn, part, carried.alone(functools.partial(_drawn, carried), part))
    return b""


def _onwards(carried: Carried, k: int, part: int) -> None:
    with carried.clock("probe"), torch.no_grad():
        carried.put(_DRAFT, 0, part, carried.blocks.run(k, carried.get(_DRAFT, 0, part)[0]))


@torch.no_grad()
def _drawn(carried: Carried, part: int) -> torch.Tensor:
    """New words of one part, (texts, tokens), some rows of the output matrix at a time. The first word stays."""
    blocks = carried.blocks
    generator = torch.Generator().manual_seed(carried.seed + 104729 * (part + 1))
    hidden = blocks.tail(carried.get(_DRAFT, 0, part)[0])
    heat = temperatures(len(hidden))[:, None, None]
    special = torch.tensor(blocks.special, dtype=torch.long)
    best, words = torch.full(hidden.shape[:2], -torch.inf), torch.zeros(hidden.shape[:2], dtype=torch.long)
    for start, weight in carried.head_pieces():
        scores = shaken(blocks.scale * (hidden @ weight.T) / heat, generator)
        scores[..., special[(special >= start) & (special < start + len(weight))] - start] = -torch.inf
        highest, at = scores.max(-1)
        words = torch.where(highest > best, at + start, words)
        best = torch.maximum(best, highest)
    before = blocks.ids[len(hidden) * part : len(hidden) * (part + 1)]
    return torch.cat([before[:, :1], words[:, :-1]], 1)
