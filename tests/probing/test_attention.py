"""The inputs of attention's output projection, which no hook sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plans import planned
from torch import Tensor, nn

from opq.models.batch import Batch
from opq.probing.moments import Moments
from opq.quantizing.feedback import sweep
from opq.quantizing.grid import dequantize, quantize


def _heads(model: nn.MultiheadAttention, x: Tensor, hidden: Tensor | None) -> Tensor:
    """What two heads give for (samples, length, 6), by the definition."""
    q, k, v = (x @ model.in_proj_weight.T + model.in_proj_bias).chunk(3, -1)
    every = []
    for own in (slice(0, 3), slice(3, 6)):
        scores = q[..., own] @ k[..., own].transpose(1, 2) / 3**0.5
        scores = scores if hidden is None else scores.masked_fill(hidden[:, None], -torch.inf)
        every.append(scores.softmax(-1) @ v[..., own])
    return torch.cat(every, -1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("hides", [True, False])
def test_the_output_projection_is_multiplied_by_what_the_heads_give(batch_first: bool, hides: bool) -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(6, 2, batch_first=batch_first).requires_grad_(False)
    model.in_proj_bias.copy_(torch.randn(18))
    x = torch.randn(4, 5, 6)
    hidden = torch.arange(5)[None] >= torch.tensor([5, 4, 2, 5])[:, None] if hides else None
    heads = _heads(model, x, hidden)
    given = x if batch_first else x.transpose(0, 1)
    output = model(given, given, given, key_padding_mask=hidden)[0]
    torch.testing.assert_close(output if batch_first else output.transpose(0, 1), model.out_proj(heads))

    more: dict[str, Any] = {} if hidden is None else {"key_padding_mask": hidden}
    dims = (0,) * 4 if batch_first else (1, 1, 1, *[0] * len(more))
    batch = Batch((given, given, given), more, dim=dims[: 3 + len(more)])
    before = dict(model.state_dict())
    found = Moments(model, batch)["out_proj.weight"]
    flat = heads.flatten(0, 1)
    torch.testing.assert_close(found.blocks[0][0], flat.T @ flat / 20)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model._forward_pre_hooks


def test_it_is_fed_back() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    moment = Moments(layer, Batch((torch.randn(32, 10, 16) @ torch.randn(16, 16),)))["self_attn.out_proj.weight"]
    w = layer.self_attn.out_proj.weight.detach()
    coarse = planned("w", (16, 16), step=0.25, threshold=0.15, rounding=0.6)
    (fed,), rounded = sweep(w, [coarse], moment), quantize(w, coarse)
    s = moment.blocks[0][0]
    errors = [w - dequantize(q, coarse, torch.float32) for q in (fed, rounded)]
    assert torch.trace(errors[0] @ s @ errors[0].T) < 0.8 * torch.trace(errors[1] @ s @ errors[1].T)


def test_a_projection_that_a_forward_of_its_own_calls_is_seen_once() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.out_proj(x + 1)

    model, x = Own(6, 2), torch.randn(7, 6)
    torch.testing.assert_close(Moments(model, Batch((x,)))["out_proj.weight"].blocks[0][0], (x + 1).T @ (x + 1) / 7)
