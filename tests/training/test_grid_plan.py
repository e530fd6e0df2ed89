"""A result on a trellis is trained on plain grids of the same rates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import opq
from opq.errors import GridWarning
from opq.training.collecting import collect
from opq.training.finetuning import Finetuned, finetune
from opq.training.grid_plan import on_grids


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10))


def test_each_tensor_gets_the_grid_of_its_rate() -> None:
    dense = model()
    plan = opq.compress(dense, bits=4, probe=False).plan
    state = dense.state_dict()
    with pytest.warns(GridWarning, match="trellis=False"):
        trained = on_grids(plan, state.__getitem__)
    for before, after in zip(plan, trained, strict=True):
        if before.codebook != "trellis":
            assert after == before
            continue
        assert after.codebook == "grid"
        assert after.rate == pytest.approx(before.rate)
        assert after.distortion > before.distortion
    assert any(t.codebook == "trellis" for t in plan)


def test_a_plan_without_a_trellis_stays_what_it_is() -> None:
    plan = opq.solve(model(), bits=4, probe=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_grids(plan, {}.__getitem__) is plan


def test_attached_and_collected_the_file_has_the_size_of_the_result() -> None:
    dense = model()
    result = opq.compress(dense, bits=4, probe=False)
    with pytest.warns(GridWarning):
        opq.attach(dense, result)
    collected = collect(dense, result)
    assert {t.codebook for t in collected.plan.compressed} == {"grid"}
    assert collected.bytes == pytest.approx(result.bytes, rel=0.03)


def test_finetuning_a_result_goes_on_from_a_checkpoint_to_the_same_file(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(32, 200, generator=g), torch.randint(10, (32,), generator=g)) for _ in range(4)]

    def run(**options: Any) -> Finetuned:
        dense = model()
        result = opq.compress(dense, bits=4, probe=False)
        with pytest.warns(GridWarning):
            return finetune(dense, result, batches, epochs=2, lr=0.02, **options)

    def interrupt(_: nn.Module) -> float:
        raise KeyboardInterrupt

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "c.pt", evaluate=interrupt)
    again = run(checkpoint=tmp_path / "c.pt")
    assert again.result.packed.parts == whole.result.packed.parts
