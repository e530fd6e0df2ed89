"""The reverse sweep: from random numbers on a model's outputs back through it, block by block, to the squares of
gradients of its matrices.

For a matrix with inputs `x_t` and gradients `g_t` at its outputs,
`sum (d v'f / d w)^2 = |sum_t g_t x_t'|^2 = sum_tu (g_t'g_u)(x_t'x_u)` over the tokens t, u of one text, so that the
gradient of the matrix is never formed; output by output these are the sensitivities of its rows. The model's outputs
are the logits before they are scaled or capped.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from opq.streaming.block_inputs import Seen, linear

if TYPE_CHECKING:
    from opq.streaming.block_probe import Carried

Felt = dict[str, torch.Tensor]
"""`(d v'f / d w)^2`, its mean over the inputs and its sum or mean over texts, by tensor: (outputs,), or (1,) where all
have the same or their mean is all that is known; float64."""


def reverse(carried: Carried, mine: list[int]) -> bytes:
    """The sweep over this process' parts: their squares by block are put into files; that is all it gives."""
    last = len(carried.blocks)
    for part in carried.left("squares", last, mine):
        carried.put("squares", last, part, *carried.alone(functools.partial(_from_outputs, carried), part))
    for k in reversed(range(last)):
        if left := carried.left("squares", k, mine):
            with carried.filled(k) as block, Seen(linear(block)) as seen:
                carried.each(left, functools.partial(_back, carried, k, seen))
        carried.progress("probe", 2 * last - k, 2 * last)
    for part in carried.left("squares", -1, mine):
        carried.put("squares", -1, part, *carried.alone(functools.partial(_to_front, carried), part))
    return b""


def _back(carried: Carried, k: int, seen: Seen, part: int) -> None:
    with carried.clock("probe"):
        found = through(carried, k, seen, part)
    carried.put("squares", k, part, *found)


def _from_outputs(carried: Carried, part: int) -> tuple[torch.Tensor, Felt]:
    """The part after the blocks: the cotangent at the last block's output."""
    generator = torch.Generator().manual_seed(carried.seed + 7919 * (part + 1))
    with torch.enable_grad():
        hidden = carried.input(len(carried.blocks), part).requires_grad_()
        out = carried.blocks.tail(hidden)
        cotangent, felt = at_head(carried, out.detach(), generator)
        return torch.autograd.grad(out, hidden, cotangent)[0], felt


def at_head(carried: Carried, h: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, Felt]:
    """`W'v` for `v ~ N(0, I)`, some rows of `W` at a time; for `W` itself `E[(v_ti h_tj)^2] = h_tj^2`."""
    name = carried.blocks.head
    if name is None:
        return torch.randn(h.shape, generator=generator), {}
    cotangent = torch.zeros_like(h)
    for _, weight in carried.head_pieces():
        cotangent += torch.randn((*h.shape[:-1], len(weight)), generator=generator) @ weight
    return cotangent, {name: h.double().square().sum()[None] / h.shape[-1]}


def through(carried: Carried, k: int, seen: Seen, part: int) -> tuple[torch.Tensor, Felt]:
    """Back through block k: the cotangent at its input, and the sums for its matrices."""
    block, names = carried.blocks.blocks[k], carried.blocks.named(k)
    matrices = linear(block)
    other = {n: p.requires_grad_() for n, p in block.named_parameters() if p.dim() >= 2 and n not in matrices}
    with torch.enable_grad():
        hidden = carried.input(k, part).requires_grad_()
        out, given = seen.during(lambda: carried.blocks.run(k, hidden))
        ends = [hidden, *(y for _, y in given.values()), *other.values()]
        back, *gradients = torch.autograd.grad(out, ends, carried.get("squares", k + 1, part)[0], allow_unused=True)
    felt = {}
    for (name, (x, _)), g in zip(given.items(), gradients, strict=False):
        if g is not None:
            felt[names[name]] = _squares(x.detach(), g) / x.shape[-1]
    for name, g in zip(other, gradients[len(given) :], strict=True):
        if g is not None:
            felt[names[name]] = g.double().square().flatten(1).mean(1)
    return back, felt


def _to_front(carried: Carried, part: int) -> tuple[torch.Tensor, Felt]:
    """Back to what is before the blocks. Only some rows of the embedding are used; the others count as 0."""
    around = carried.blocks.around
    with torch.enable_grad():
        for parameter in around.values():
            parameter.requires_grad_(True)
        hidden, cotangent = carried.blocks.front(part), carried.get("squares", 0, part)[0]
        gradients = torch.autograd.grad(hidden, list(around.values()), cotangent, allow_unused=True)
    both = zip(around, gradients, strict=True)
    felt = {n: g.double().square().sum()[None] / carried.blocks.spec(n).size for n, g in both if g is not None}
    return torch.zeros(0), felt


def _squares(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """`|sum_t g_tj x_t'|^2` by output j, summed over texts; without a dimension for texts, all tokens are of one."""
    x, g = (t if t.dim() == 3 else t.flatten(0, -2)[None] for t in (x, g))
    return ((x @ x.transpose(1, 2)).double() @ g.double()).mul_(g).sum((0, 1))
