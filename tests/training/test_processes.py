"""Two gloo processes: DDP and FSDP2 train to the single process's weights and write the same file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import HELPERS, ROOT
from training_helpers import learnable_batches, mlp, plan_of

from opq.training.finetuning import finetune

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")

WORKER = """
import sys
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from training_helpers import learnable_batches, mlp, plan_of
from opq.errors import AttachError, TrainingError
from opq.training.finetuning import finetune
from opq.training.attaching import attach, attached
from opq.training.proving import proved_codes
from opq.training.processes import everywhere, rank
from opq.models.wrappers import unwrapped

folder, kind = sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo")
model = mlp()
plan = plan_of(model)
half = [(x[rank() :: 2], y[rank() :: 2]) for x, y in learnable_batches()]  # the other half is the other process's

if kind == "faults":
    attached_here = attach(mlp(), plan)
    half[1][0][0, 0] = torch.nan if rank() else 0.0  # of the second batch, in one process alone
    assert not everywhere(rank() == 0, torch.device("cpu"))
    assert everywhere(True, torch.device("cpu"))
    try:
        finetune(DistributedDataParallel(attached_here), plan, half)
    except TrainingError as error:
        assert "the loss is not finite at epoch 0, step 1" in str(error), str(error)
        open(f"{folder}/nan.{rank()}", "w").close()
    if rank():
        model[0].weight.data.neg_().add_(0.05)
    try:
        finetune(model, plan, half)
    except AttachError as error:
        assert "'0.weight': the mask differs between processes" in str(error)
        open(f"{folder}/mask.{rank()}", "w").close()
    distributed.barrier()
    distributed.destroy_process_group()
    sys.exit()

attach(model, plan)
if kind == "ddp":
    model = DistributedDataParallel(model)
else:
    fully_shard(model[0])
    fully_shard(model[2])
    fully_shard(model)
    assert sum(p.to_local().numel() for p in model.parameters()) * 2 == sum(p.numel() for p in model.parameters())
checkpoint = {"checkpoint": f"{folder}/ckpt.pt"}
options = {"epochs": 3, "lr": 0.02, "clip": 1.0}
if kind == "resume":
    epochs = []

    def interrupt(model):
        epochs.append(model)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    try:
        finetune(model, plan, half, evaluate=interrupt, **checkpoint, **options)
    except KeyboardInterrupt:
        distributed.barrier()
    trained = finetune(model, plan, half, **checkpoint, **options)
else:
    trained = finetune(model, plan, half, **options)
for module, attribute, grid in attached(unwrapped(model)):
    shard = module.parametrizations[attribute].original.grad
    shard = getattr(shard, "to_local", lambda: shard)()
    rows = grid.kept.chunk(2)[rank()] if kind != "ddp" else grid.kept
    assert rows.shape == shard.shape
    assert not shard[~rows].any()
    assert shard[rows].any()
torch.save(proved_codes(unwrapped(model), plan), f"{folder}/codes.{rank()}")
trained.save(f"{folder}/model.opq.safetensors")
distributed.barrier()
distributed.destroy_process_group()
"""


def launch(kind: str, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    arguments = [sys.executable, "-c", WORKER, str(HELPERS), str(folder), kind]
    both = [subprocess.Popen(arguments, env={**base, "RANK": r, "LOCAL_RANK": r}, stderr=subprocess.PIPE, text=True)
            for r in "01"]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)


@pytest.fixture(scope="module")
def operations(request: pytest.FixtureRequest) -> None:
    """By torch's own operations, and by the compiled kernel in all processes."""
    if request.param == "native":
        request.getfixturevalue("kernel")


WAYS = [("torch", "ddp"), ("torch", "fsdp"), ("native", "resume")]
MORE = [("torch", "resume"), ("native", "ddp"), ("native", "fsdp")]


@pytest.mark.parametrize(
    ("operations", "kind"),
    [*WAYS, *(pytest.param(*way, marks=pytest.mark.slow) for way in MORE)],
    indirect=["operations"],
)
@pytest.mark.usefixtures("operations")
def test_two_processes_train_to_the_single_processs_weights(kind: str, tmp_path: Path) -> None:
    launch(kind, tmp_path)
    model = mlp()
    plan = plan_of(model)
    alone = finetune(model, plan, learnable_batches(), epochs=3, lr=0.02, clip=1.0)
    alone.save(tmp_path / "alone.opq.safetensors")
    codes = [torch.load(tmp_path / f"codes.{rank}") for rank in "01"]
    for name, wanted in alone.result.codes.items():
        assert torch.equal(codes[0][name], codes[1][name])
        assert torch.equal(codes[0][name], wanted)
    both = (tmp_path / "model.opq.safetensors").read_bytes()
    assert len(both) == alone.result.bytes


def test_every_process_says_what_is_wrong_in_one_of_them(tmp_path: Path) -> None:
    """A loss that is not finite (the others would wait for gradients that never come), and masks that differ."""
    launch("faults", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.0", "mask.1", "nan.0", "nan.1"]
