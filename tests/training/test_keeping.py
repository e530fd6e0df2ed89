"""Codes that stay as they are while the rest is trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opq
from opq import demo, evaluation
from opq.compression.result import Result
from opq.errors import AttachError, GridWarning, MismatchError, OffCodebookError, OptionError
from opq.sources.digits import load
from opq.training import keeping


class Recurrent(nn.Module):
    """Its matrices have steps by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 48, batch_first=True), nn.Linear(48, 8)
        with torch.no_grad():
            for w in (self.lstm.weight_ih_l0, self.lstm.weight_hh_l0):
                w *= torch.linspace(0.2, 3, len(w))[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.fixture(scope="module")
def trellis() -> Result:
    return opq.compress("demo:digits", bits=1.6, probe=False)


def filled(result: Result) -> nn.Module:
    model = load()
    model.load_state_dict(result.state_dict())
    return model


def trained(model: nn.Module, start: Any, given: Any = None, **options: Any) -> opq.Finetuned:
    given = evaluation.demo_images() if given is None else given
    how = {"epochs": 2, "seed": 0, "progress": False, "batch": 16, **options}
    return opq.finetune(model, start, given, **how)


def same_codes(one: Result, other: Result) -> bool:
    return all(torch.equal(one.codes[name], other.codes[name]) for name in one.codes)


def test_a_trellis_stays_and_what_is_kept_brings_accuracy_back(trellis: Result) -> None:
    assert any(t.on_trellis for t in trellis.plan.compressed)
    model = load()
    with warnings.catch_warnings():
        warnings.simplefilter("error", GridWarning)
        found = trained(model, trellis)
    assert same_codes(found.result, trellis)
    assert [t.codebook for t in found.result.plan] == [t.codebook for t in trellis.plan]
    before, after = demo.accuracy(filled(trellis)), demo.accuracy(filled(found.result))
    assert after > before
    budget = trellis.plan.budget
    assert budget is not None
    assert found.result.bytes <= budget.bytes(elements=trellis.elements, source_bytes=trellis.source_bytes)
    assert found.result.basis == trellis.basis
    assert all(p.requires_grad for p in model.parameters())
    assert not any(hasattr(module, "parametrizations") for module in model.modules())


def test_steps_by_row_stay() -> None:
    torch.manual_seed(0)
    model = Recurrent()
    start = opq.compress(model, bits=5, probe=False)
    assert {t.codebook for t in start.plan.compressed} & {"grid-rows", "trellis-rows"}
    batches = [(torch.randn(16, 12, 24), None) for _ in range(4)]
    found = trained(model, start, batches, loss="distill", codes="keep")
    assert same_codes(found.result, start)
    for t in start.plan.compressed:
        assert torch.equal(found.result.tensor(t.name), start.tensor(t.name))
    moved = [n for n in found.result.plan.names if not torch.equal(found.result.tensor(n), start.tensor(n))]
    assert moved
    assert all("bias" in name for name in moved)
    state = found.result.state_dict()
    assert all(torch.allclose(value, state[name], atol=1e-2) for name, value in model.state_dict().items())


def test_plain_grids_are_trained_unless_they_shall_stay() -> None:
    start = opq.compress("demo:digits", bits=1.2, trellis=False, probe=False)
    assert not same_codes(trained(load(), start, epochs=4, batch=8, lr=1e-3).result, start)
    assert same_codes(trained(load(), start, codes="keep").result, start)


def test_with_labels_or_where_it_is_asked_for_the_weights_are_trained(trellis: Result) -> None:
    batches = [(torch.randn(8, 1, 8, 8), torch.zeros(8, dtype=torch.long)) for _ in range(2)]
    for given, options in ((batches, {}), (None, {"codes": "train"})):
        with pytest.warns(GridWarning):
            found = trained(load(), trellis, given, **options)
        assert {t.codebook for t in found.result.plan.compressed} == {"grid"}


def test_a_file_and_a_second_call_go_on(trellis: Result, tmp_path: Path) -> None:
    trellis.save(tmp_path / "a.opq.safetensors")
    model = load()
    first = trained(model, tmp_path / "a.opq.safetensors", epochs=1)
    first.save(tmp_path / "b.opq.safetensors")
    again = trained(load(), tmp_path / "b.opq.safetensors", epochs=1, teacher=load(), seed=1)
    assert same_codes(again.result, trellis)
    before, after = first.history[0].distance, again.history[0].distance
    assert before is not None
    assert after is not None
    assert after < 1.05 * before


def test_an_interrupted_run_gives_the_same_bytes(trellis: Result, tmp_path: Path) -> None:
    whole = trained(load(), trellis)

    def stop(_: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "run.ckpt", "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        trained(load(), trellis, progress=stop, **options)
    resumed = trained(load(), trellis, **options)
    assert b"".join(resumed.result.packed.parts) == b"".join(whole.result.packed.parts)


def test_what_takes_too_many_bytes_is_moved_by_a_part_of_the_way(
    trellis: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_most", lambda result: result.bytes)
    model = filled(trellis)
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.mul_(torch.randn(len(norm.weight)).exp())
            norm.bias.add_(50 * torch.randn(len(norm.bias)))
    assert keeping.with_kept(model, trellis, held=False).bytes > trellis.bytes
    found = keeping.with_kept(model, trellis)
    assert found.bytes <= trellis.bytes
    for name, value in found.state_dict().items():  # the model is what the file holds, up to its fine grids
        if value.is_floating_point():
            assert (model.state_dict()[name] - value).norm() <= 0.05 * value.norm() + 1e-6, name


def test_one_clear_error_for_each_way_to_be_wrong(trellis: Result) -> None:
    with pytest.raises(OptionError, match="codes='keep' needs codes"):
        trained(load(), opq.solve(load(), bits=4, probe=False), codes="keep")
    with pytest.raises(OptionError, match="unknown codes="):
        trained(load(), trellis, codes="some")
    with pytest.raises(MismatchError, match="another model"):
        trained(Recurrent(), trellis, [(torch.randn(2, 3, 24), None)], loss="distill", codes="keep")
    attached = opq.attach(load(), opq.solve(load(), bits=4, probe=False))
    with pytest.raises(AttachError, match="no plan is attached"):
        trained(attached, trellis, codes="keep", teacher=load())
    moved = filled(trellis)
    with torch.no_grad():
        next(p for p in moved.parameters() if p.dim() > 1).add_(1e-3)
    with pytest.raises(OffCodebookError, match="is not what its codes give"):
        keeping.with_kept(moved, trellis)
