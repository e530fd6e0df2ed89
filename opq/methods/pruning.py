"""Which weights are kept, by four rules. In a mask, True means kept.

Letters: `w` weights by tensor name, `s` the sparsity (fraction pruned), `t` a threshold on `|w|`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from opq.errors import OptionError

Weights = Mapping[str, torch.Tensor]
Masks = dict[str, torch.Tensor]


def uniform(w: Weights, s: float) -> Masks:
    """The same fraction `s` of every tensor pruned, smallest magnitudes first."""
    _check(s)
    return {name: _largest(v.abs(), v.numel() - round(s * v.numel())) for name, v in w.items()}


def overall(w: Weights, s: float) -> Masks:
    """The fraction `s` of all weights together pruned: one threshold for the network."""
    return _jointly({name: v.abs() for name, v in w.items()}, s)


def lamp(w: Weights, s: float) -> Masks:
    """The fraction `s` of all weights together pruned, lowest LAMP scores first; each tensor keeps its largest."""
    return _jointly({name: lamp_scores(v) for name, v in w.items()}, s)


def lamp_scores(w: torch.Tensor) -> torch.Tensor:
    """`score(u) = w_u^2 / sum of w_v^2 over |w_v| >= |w_u|` (Lee et al., ICLR 2021, equation 4); same shape, float64.

    Of equal magnitudes, those earlier in the tensor count as smaller.
    """
    squares = w.detach().to(torch.float64).flatten().square()
    ordered, order = squares.sort(stable=True)
    rest = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = torch.where(rest > 0, ordered / rest, torch.zeros_like(rest))
    return scores.reshape(w.shape)


def hysteresis(mask: torch.Tensor, w: torch.Tensor, t: float) -> torch.Tensor:
    """The next mask: a kept weight is pruned if `|w| <= 0.9 t`, a pruned one comes back if `|w| > 1.1 t`.

    Dynamic network surgery (Guo et al. 2016), as OLMP uses it.
    """
    magnitude = w.detach().abs()
    return torch.where(mask, magnitude > 0.9 * t, magnitude > 1.1 * t)


def sparsity(masks: Masks) -> float:
    """The fraction of weights that is pruned."""
    size = sum(m.numel() for m in masks.values())
    return 1 - sum(int(m.sum()) for m in masks.values()) / size if size else 0.0


def _check(s: float) -> None:
    if not 0 <= s < 1:
        raise OptionError("sparsity is out of range", got=s, wanted="0 <= sparsity < 1")


def _jointly(scores: Weights, s: float) -> Masks:
    _check(s)
    flat = torch.cat([v.flatten() for v in scores.values()])
    kept = _largest(flat, flat.numel() - round(s * flat.numel()))
    parts = torch.split_with_sizes(kept, [v.numel() for v in scores.values()])
    return {name: part.reshape(v.shape) for (name, v), part in zip(scores.items(), parts, strict=True)}


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of the `count` largest scores; of equal ones, those later in the tensor."""
    order = scores.flatten().argsort(stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[scores.numel() - count :]] = True
    return mask.reshape(scores.shape)
