"""Moments that rounding has left without a Cholesky factor are factored all the same."""

from __future__ import annotations

import torch

from opq.quantizing.moment import factor


def test_a_moment_that_is_not_positive_definite_is_damped_until_it_is() -> None:
    s = torch.tensor([[[1.0, 3.0], [3.0, 1.0]], [[2.0, 0.5], [0.5, 1.0]]])
    found = factor(s.clone(), 0.05)
    assert torch.isfinite(found).all()
    assert torch.equal(found.diagonal(dim1=1, dim2=2), torch.ones(2, 2))
    assert torch.equal(found.tril(-1), torch.zeros(2, 2, 2))


def test_one_that_has_a_factor_is_damped_once() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 50, 8, generator=g)
    s = x.transpose(1, 2) @ x / 50
    n = factor(s.clone(), 0.05)
    damped = s + 0.05 * s.diagonal(dim1=1, dim2=2).mean() * torch.eye(8)
    inverse = torch.linalg.inv(n)
    d = inverse @ damped @ inverse.transpose(1, 2)
    assert torch.allclose(d, torch.diag_embed(d.diagonal(dim1=1, dim2=2)), atol=1e-4)
