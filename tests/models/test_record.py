"""What a forward leaves behind in a model is taken away again."""

from __future__ import annotations

import collections
import copy
from typing import Any

import pytest
import torch
from states import same
from torch import nn

import opq
from opq.models import record
from opq.models.observe import untouched
from opq.models.record import Record


class State:
    """An object that is no module, as caches of keys and values are."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.length = 0


class Leaving(nn.Module):
    """Leaves all kinds of things behind, some of them with a graph that can be gone through only once."""

    running: torch.Tensor
    written: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 64), nn.Linear(64, 32)
        self.words = nn.Embedding(9, 64, max_norm=0.5)
        self.bias = nn.Parameter(torch.randn(4))
        self.register_buffer("running", torch.zeros(64))
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("maybe", None)
        self.cache: dict[str, torch.Tensor] = {}
        self.last: torch.Tensor | None = None
        self.plain = torch.ones(3)
        self.kept: collections.deque[int] = collections.deque(maxlen=4)
        self.names, self.state, self.calls = {"a"}, State(), 0
        self.generator = torch.Generator().manual_seed(7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias.repeat(16)
        h = self.enter(x) + self.cache["bias"] + self.words(torch.arange(9)).sum(0)
        self.running = self.running + h.detach().mean(0)
        self.maybe = h.detach()
        self.written += 1
        self.plain.mul_(2)
        self.last = h
        self.calls += 1
        self.kept.append(self.calls)
        self.names.add(str(self.calls))
        self.state.keys.append(h)
        self.state.length += 1
        self.late = h.sum()
        self.leave.bias.data = self.leave.bias.data * 0.5
        self.leave.weight.data.mul_(0.99)
        noise = torch.randn(h.shape, generator=self.generator)
        return self.leave(torch.relu(h + 0.01 * noise))


def flat(model: Leaving) -> dict[str, Any]:
    """Everything that can be asked for, by identity or value."""
    tensors = {name: (id(t), t.clone(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}
    others = {k: copy.copy(v) for k, v in vars(model).items() if k not in ("_buffers", "_modules", "_parameters")}
    others["plain"], others["state"] = model.plain.clone(), copy.deepcopy(vars(model.state))
    others["generator"] = model.generator.get_state()
    grads = [p.grad for p in model.parameters()]
    return {"tensors": tensors, "others": others, "order": list(vars(model)), "grads": grads}


@pytest.mark.parametrize("training", [True, False])
def test_a_probed_compression_leaves_nothing_behind(training: bool) -> None:
    torch.manual_seed(0)
    model = Leaving().train(training)
    model.enter.weight.grad = torch.full_like(model.enter.weight, 3.0)
    before = flat(model)
    result = opq.compress(model, bits=12, probe=True, input_size=(6,))
    assert result.basis.startswith("a probe")
    assert same(before, flat(model))
    dense = model.state_dict()
    assert float((result.state_dict()["enter.weight"] - dense["enter.weight"]).abs().max()) < 0.05


def test_a_cache_does_not_hide_a_weight_from_the_probe() -> None:
    torch.manual_seed(0)
    model = Leaving().eval()
    fresh = opq.probe(model, input_size=(6,), samples=8, micro_batch=2).sensitivity
    model(torch.randn(2, 6))  # the user's own call fills the cache, as modules that drop it on train() do
    cached = dict(model.cache)

    def train(mode: bool = True) -> Leaving:
        model.cache.clear()
        return nn.Module.train(model, mode)

    model.train = train  # type: ignore[method-assign]
    again = opq.probe(model, input_size=(6,), samples=8, micro_batch=2).sensitivity
    assert fresh["bias"] > 0
    assert again["bias"] > 0
    assert model.cache == cached


def test_the_order_of_buffers_survives_their_removal() -> None:
    model = nn.BatchNorm1d(3)
    kept = Record(model)
    mean = model.running_mean
    del model.running_mean
    model.running_mean = torch.ones(3)
    assert "running_mean" not in model.state_dict()
    kept.restore()
    assert list(model.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert model.running_mean is mean


def test_what_did_not_change_is_not_written() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    versions = [t._version for t in model.state_dict(keep_vars=True).values()]
    x = torch.randn(4, 3)
    out = model.eval()(x)
    with untouched(model):
        model(x)
    assert [t._version for t in model.state_dict(keep_vars=True).values()] == versions
    out.sum().backward()  # the graph that the user holds is still good


def test_gradients_that_a_forward_makes_are_gone() -> None:
    class Backward(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                super().forward(x).sum().backward()
            return super().forward(x)

    model = Backward(3, 4)
    model.weight.grad = torch.ones(4, 3)
    mine = model.weight.grad
    opq.probe(model, samples=4)
    assert model.weight.grad is mine
    assert torch.equal(mine, torch.ones(4, 3))
    assert model.bias.grad is None


def test_large_models_keep_the_values_of_what_torch_is_known_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "WEIGHTS", 0)
    model = nn.Sequential(nn.Embedding(5, 8, max_norm=0.1), nn.Linear(8, 3))
    before = copy.deepcopy(model.state_dict())
    with untouched(model):
        model(torch.arange(5))
        assert not torch.equal(before["0.weight"], model[0].weight)
    assert same(dict(before), dict(model.state_dict()))


def test_shared_expanded_and_cyclic_things_are_no_trouble() -> None:
    model = nn.Linear(3, 3)
    model.register_buffer("wide", torch.zeros(1).expand(5))
    model.register_buffer("meta", torch.zeros(4, device="meta"))
    me: list[Any] = [model, {"me": model}]
    many = list(range(record.LONGEST + 5))
    vars(model).update(me=me, many=many)
    kept = Record(model, weights=True)
    many.append(1)
    me.append(None)
    kept.restore()
    assert (len(many), len(me)) == (record.LONGEST + 5, 2)


class Clipping(nn.Module):
    """Writes one of its weights whenever it runs, past the counter of versions."""

    def __init__(self) -> None:
        super().__init__()
        self.clipped, self.plain = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clipped.weight.data.mul_(0.5)
        return self.plain(self.clipped(x))


def test_weights_that_a_first_run_has_left_alone_need_no_copy() -> None:
    model = Clipping()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with untouched(model) as kept:
        for _ in range(3):
            model(torch.randn(2, 4))
            kept.settle()
        assert [one.tensor is model.clipped.weight for one in kept._tensors if one.values is not None] == [True]
    assert same(model.state_dict(), before)
