"""Sensitivities that no single token decides.

A gradient is a statement of first order. Where a token's row of the table is next to nothing and a normalisation
follows, its gradient is beyond all measure (2.4e12 in SmolLM2, of the token that ends texts, where others have 1). That
row would decide what the whole table gets, and with it all other tensors, though no error of it can do more harm than
its loss.
"""

from __future__ import annotations

import math

import torch
from torch import nn

SHARE = 1 / 16
"""Of the power of a table's gradient in one micro-batch, what one row may have. A choice: the commonest word of a
language is about a twentieth of its texts."""
FEWEST = 64
"""Rows with a gradient from which on they are limited: of fewer one may well have a sixteenth."""


def tables(model: nn.Module) -> set[int]:
    """The identities of the weights whose rows belong to tokens."""
    return {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}


def kept(gradient: torch.Tensor) -> float:
    """The part of a gradient's power (rows, width) that is left where no row has more than `SHARE` of what is left.

    With the powers in falling order and the first k of them at the limit c: `c = SHARE (k c + sum of the others)`.
    """
    powers = gradient.flatten(1).square().sum(1, dtype=torch.float64)
    total = float(powers.sum())
    if not (0 < total < math.inf) or int((gradient.flatten(1) != 0).any(1).sum()) < FEWEST:
        return 1.0
    rest = total
    for k, power in enumerate(powers.topk(min(len(powers), round(1 / SHARE))).values.tolist()):
        limit = SHARE * rest / (1 - k * SHARE)
        if power <= limit:
            return 1.0 if k == 0 else (rest + k * limit) / total
        rest = max(rest - power, 0.0)
    return 1.0
