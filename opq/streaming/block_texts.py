"""Texts in place of random tokens, for a model of which one block is in memory at a time.

To write texts word by word would take all blocks from disk for each word. So all places are drawn anew at once, each
from the words that stand before it, and that again (Jacobi's iteration, with the same noise each time): the first words
are then what the model writes, and all others follow from words that resemble them.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from opq.probing.texts import temperatures

if TYPE_CHECKING:
    from opq.streaming.block_probe import Carried

DRAWN = 2
"""How often all words are drawn. Measured on stories260K in memory at 3 bits, two seeds: divergence 0.261 with one,
0.231 with two, 0.236 with eight, 0.220 with sixteen; texts written word by word 0.202 (docs/research.md)."""
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
    """New words of one part, (texts, tokens), some rows of the output matrix at a time: that whose score and noise, of
    Gumbel's distribution, are the largest together is drawn by the softmax of the scores. The first word stays.
    """
    blocks = carried.blocks
    generator = torch.Generator().manual_seed(carried.seed + 104729 * (part + 1))
    hidden = blocks.tail(carried.get(_DRAFT, 0, part)[0])
    heat = temperatures(len(hidden))[:, None, None]
    rows, special = blocks.spec(str(blocks.head)).shape[0], torch.tensor(blocks.special, dtype=torch.long)
    best, words = torch.full(hidden.shape[:2], -torch.inf), torch.zeros(hidden.shape[:2], dtype=torch.long)
    for start in range(0, rows, carried.rows):
        weight = blocks.head_rows(start, min(start + carried.rows, rows))
        scores = blocks.scale * (hidden @ weight.T) / heat
        scores -= torch.rand(scores.shape, generator=generator).log_().neg_().log_()
        scores[..., special[(special >= start) & (special < start + len(weight))] - start] = -torch.inf
        highest, at = scores.max(-1)
        words = torch.where(highest > best, at + start, words)
        best = torch.maximum(best, highest)
    before = blocks.ids[len(hidden) * part : len(hidden) * (part + 1)]
    return torch.cat([before[:, :1], words[:, :-1]], 1)
