"""Factors of moments, also of those that rounding has left without one, and what errors cost."""

from __future__ import annotations

import numpy as np
import torch

from opq.quantizing.moment import Layout, Moment, costs, factor


def diagonal(n: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """`D` of `s = N D N'`, which is diagonal."""
    inverse = torch.linalg.inv(n)
    d = inverse @ s @ inverse.transpose(1, 2)
    found = d.diagonal(dim1=1, dim2=2)
    assert torch.allclose(d, torch.diag_embed(found), atol=1e-4)
    return found


def test_a_moment_that_is_not_positive_definite_is_damped_until_it_is() -> None:
    s = torch.tensor([[[1.0, 3.0], [3.0, 1.0]], [[2.0, 0.5], [0.5, 1.0]]])
    found = factor(s.clone(), 0.05)
    assert torch.isfinite(found).all()
    assert torch.equal(found.diagonal(dim1=1, dim2=2), torch.ones(2, 2))
    assert torch.equal(found.tril(-1), torch.zeros(2, 2, 2))
    mean = s.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    left = diagonal(found, s / mean + 0.05 * (1 + 10 + 100) * torch.eye(2))  # 0.55 is too little for the first
    assert (left > 0).all()


def test_one_that_has_a_factor_is_damped_once() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 50, 8, generator=g)
    s = x.transpose(1, 2) @ x / 50
    n = factor(s.clone(), 0.05)
    diagonal(n, s + 0.05 * s.diagonal(dim1=1, dim2=2).mean() * torch.eye(8))


def test_costs_are_what_is_left_of_an_error_once_those_behind_have_made_up_for_it() -> None:
    """By the inverse of what is behind each coordinate, one at a time, in blocks, whatever the scales are."""
    g = torch.Generator().manual_seed(0)
    blocks, wanted = [], []
    for d in (9, 5):
        x = torch.randn(40, d, generator=g) @ torch.randn(d, d, generator=g) * torch.logspace(-6, 3, d)
        s = (x.T @ x / 40).double()
        blocks.append(s.float()[None])
        s = s + 0.05 * torch.diag(s.diagonal())
        order, cost = s.diagonal().argsort(descending=True).tolist(), np.zeros(d)
        for i, j in enumerate(order):
            cost[j] = 1 / torch.linalg.inv(s[order[i:]][:, order[i:]])[0, 0]
        wanted.append(cost)
    np.testing.assert_allclose(costs(Moment(Layout(), tuple(blocks))), np.concatenate(wanted), rtol=1e-3)


def test_an_input_that_is_always_zero_costs_nothing() -> None:
    s = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]])
    found = costs(Moment(Layout(), (s,)))
    assert found[1] == 0
    assert np.isfinite(found).all()
    np.testing.assert_allclose(sorted(found[[0, 2]]), [2.1 - 1 / 2.1, 2.1], rtol=1e-5)


def test_where_a_moment_is_none_an_error_costs_what_its_input_has_of_power() -> None:
    """Correlations of 3: nothing tells what makes up for what."""
    s = torch.tensor([[[1.0, 6.0], [6.0, 4.0]]])
    assert costs(Moment(Layout(), (s,))).tolist() == [1.0, 4.0]
