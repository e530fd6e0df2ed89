"""What the matrices of recurrent layers are multiplied by, which no hook sees: inputs of every layer, hidden states.

A module of several layers and directions is run again layer by layer. The matrix of inputs of a layer sees the states
of the layer below; that of hidden states sees the states one step before, from the first state on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)

_NAME = re.compile(r"(.+)_l(\d+)(|_reverse)")
"""What, layer, direction."""


def matrices(module: nn.Module) -> tuple[str, ...]:
    """The names of the weights of a recurrent module whose inputs `seen` gives; none for other modules."""
    if isinstance(module, CELLS):
        return ("weight_ih", "weight_hh")
    if isinstance(module, RECURRENT):
        return tuple(name for name, _ in module.named_parameters() if name.startswith(("weight_ih", "weight_hh")))
    return ()


def seen(module: nn.Module, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By weight name the inputs (steps, d) of each matrix, in one call of a recurrent module.

    Args:
        given: the tensors of the call in their order: inputs, of a packed sequence its four or fewer tensors, and the
            first states.
    """
    if isinstance(module, CELLS):
        names = ("weight_ih", "weight_hh")  # without a state the second is multiplied by zeros
        return {name: x.reshape(-1, x.shape[-1]) for name, x in zip(names, given, strict=False)}
    assert isinstance(module, RECURRENT)
    x, states = _packed(module, given)
    found: dict[str, torch.Tensor] = {}
    ways = 2 if module.bidirectional else 1
    for number in range(module.num_layers):
        first = [state[number * ways : (number + 1) * ways] for state in states]
        layer = _layer(module, number)
        data = layer(x, tuple(first) if isinstance(module, nn.LSTM) else first[0])[0].data
        for way, (states_of, start) in enumerate(zip(data.chunk(ways, dim=1), first[0], strict=True)):
            suffix = f"_l{number}" + ("_reverse" if way else "")
            found[f"weight_ih{suffix}"] = x.data
            found[f"weight_hh{suffix}"] = _before(states_of, start, x.batch_sizes, backwards=bool(way))
        x = x._replace(data=data)
    return found


def _packed(module: nn.RNNBase, given: Sequence[torch.Tensor]) -> tuple[PackedSequence, list[torch.Tensor]]:
    """The inputs as a packed sequence, and the first states of all layers, in its order."""
    x, *others = given
    whole = [t for t in others if not t.is_floating_point()]
    states = [t for t in others if t.is_floating_point()]
    if whole:  # a packed sequence
        order = whole[1] if len(whole) > 1 else None
        packed, samples = PackedSequence(x, whole[0]), int(whole[0][0])
    else:
        x = x.unsqueeze(0 if module.batch_first else 1) if x.dim() == 2 else x
        x = x.transpose(0, 1) if module.batch_first else x  # (times, samples, d)
        samples, order = x.shape[1], None
        packed = PackedSequence(x.flatten(0, 1), torch.full((x.shape[0],), samples))
    count = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or module.hidden_size, module.hidden_size][: 2 if isinstance(module, nn.LSTM) else 1]
    states = [t.reshape(count, samples, t.shape[-1]) for t in states] or [x.new_zeros(count, samples, n) for n in sizes]
    return packed, [t if order is None else t.index_select(1, order) for t in states]


def _layer(module: nn.RNNBase, number: int) -> nn.RNNBase:
    """One layer of a module, with a copy of its weights."""
    found = ((_NAME.fullmatch(name), p) for name, p in module.named_parameters(recurse=False))
    weights = {f"{m[1]}_l0{m[3]}": p.detach() for m, p in found if m and int(m[2]) == number}
    some = weights["weight_ih_l0"]
    options: dict[str, Any] = {"bias": module.bias, "bidirectional": module.bidirectional}
    if isinstance(module, nn.LSTM):
        options["proj_size"] = module.proj_size
    if isinstance(module, nn.RNN):
        options["nonlinearity"] = module.nonlinearity
    kind: Any = type(module)
    layer: nn.RNNBase = kind(some.shape[1], module.hidden_size, **options, dtype=some.dtype, device=some.device)
    layer.load_state_dict(weights)
    return layer.eval()


def _before(states: torch.Tensor, first: torch.Tensor, sizes: torch.Tensor, *, backwards: bool) -> torch.Tensor:
    """The state one step before each of the packed `states` (steps, d); `first` (samples, d) before any step."""
    counts = sizes.tolist()
    starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
    rows: list[torch.Tensor] = []
    for time, count in enumerate(counts):
        near = time + 1 if backwards else time - 1
        running = counts[near] if 0 <= near < len(counts) else 0  # samples that have a step there
        running = min(running, count)
        rows += [states[starts[near] : starts[near] + running]] if running else []
        rows += [first[running:count]] if running < count else []
    return torch.cat(rows)
