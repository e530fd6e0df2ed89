"""Stacked experts: each has the moment of the tokens that are sent to it, and is fed back by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opq
from opq.probing import inside
from opq.quantizing.moment import Layout

WIDTH, INNER, COUNT = 16, 12, 4


def _model(kind: str = "Mixtral", **more: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    sizes = {"vocab_size": 40, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": COUNT, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads, **more)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def _ids() -> dict[str, Tensor]:
    ids = torch.randint(40, (16, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
def test_the_moments_are_those_of_the_tokens_sent_to_each_expert(kind: str) -> None:
    model = _model(kind)
    module = model.model.layers[0].mlp.experts
    told = opq.probe(model, calibration=[_ids()], micro_batch=4)
    seen: list[tuple[Tensor, ...]] = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: seen.append((*args, *kwargs.values())),
                                              with_kwargs=True)  # fmt: skip
    model(**_ids())
    handle.remove()
    x, index, *_ = seen[0]
    up, down = (f"model.layers.0.mlp.experts.{n}_proj" for n in ("gate_up", "down"))
    for number in range(COUNT):
        own = x.reshape(-1, WIDTH)[(index.reshape(-1, 2) == number).any(-1)].detach()
        wanted = own.T @ own
        found = told.moments[up].blocks[0][number]
        assert torch.allclose(found / found.trace(), wanted / wanted.trace(), atol=1e-5)
    assert told.moments[down].blocks[0].shape == (COUNT, INNER, INNER)


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
def test_what_an_expert_makes_of_its_tokens_is_the_input_of_its_second_matrix(kind: str) -> None:
    """With the second matrices in place, the inputs give the module's own outputs."""
    module = _model(kind).model.layers[0].mlp.experts
    x, weights = torch.randn(20, WIDTH), torch.ones(20, 1)
    index = torch.arange(20)[:, None] % COUNT
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        inner = inside.seen(module, [x, index, weights])["down_proj"]
        down = module.down_proj if module.is_transposed else module.down_proj.transpose(1, 2)
        made = inner @ down
        if module.has_bias:
            made = made + module.down_proj_bias[:, None]
        assert torch.allclose(made.transpose(0, 1).reshape(20, WIDTH), module(x, index, weights), atol=1e-4)


def test_a_stack_is_its_own_matrices() -> None:
    w = torch.randn(3, 4, 5)
    for turned in (False, True):
        layout = Layout(groups=3, transposed=turned, stacked=True)
        assert torch.equal(layout.matrix(w)[1], w[1].T if turned else w[1])
        assert torch.equal(layout.tensor(layout.matrix(w), (3, 4, 5)), w)


def test_experts_that_are_fed_back_err_less() -> None:
    model = _model()
    with torch.no_grad():  # inputs that are correlated, as those of trained networks are
        model.model.embed_tokens.weight.mul_(torch.linspace(0.2, 3, WIDTH)).add_(1)
    ids = _ids()
    keep = {"*": "keep", "*experts*": {"bits": 3.0}}
    dense = model(**ids).logits.detach()
    errors = []
    for options in ({"calibration": [ids], "alpha": 0.0}, {"probe": False}):
        result = opq.compress(model, bits=30, overrides=keep, trellis=False, **options)
        other = _model()
        other.load_state_dict({**model.state_dict(), **result.state_dict()})
        errors.append(float((other(**ids).logits.detach() - dense).square().sum()))
    assert errors[0] < 0.8 * errors[1]
