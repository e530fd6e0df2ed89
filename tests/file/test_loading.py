"""A file goes into every kind of model that can hold its tensors, and into no other."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from torch import nn

import opq
from opq.errors import MismatchError
from opq.sources.names import fitting


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 32, bias=False))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    opq.compress(network(), bits=10, probe=False).save(tmp_path / "m.opq.safetensors")
    return tmp_path / "m.opq.safetensors"


def assert_loaded(model: nn.Module, file: Path) -> None:
    wanted, got = opq.load_state_dict(file), model.state_dict()
    assert set(got) == set(wanted)
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


def test_a_model_on_the_meta_device_is_given_values(file: Path) -> None:
    with torch.device("meta"):
        model = network()
    model[2].weight.requires_grad_(False)
    assert_loaded(opq.load(file, model), file)
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False]
    model.eval()(torch.ones(2, 32))


def test_ties_on_the_meta_device_stay_ties(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    model[1].weight = model[0].weight
    opq.compress(model, bits=12, probe=False).save(tmp_path / "f")
    empty = copy.deepcopy(model).to("meta")
    empty[1].weight = empty[0].weight
    opq.load(tmp_path / "f", empty)
    assert empty[0].weight is empty[1].weight
    assert_loaded(empty, tmp_path / "f")


def test_a_table_without_values_that_no_file_holds_is_refused(file: Path) -> None:
    model = network()
    model.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(MismatchError, match="table has no values, and the file holds none"):
        opq.load(file, model)


def test_a_model_made_in_inference_mode_compresses_and_loads(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = network()
    opq.compress(model, bits=10).save(tmp_path / "f")
    assert_loaded(opq.load(tmp_path / "f", model), tmp_path / "f")


def test_a_lazy_model_and_an_expanded_buffer_are_filled(file: Path, tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.LazyLinear(32), nn.LazyBatchNorm1d(), nn.LazyLinear(32, bias=False))
    assert_loaded(opq.load(file, lazy), file)
    model = nn.Linear(32, 32)
    model.register_buffer("wide", torch.zeros(1).expand(32, 32))
    model.register_buffer("tall", torch.zeros(1, 32).expand(32, 32))
    result = opq.compress({**model.state_dict(), "wide": torch.randn(32, 32)}, bits=16)
    result.save(tmp_path / "f")
    assert_loaded(opq.load(tmp_path / "f", model), tmp_path / "f")


def test_complex_weights_come_back(tmp_path: Path) -> None:
    model = nn.Linear(32, 32)
    for name, dtype in (("c", torch.complex64), ("d", torch.complex128)):
        model.register_parameter(name, nn.Parameter(torch.randn(8, 8, dtype=dtype)))
    before = {name: model.state_dict()[name].clone() for name in "cd"}
    result = opq.compress(model, bits=80, probe=False)
    assert {t.name: t.reason for t in result.plan if t.name in "cd"}["d"].startswith("complex128")
    result.save(tmp_path / "f")
    for name in "cd":
        model.get_parameter(name).data.zero_()
    opq.load(tmp_path / "f", model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


class Versioned(nn.Module):
    """A module whose old layout had the other sign."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if (metadata.get("version") or 1) < 2:
            state[f"{prefix}weight"] = -state[f"{prefix}weight"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("folder", [False, True])
def test_modules_with_versions_are_not_brought_up_to_date_twice(tmp_path: Path, folder: bool) -> None:
    model = nn.Sequential(Versioned())
    before = model[0].weight.detach().clone()
    if folder:
        opq.compress_folder(model, tmp_path / "f", bits=12, probe=False)
    else:
        opq.compress(model, bits=12, probe=False).save(tmp_path / "f")
    opq.load(tmp_path / "f", model)
    assert float((model[0].weight.detach() - before).norm() / before.norm()) < 0.01


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model.", "generator."])
def test_a_prefix_of_the_file_is_stripped(prefix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in network().state_dict().items()}
    opq.compress(state, bits=10).save(tmp_path / "f")
    model = opq.load(tmp_path / "f", network())
    wanted = opq.load_state_dict(tmp_path / "f")
    assert all(torch.equal(tensor, wanted[f"{prefix}{name}"]) for name, tensor in model.state_dict().items())


def test_names_of_wrappers_inside_are_seen_through_and_others_are_not() -> None:
    assert fitting(["a._orig_mod.w", "a.b"], ["a.w", "a.b"]) == {"a._orig_mod.w": "a.w", "a.b": "a.b"}
    assert fitting(["w"], ["m.module.w"]) == {"w": "m.module.w"} or fitting(["w"], ["m.module.w"]) == {"w": "w"}
    assert fitting(["x.w", "y.b"], ["w", "b"]) == {"x.w": "x.w", "y.b": "y.b"}


def test_a_checkpoint_wrapper_holds_parameters() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = nn.Sequential(checkpoint_wrapper(nn.Linear(32, 32)))
    assert {s.kind for s in opq.open_source(model)} == {"parameter"}


SHARDED = """
import json, os, sys, torch, torch.distributed as dist, opq
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32, bias=False))
plain = {n: t.clone() for n, t in model.state_dict().items()}
fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
source = opq.open_source(model)
whole = all(torch.equal(source.tensor(n), t) for n, t in plain.items())
opq.compress(model, bits=10, probe=False).save(sys.argv[1])
opq.load(sys.argv[1], model)
wanted = opq.load_state_dict(sys.argv[1])
loaded = all(torch.equal(t.full_tensor(), wanted[n]) for n, t in model.state_dict().items())
print(json.dumps([whole, loaded]))
"""


def test_a_sharded_model_is_read_whole_and_filled_in_its_shards(tmp_path: Path) -> None:
    import os

    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHARDED, str(tmp_path / "f")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1]) == [True, True]
