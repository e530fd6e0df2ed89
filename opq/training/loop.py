"""The training loop, its options, and its exact resumption."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from opq.base.progress import Progress
from opq.errors import OptionError, TrainingError, WriteError
from opq.models.observe import batchnorms
from opq.plan import Plan
from opq.training import checkpoint as checkpoints
from opq.training import processes
from opq.training.batchnorm import reestimate_batchnorm
from opq.training.holding import Holding
from opq.training.lesson import Lesson
from opq.training.objective import Objective, inputs_and_targets, to_device

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
Batches = Iterable[Any] | Callable[[int], Iterable[Any]]
"""Batches that are read once in each epoch, or a function of the epoch that gives them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How to train; every field is an option of `opq.finetune`."""

    epochs: int = 1
    lr: float | None = None
    """Learning rate of Adam, if no optimizer is given; None: 1e-3, and 5e-4 where pictures or texts are given."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls to 0 at the end."""
    clip: float | None = None
    """The largest norm of the gradient."""
    amp: Literal["bf16", "fp16"] | None = None
    """Mixed precision; weights, masks and codebooks stay in the model's own type."""
    bn: Literal["update", "freeze"] | None = None
    """Whether BatchNorm statistics follow the training batches; None: they do where batches are given, and are frozen
    where pictures or texts are."""
    reestimate_bn: int = 0
    """At the end, BatchNorm statistics are estimated anew as averages over so many training batches."""
    distill: float = 0.5
    """Weight of the teacher's part of the loss, 0 to 1; the rest is `loss`."""
    temperature: float = 2.0
    """Of the softmax of teacher and student in distillation."""
    seed: int | None = None
    """If given, seeds torch's generator before training."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None: one at the end of each epoch."""
    resume: bool = True
    """Whether to continue from the checkpoint if it exists."""
    batch: int = 32
    """Pictures or texts in a step, where they are given and not batches."""
    hold_size: bool | None = None
    """Whether the file is held below the budget while it is trained; None: where pictures or texts are given."""
    codes: Literal["train", "keep"] | None = None
    """Whether the compressed weights are trained, or only what is not compressed; None: the latter where pictures or
    texts are given and the codes are on trellises or have steps by row."""

    def __post_init__(self) -> None:
        for name in CHOICES:
            _one_of(name, getattr(self, name))
        for name, low in (("epochs", 0), ("reestimate_bn", 0), ("checkpoint_every", 1), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= low):
                raise OptionError(f"{name}= is out of range", got=repr(value), wanted=f"an integer from {low}")
        for name, most in (("lr", math.inf), ("clip", math.inf), ("temperature", math.inf), ("distill", 1.0)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= most):
                raise OptionError(f"{name}= is out of range", got=repr(value), wanted=f"a number from 0 to {most}")


CHOICES: dict[str, tuple[str | None, ...]] = {
    "schedule": ("cosine", "linear", "constant"),
    "amp": ("bf16", "fp16", None),
    "bn": ("update", "freeze", None),
    "codes": ("train", "keep", None),
}


def _one_of(name: str, value: object) -> None:
    if value not in CHOICES[name]:
        raise OptionError(f"unknown {name}=", got=repr(value), wanted=" or ".join(map(repr, CHOICES[name])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """The figures of one epoch."""

    epoch: int
    loss: float
    """Mean training loss."""
    lr: float
    """Learning rate of the last step."""
    score: Any = None
    """What `evaluate` returned; of pictures and texts, by default, the agreement with the teacher on a held-back tenth:
    the part of the places with the same largest score, or the mean cosine of features."""
    distance: float | None = None
    """From the teacher's outputs, on the held-back tenth; the epoch of the least is kept."""
    bytes: int | None = None
    """Of the file, where it is held below a budget."""


def finite(model: nn.Module) -> bool:
    """Whether every weight of this process is finite."""
    local = (getattr(p, "to_local", lambda p=p: p)() for p in model.parameters())
    return all(bool(p.isfinite().all()) for p in local)


class Loop:
    """The training loop and its state: the epoch, the step, and all that is needed to continue from there."""

    def __init__(self, model: nn.Module, plan: Plan, batches: Batches, how: Training, *, objective: Objective,
                 optimizer: torch.optim.Optimizer, evaluate: Callable[[nn.Module], Any] | None,
                 checkpoint: Path | None, progress: Progress, holding: Holding | None = None,
                 lesson: Lesson | None = None):  # fmt: skip
        self.model, self.plan, self.batches, self.how = model, plan, batches, how
        self.objective, self.optimizer, self.evaluate = objective, optimizer, evaluate
        self.checkpoint, self.progress = checkpoint, progress
        self.holding, self.lesson = holding, lesson
        self.best: dict[str, Any] | None = None
        """The state of the model that is nearest to its teacher so far, its distance, and the number of its epoch."""
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=how.amp == "fp16")
        self.history: list[Epoch] = []
        self.epoch = self.step = 0
        self.total = 0.0
        self.random: dict[str, Any] = {}
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def train(self) -> None:
        """Trains all epochs, starting from the checkpoint if there is one."""
        if self.checkpoint is not None and not self.checkpoint.parent.is_dir():
            raise WriteError(f"no folder for the checkpoint {self.checkpoint}")  # before hours are spent, not after
        pending = self._resume()
        if self.lesson is not None and self.best is None:
            self._start_from_better()
        while self.epoch < self.how.epochs:
            self._train_epoch(pending)
            pending = None
        if self.how.reestimate_bn and self.lesson is None:
            self._reestimate()
            self._settled()
        if self.best is not None:
            self.model.load_state_dict(self.best["model"])
        self.model.eval()

    def _reestimate(self) -> None:
        batches = self._epoch_batches(0) if self.lesson is None else self.lesson.unchanged()
        reestimate_batchnorm(self.model, batches, self.how.reestimate_bn)

    def _settled(self) -> int | None:
        """Bytes of the file, which is made to fit, if its size is held."""
        return None if self.holding is None else self.holding.settle()

    def _start_from_better(self) -> None:
        """Starts from the model as it is, or from BatchNorm statistics of the pictures if it is better by these."""
        assert self.lesson is not None
        self._keep_best(-1, self.lesson.judge(self.model)[1])
        assert self.best is not None
        found = self.lesson.statistics(self.model)
        if found:
            self.model.load_state_dict(found, strict=False)
            self._settled()
            self._keep_best(-1, self.lesson.judge(self.model)[1])
            self.model.load_state_dict(self.best["model"])
            self._settled()

    def _train_epoch(self, pending: dict[str, Any] | None) -> None:
        if pending is None:
            self.random = checkpoints.random_states()
        else:
            checkpoints.set_random_states(self.random)
        self._train_mode()
        batches = self._epoch_batches(self.epoch)
        count = len(batches) if isinstance(batches, Sized) else 0
        for k, batch in enumerate(batches):
            if k < self.step:
                continue
            if pending is not None:
                checkpoints.set_random_states(pending)
                pending = None
            self._train_step(batch, count)
            if self.how.checkpoint_every and self.step % self.how.checkpoint_every == 0:
                self.save()
        if not self.step:
            remedy = "Pass a list or a DataLoader; a generator is empty after its first epoch."
            raise TrainingError("an epoch without batches", got="an empty iterable", remedy=remedy)
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self.how.reestimate_bn and self.lesson is not None:
            self._reestimate()
        size, score, distance = self._settled(), None, None
        if self.lesson is not None:
            score, distance = self.lesson.judge(self.model)
            self._keep_best(self.epoch, distance)
        if self.evaluate is not None:
            self.model.eval()
            with torch.no_grad():
                score = self.evaluate(self.model)
        lr, loss = float(self.optimizer.param_groups[0]["lr"]), self.total / self.step
        self.history.append(Epoch(epoch=self.epoch, loss=loss, lr=lr, score=score, distance=distance, bytes=size))
        self.epoch, self.step, self.total = self.epoch + 1, 0, 0.0
        self.random = {}
        self.save()

    def _keep_best(self, epoch: int, distance: float) -> None:
        if self.best is None or distance < self.best["distance"]:
            state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"epoch": epoch, "distance": distance, "model": state}

    def _train_step(self, batch: Any, count: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._factor(count)
        inputs, targets = inputs_and_targets(to_device(batch, self.device))
        with torch.autocast(self.device.type, AMP.get(self.how.amp or ""), enabled=self.how.amp is not None):
            loss = self.objective(self.model, inputs, targets)
        value = float(loss.detach())
        if not processes.everywhere(math.isfinite(value), self.device):
            raise TrainingError(f"the loss is not finite at epoch {self.epoch}, step {self.step}", got=value)
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(loss))
        if self.how.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.how.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.holding is not None:
            self.holding.after_step()
        self.step += 1
        self.total += value
        self.progress("finetune", self.epoch * count + self.step, self.how.epochs * count)

    def _factor(self, count: int) -> float:
        """The factor of the schedule at this step; in steps of epochs if the number of batches is unknown."""
        done = (self.epoch + (self.step / count if count else 0)) / self.how.epochs
        done = min(done, 1.0)
        if self.how.schedule == "constant":
            return 1.0
        return 1.0 - done if self.how.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2

    def _train_mode(self) -> None:
        """As for training; a pupil is what will be used, as its teacher is, without dropout."""
        self.model.train(self.lesson is None)
        follow = (self.how.bn or ("update" if self.lesson is None else "freeze")) == "update"
        for module in batchnorms(self.model):
            module.train(follow)

    def _epoch_batches(self, epoch: int) -> Iterable[Any]:
        if callable(self.batches):
            return self.batches(epoch)
        sampler = getattr(self.batches, "sampler", None)
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        return self.batches

    # --- interruption ---------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, unless a weight is not finite: then the last good one stays."""
        if self.checkpoint is None:
            return
        if not processes.everywhere(finite(self.model), self.device):
            raise TrainingError(f"a weight is not finite after epoch {self.epoch}, step {self.step}", got="NaN or inf")
        state = checkpoints.training_state(self.model, self.optimizer)
        state |= {"plan": checkpoints.plan_digest(self.plan), "scaler": self.scaler.state_dict()}
        state |= {"epoch": self.epoch, "step": self.step, "total": self.total, "options": self._options()}
        state |= {"random": checkpoints.random_states(), "epoch_random": self.random}
        state["history"] = [dataclasses.asdict(e) for e in self.history]
        state |= {"best": self.best, "holding": None if self.holding is None else self.holding.state()}
        if processes.rank() == 0:
            checkpoints.save(self.checkpoint, state)
        processes.barrier()

    def _resume(self) -> dict[str, Any] | None:
        """Restores the checkpoint; returns the random states to continue with, or None for a fresh start."""
        if self.checkpoint is None or not self.how.resume or not self.checkpoint.exists():
            return None
        state = checkpoints.load(self.checkpoint, self.plan)
        if not self._goes_on(state["options"]):
            remedy = "Resume with the same options, or pass resume=False."
            raise OptionError(f"{self.checkpoint} was written with other options", got=self._options(),
                              wanted=state["options"], remedy=remedy)  # fmt: skip
        checkpoints.set_training_state(self.model, self.optimizer, state)
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.total = state["epoch"], state["step"], state["total"]
        self.history = [Epoch(**e) for e in state["history"]]
        self.random, self.best = state["epoch_random"], state.get("best")
        if self.holding is not None and state.get("holding"):
            self.holding.restore(state["holding"])
        if not self.step:
            checkpoints.set_random_states(state["random"])
            return None
        pending: dict[str, Any] = state["random"]
        return pending

    def _goes_on(self, before: dict[str, Any]) -> bool:
        """Whether training may go on from a checkpoint with these options: the same, or the same with more epochs."""
        now = self._options()
        return now == before or (
            now | {"epochs": None} == before | {"epochs": None} and now["epochs"] > before["epochs"]
        )

    def _options(self) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self.how).items() if k not in ("resume", "checkpoint_every")}
