"""The training loop: what it minimises, what it keeps fixed, and that nothing is lost when it is interrupted."""

from __future__ import annotations

import copy
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import HELPERS, ROOT
from torch import nn
from torch.nn import functional
from training_helpers import learnable_batches, mlp, plan_of

import opq.training.checkpoint
from opq.api import compress
from opq.errors import (
    AttachError,
    CorruptFileError,
    MismatchError,
    OffCodebookError,
    OptionError,
    TrainingError,
    WriteError,
)
from opq.file.loading import load_state_dict
from opq.training.attaching import attach
from opq.training.finetuning import finetune
from opq.training.loop import Training
from opq.training.proving import dense_state_dict

BATCHES = learnable_batches()


def accuracy(model: nn.Module) -> float:
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in BATCHES) / sum(len(y) for _, y in BATCHES)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert [n for n in one if not torch.equal(one[n], other[n])] == []


# --- training --------------------------------------------------------------------------------


def test_training_learns_on_fixed_masks_and_the_file_is_what_was_trained(tmp_path: Path) -> None:
    model = mlp(norm=True)
    result = compress(model, bits=40, probe=False)
    trained = finetune(model, result, BATCHES, epochs=20, lr=0.02, evaluate=accuracy)
    assert trained.history[-1].score > 0.9 > trained.history[0].score
    assert trained.history[-1].loss < trained.history[0].loss
    assert trained.result.plan == result.plan
    for name, codes in trained.result.codes.items():
        assert torch.equal(codes != 0, result.codes[name] != 0)
    trained.save(tmp_path / "model.opq.safetensors")
    loaded = mlp(seed=9, norm=True)
    loaded.load_state_dict(load_state_dict(tmp_path / "model.opq.safetensors"))
    assert accuracy(loaded.eval()) == pytest.approx(trained.history[-1].score, abs=0.02)
    assert torch.allclose(loaded[0].weight, dense_state_dict(model)["0.weight"], rtol=1e-6)


def test_a_plan_alone_will_do_and_the_model_may_be_attached_already() -> None:
    plan = plan_of(mlp())
    one, other = mlp(), attach(mlp(), plan)
    a, b = finetune(one, plan, BATCHES, epochs=2), finetune(other, plan, BATCHES, epochs=2)
    assert_equal(weights(one), weights(other))
    assert a.history == b.history


def test_the_loop_is_the_plain_loop_written_by_hand() -> None:
    plan = plan_of(mlp())
    model, by_hand = mlp(), mlp()
    finetune(model, plan, BATCHES, epochs=2, lr=0.03, clip=0.5)
    attach(by_hand, plan)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.03, fused=True)
    for step in range(2 * len(BATCHES)):
        x, y = BATCHES[step % len(BATCHES)]
        optimizer.param_groups[0]["lr"] = 0.03 * (1 + math.cos(math.pi * step / (2 * len(BATCHES)))) / 2
        optimizer.zero_grad()
        functional.cross_entropy(by_hand(x), y).backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
        optimizer.step()
    assert_equal(weights(model), weights(by_hand))


def test_a_teacher_alone_pulls_the_network_to_the_dense_one() -> None:
    dense = mlp()
    model = copy.deepcopy(dense)
    plan = plan_of(model)
    blind = [(x, torch.zeros_like(y)) for x, y in BATCHES]
    history = finetune(model, plan, blind, teacher="dense", distill=1.0, epochs=20, lr=0.01).history
    assert history[-1].loss < history[0].loss / 2
    other = copy.deepcopy(dense)
    finetune(other, plan, blind, teacher=dense, distill=1.0, epochs=20, lr=0.01)
    assert_equal(weights(model), weights(other))


def test_a_teacher_is_asked_in_inference_mode_and_given_back_in_its_own() -> None:
    teacher = nn.Sequential(*mlp(norm=True), nn.Dropout())
    teacher[1].eval()
    modes, seen = [m.training for m in teacher.modules()], []
    teacher.register_forward_hook(lambda module, *_: seen.append(module.training))
    before = copy.deepcopy(teacher.state_dict())
    finetune(mlp(), plan_of(mlp()), BATCHES, teacher=teacher)
    assert seen == [False] * len(BATCHES)
    assert [m.training for m in teacher.modules()] == modes
    assert_equal(teacher.state_dict(), before)


def test_distillation_is_the_published_loss() -> None:
    from opq.training.objective import Objective

    student, teacher, (x, y) = mlp(), mlp(seed=3), BATCHES[0]
    got = Objective("cross_entropy", teacher, 0.3, 4.0)(student, x, y)
    p, q = torch.softmax(teacher(x) / 4, 1), torch.softmax(student(x) / 4, 1)
    wanted = 0.7 * functional.cross_entropy(student(x), y) + 0.3 * 16 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(got, wanted)


def mean_absolute(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).abs().mean()


@pytest.mark.parametrize("loss", ["mse", mean_absolute])
def test_other_losses(loss: Any) -> None:
    batches = [(x, functional.one_hot(y, 4).float()) for x, y in BATCHES]
    model = mlp()
    history = finetune(model, plan_of(model), batches, loss=loss, epochs=5, lr=0.02).history
    assert history[-1].loss < history[0].loss


class Dictionary(nn.Module):
    """Takes keywords and returns a dict, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.body(pixels)
        return {"logits": logits} | ({} if labels is None else {"loss": functional.cross_entropy(logits, labels)})


def test_dict_batches_and_a_models_own_loss() -> None:
    batches = [{"pixels": x, "labels": y} for x, y in BATCHES]
    one, other = Dictionary(), Dictionary()
    finetune(one, plan_of(one), batches, epochs=1)
    finetune(other, plan_of(other), batches, loss="model", epochs=1)
    assert_equal(weights(one), weights(other))


def test_own_optimizers_and_schedules() -> None:
    model = mlp()
    plan = plan_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    history = finetune(model, plan, BATCHES, optimizer=optimizer, schedule="linear", epochs=4).history
    assert history[-1].loss < history[0].loss
    assert history[-1].lr == pytest.approx(0.5 / (4 * len(BATCHES)))
    made = finetune(mlp(), plan, BATCHES, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), schedule="constant")
    assert made.history[0].lr == 0.5


def test_mixed_precision_trains_full_precision_weights() -> None:
    model = mlp()
    history = finetune(model, plan_of(model), BATCHES, amp="bf16", epochs=8, lr=0.02).history
    assert history[-1].loss < history[0].loss
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("bn", ["update", "freeze"])
def test_batchnorm_statistics_move_or_stay(bn: str) -> None:
    model = mlp(norm=True)
    before = model[1].running_mean.clone()
    finetune(model, plan_of(model), BATCHES, bn=bn, epochs=1)
    assert torch.equal(model[1].running_mean, before) == (bn == "freeze")


def test_reestimated_statistics_are_plain_means_over_batches() -> None:
    model = mlp(norm=True)
    finetune(model, plan_of(model), BATCHES, epochs=1, reestimate_bn=4)
    means = torch.stack([model[0](x).mean(0) for x, _ in BATCHES[:4]]).mean(0)
    assert torch.allclose(model[1].running_mean, means, atol=1e-6)
    assert model[1].momentum == 0.1


def test_progress_counts_the_steps() -> None:
    seen: list[tuple[str, int, int]] = []
    finetune(mlp(), plan_of(mlp()), BATCHES, epochs=2, progress=lambda *a: seen.append(a))
    assert seen == [("finetune", k + 1, 16) for k in range(16)]


def test_the_same_seed_gives_the_same_bytes() -> None:
    files = []
    for _ in range(2):
        model = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 4))
        torch.manual_seed(0)
        model.load_state_dict({k.replace("2.", "2."): v for k, v in mlp().state_dict().items()})
        files.append(b"".join(finetune(model, plan_of(model), BATCHES, epochs=2, seed=5).result.packed.parts))
    assert files[0] == files[1]


# --- interruption ----------------------------------------------------------------------------

CHILD = """
import sys, time
import torch
from torch import nn
sys.path.insert(0, sys.argv[1])
from training_helpers import learnable_batches, mlp, plan_of
from opq.training.finetuning import finetune

class Slow(nn.Dropout):
    def forward(self, x):
        time.sleep(float(sys.argv[3]))
        return super().forward(x)

torch.manual_seed(3)
model = mlp(norm=True)
model[2] = Slow(0.3)
data = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*learnable_batches())))
loader = torch.utils.data.DataLoader(data, 16, shuffle=True)
trained = finetune(model, plan_of(model), loader, epochs=6, lr=0.02, seed=1, teacher="dense",
                   checkpoint=sys.argv[2] + "/ckpt.pt", checkpoint_every=5)
torch.save([model.state_dict(), [h.loss for h in trained.history]], sys.argv[2] + "/done.pt")
trained.save(sys.argv[2] + "/model.opq.safetensors")
"""


def child(folder: Path, pause: float) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", CHILD, str(HELPERS), str(folder), str(pause)], env=environment)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    straight = child(whole, 0)
    victim = child(killed, 0.05)
    deadline = time.monotonic() + 120
    while not (killed / "ckpt.pt").exists():
        assert victim.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (killed / "done.pt").exists()
    place = torch.load(killed / "ckpt.pt", weights_only=True)
    assert place["step"] % len(BATCHES) != 0, "killed in the middle of an epoch"
    assert child(killed, 0).wait() == 0
    assert straight.wait() == 0
    (one, losses), (other, resumed) = (torch.load(f / "done.pt", weights_only=True) for f in (whole, killed))
    assert_equal(one, other)
    assert losses == resumed
    assert (whole / "model.opq.safetensors").read_bytes() == (killed / "model.opq.safetensors").read_bytes()
    assert sorted(p.name for p in whole.iterdir()) == ["ckpt.pt", "done.pt", "model.opq.safetensors"]


def test_a_finished_run_goes_on_where_more_epochs_are_asked_for(tmp_path: Path) -> None:
    options = {"lr": 0.02, "schedule": "constant", "seed": 1}
    one, other = mlp(), mlp()
    finetune(one, plan_of(one), BATCHES, epochs=2, checkpoint=tmp_path / "ckpt.pt", **options)
    on = finetune(one, plan_of(mlp()), BATCHES, epochs=4, checkpoint=tmp_path / "ckpt.pt", **options)
    whole = finetune(other, plan_of(other), BATCHES, epochs=4, **options)
    assert on.history == whole.history
    assert on.result.packed.parts == whole.result.packed.parts
    with pytest.raises(OptionError, match="written with other options"):
        finetune(mlp(), plan_of(mlp()), BATCHES, epochs=3, checkpoint=tmp_path / "ckpt.pt", **options)


def test_resuming_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    plan = plan_of(mlp(norm=True))
    options = {"epochs": 2, "checkpoint": tmp_path / "ckpt.pt", "reestimate_bn": 2}
    one, other = mlp(norm=True), mlp(norm=True)
    first = finetune(one, plan, BATCHES, **options)
    again = finetune(other, plan, BATCHES, evaluate=lambda m: pytest.fail("trained"), **options)
    assert_equal(weights(one), weights(other))
    assert again.history == first.history


def test_a_resume_with_another_plan_or_other_weights_or_options(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    plan = plan_of(mlp())
    finetune(mlp(), plan, BATCHES, checkpoint=path)
    with pytest.raises(MismatchError, match="written with another plan"):
        finetune(mlp(), plan_of(mlp(), step=0.2), BATCHES, checkpoint=path)
    with pytest.raises(MismatchError, match=r"'0.weight': the checkpoint has another mask"):
        finetune(mlp(seed=5), plan, BATCHES, checkpoint=path)
    with pytest.raises(OptionError, match="written with other options"):
        finetune(mlp(), plan, BATCHES, checkpoint=path, lr=0.1)
    finetune(mlp(seed=5), plan, BATCHES, checkpoint=path, resume=False)


def test_a_damaged_checkpoint_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    finetune(mlp(), plan_of(mlp()), BATCHES, checkpoint=path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CorruptFileError, match=r"the checkpoint .* cannot be read"):
        finetune(mlp(), plan_of(mlp()), BATCHES, checkpoint=path)
    for other in ([1, 2], {"w": torch.ones(2)}, torch.ones(2)):
        torch.save(other, path)
        with pytest.raises(CorruptFileError, match="is no checkpoint of a training"):
            finetune(mlp(), plan_of(mlp()), BATCHES, checkpoint=path)


def test_no_damage_to_a_checkpoint_goes_unnoticed(tmp_path: Path) -> None:
    path, rng = tmp_path / "ckpt.pt", random.Random(0)
    plan = plan_of(mlp())
    finetune(mlp(), plan, BATCHES, checkpoint=path)
    good, state = path.read_bytes(), opq.training.checkpoint.load(path, plan)
    refused = 0
    for k in range(400):
        bad = bytearray(good)
        at = rng.randrange(len(bad))
        if k % 4:
            bad[at] ^= 1 << rng.randrange(8)
        else:
            del bad[at:]
        path.write_bytes(bad)
        try:
            found = opq.training.checkpoint.load(path, plan)
        except CorruptFileError:
            refused += 1
        else:
            assert str(found) == str(state)
    assert refused > 200


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    model = mlp()
    bad = [(x * (math.nan if k == 4 else 1), y) for k, (x, y) in enumerate(BATCHES)]
    with pytest.raises(TrainingError, match="the loss is not finite at epoch 0, step 4: got nan"):
        finetune(model, plan_of(model), bad, checkpoint=path, checkpoint_every=3)
    state = torch.load(path, weights_only=True)
    assert state["step"] == 3
    assert all(bool(t.isfinite().all()) for t in state["model"].values())
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    fresh = mlp()
    finetune(fresh, plan_of(fresh), BATCHES, checkpoint=path, checkpoint_every=3)


def test_weights_that_went_bad_are_not_written_over_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"

    def explode(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(outputs, y) + (outputs - outputs.detach()).abs().sqrt().sum()

    with pytest.raises(TrainingError, match="a weight is not finite after epoch 0, step 1"):
        finetune(mlp(), plan_of(mlp()), BATCHES, loss=explode, checkpoint=path, checkpoint_every=1)
    assert not path.exists()


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ckpt.pt"
    finetune(mlp(), plan_of(mlp()), BATCHES, checkpoint=path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match="no space left on device"):
        finetune(mlp(), plan_of(mlp()), BATCHES, checkpoint=path, resume=False)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_checkpoint_without_a_folder_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="no folder for the checkpoint"):
        finetune(mlp(), plan_of(mlp()), [torch.zeros(1)], checkpoint=tmp_path / "nowhere" / "ckpt.pt")


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epoch": 3}, r"unknown option 'epoch'. Did you mean epochs=\?"),
        ({"epochs": -1}, "epochs= is out of range: got -1"),
        ({"lr": "fast"}, "lr= is out of range: got 'fast'"),
        ({"distill": 1.5}, "distill= is out of range: got 1.5, wanted a number from 0 to 1"),
        ({"schedule": "step"}, "unknown schedule=: got 'step', wanted 'cosine' or 'linear' or 'constant'"),
        ({"amp": "int8"}, "unknown amp="),
        ({"bn": "off"}, "unknown bn="),
        ({"loss": "hinge"}, "unknown loss=: got 'hinge'"),
        ({"teacher": "big"}, "unknown teacher="),
    ],
)
def test_options_that_have_no_meaning(options: dict[str, object], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        finetune(mlp(), plan_of(mlp()), BATCHES, **options)


def test_batches_that_are_not_understood() -> None:
    with pytest.raises(OptionError, match="a batch is not understood: got Tensor"):
        finetune(mlp(), plan_of(mlp()), [torch.zeros(3, 12)])
    with pytest.raises(TrainingError, match="an epoch without batches"):
        finetune(mlp(), plan_of(mlp()), iter(BATCHES), epochs=2)


def test_a_model_with_nothing_to_train() -> None:
    with pytest.raises(OptionError, match="no parameter of the model is to be trained: got all frozen"):
        finetune(mlp().requires_grad_(False), plan_of(mlp()), BATCHES)


def test_the_dense_teacher_must_be_dense() -> None:
    model = mlp()
    plan = plan_of(model)
    attach(model, plan)
    with pytest.raises(AttachError, match="teacher='dense' needs the model before the plan was attached"):
        finetune(model, plan, BATCHES, teacher="dense")


def test_a_mask_changed_behind_the_loops_back_is_found() -> None:
    model = mlp()
    plan = plan_of(model)
    attach(model, plan)

    def meddle(_: nn.Module) -> None:
        model[0].parametrizations.weight[0].mask.fill_(True)

    with pytest.raises(OffCodebookError, match=r"'0.weight'"):
        finetune(model, plan, BATCHES, evaluate=meddle)


def test_options_are_frozen_and_say_themselves() -> None:
    how = Training(epochs=3, lr=0.1)
    assert eval(repr(how)) == how  # noqa: S307
    with pytest.raises(AttributeError):
        how.epochs = 4  # type: ignore[misc]
