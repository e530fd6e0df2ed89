"""What the matrices of recurrent layers are multiplied by, compared with cells that are run step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import opq
from opq.models.batch import Batch
from opq.models.observe import watching
from opq.probing import recurrent
from opq.probing.moments import Moments

LENGTHS = (5, 3, 7, 3)


def sequences(width: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(length, width) for length in LENGTHS]


def step(module: nn.RNNBase, suffix: str, x: Tensor, state: list[Tensor]) -> list[Tensor]:
    """One step of one layer and direction, for one sample."""
    p = {n.removesuffix(suffix): t for n, t in module.named_parameters() if n.endswith(suffix)}
    given, held = (p[f"weight_{k}"] @ v + p[f"bias_{k}"] for k, v in (("ih", x), ("hh", state[0])))
    if isinstance(module, nn.LSTM):
        i, f, g, o = (given + held).chunk(4)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return [p["weight_hr"] @ h if module.proj_size else h, c]
    if isinstance(module, nn.GRU):
        (r, z, n), (r_h, z_h, n_h) = given.chunk(3), held.chunk(3)
        n = (n + (r + r_h).sigmoid() * n_h).tanh()
        return [(1 - (z + z_h).sigmoid()) * n + (z + z_h).sigmoid() * state[0]]
    return [(given + held).relu() if module.nonlinearity == "relu" else (given + held).tanh()]


def by_steps(module: nn.RNNBase, x: Tensor, first: list[Tensor]) -> dict[str, Tensor]:
    """Inputs and states before each step of one sequence (length, d), by weight name; `first` (layers ways, d)."""
    found: dict[str, Tensor] = {}
    ways = 2 if module.bidirectional else 1
    for number in range(module.num_layers):
        outputs = []
        for way in range(ways):
            suffix = f"_l{number}" + ("_reverse" if way else "")
            state, befores, afters = [t[number * ways + way] for t in first], [], []
            for v in x.flip(0) if way else x:
                befores.append(state[0])
                state = step(module, suffix, v, state)
                afters.append(state[0])
            found[f"weight_ih{suffix}"] = x
            found[f"weight_hh{suffix}"] = torch.stack(befores[:: -1 if way else 1])
            outputs.append(torch.stack(afters[:: -1 if way else 1]))
        x = torch.cat(outputs, 1)
    return found


def sums(rows: list[Tensor]) -> Tensor:
    return sum((x.mT @ x for x in rows), torch.zeros(rows[0].shape[1], rows[0].shape[1]))


KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {"num_layers": 3}),
    "both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projected": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
    "gru": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "many layers": (nn.GRU, {"num_layers": 12}),
    "rnn": (nn.RNN, {"num_layers": 2, "nonlinearity": "relu"}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")  # by oneDNN, says torch
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["padded", "time first", "packed", "one"])
@pytest.mark.parametrize("starts", [False, True])
@torch.no_grad()
def test_a_recurrent_module_is_seen_as_if_it_ran_step_by_step(kind: str, form: str, starts: bool) -> None:
    cls, options = KINDS[kind]
    module = cls(3, 4, batch_first=form == "padded", **options)
    xs = sequences()[:1] if form == "one" else sequences()
    given: list[Any] = list(xs)
    if form in ("padded", "time first"):
        xs = [x[:3] for x in xs]
        given = [torch.stack(xs, 0 if form == "padded" else 1)]
    elif form == "packed":
        given = [pack_sequence(xs, enforce_sorted=False)]
    count, samples = module.num_layers * (2 if module.bidirectional else 1), len(xs)
    sizes = [module.proj_size or 4, 4][: 2 if cls is nn.LSTM else 1]
    first = [torch.randn(count, samples, n) if starts else torch.zeros(count, samples, n) for n in sizes]
    if starts:
        states = [t[:, 0] if form == "one" else t for t in first]
        given.append(tuple(states) if cls is nn.LSTM else states[0])
    calls: list[dict[str, Tensor]] = []
    with watching({"m": module}, lambda name, module, tensors: calls.append(recurrent.seen(module, tensors))):
        module(*given)
    naive = [by_steps(module, x, [t[:, k] for t in first]) for k, x in enumerate(xs)]
    assert set(calls[0]) == set(recurrent.matrices(module)) == set(naive[0])
    for name, rows in calls[0].items():
        torch.testing.assert_close(sums([rows]), sums([one[name] for one in naive]), atol=1e-4, rtol=1e-4)
        assert len(rows) == sum(map(len, xs))


class Unrolled(nn.Module):
    """A cell in a loop."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for v in x.unbind(1):
            state = self.cell(v, state)
        last: Tensor = state[0] if isinstance(state, tuple) else state
        return last


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@torch.no_grad()
def test_cells_are_seen_at_every_step(cell: Callable[[int, int], nn.RNNCellBase]) -> None:
    model = Unrolled(cell(3, 4))
    x = torch.randn(8, 6, 3)
    moments = Moments(model, Batch((x,)))
    assert set(moments) == {"cell.weight_ih", "cell.weight_hh"}
    torch.testing.assert_close(moments["cell.weight_ih"].blocks[0][0], sums([x.flatten(0, 1)]) / 48)
    assert moments["cell.weight_hh"].blocks[0].shape == (1, 4, 4)


def test_feedback_lowers_the_error_of_a_recurrent_network() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.below, self.lstm = nn.Linear(8, 8), nn.LSTM(8, 32, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(torch.cat([self.below(x), x], 2)[..., :8])[0][:, -1]

    torch.manual_seed(3)
    model, mixed = Last().eval(), torch.randn(8, 2) @ torch.randn(2, 8)
    x, held = (torch.randn(64, 12, 8) @ mixed for _ in range(2))
    with torch.no_grad():
        dense, errors = model(held), []
        for fed in (True, False):
            file = (
                opq.compress(model, bits=6, calibration=[x], probe=True)
                if fed
                else opq.compress(model, bits=6, probe=False)
            )
            other = Last().eval()
            other.load_state_dict(file.state_dict())
            errors.append(float((other(held) - dense).square().mean()))
    assert errors[0] < 0.5 * errors[1]
