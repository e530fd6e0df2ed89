"""Weight-only fine-tuning: masks and codebooks stay as planned, the weights are trained.

This is a short training loop for users who have none; `opq.attach` and `opq.collect` work with any other loop as well.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from opq.base import tables
from opq.base.calls import checked_names
from opq.base.progress import Progress, shown
from opq.base.tables import Column, counted
from opq.compression.result import Result
from opq.errors import AttachError, OptionError
from opq.models.attachment import is_attached
from opq.models.observe import evaluating
from opq.models.wrappers import unwrapped
from opq.plan import Plan
from opq.sources.images import ImageSet
from opq.training import processes, unlabelled
from opq.training.attaching import attach, attached, plan_in_force
from opq.training.collecting import collect
from opq.training.holding import Holding, allowed
from opq.training.keeping import coded, codes_kept, with_kept
from opq.training.lesson import Data, Lesson
from opq.training.loop import Batches, Epoch, Loop, Training
from opq.training.objective import Loss, Objective
from opq.training.opened import opened
from opq.training.sites import plain

_EPOCHS = (
    Column("epoch", right=True),
    Column("loss", right=True),
    Column("learning rate", right=True),
    Column("score"),
)


def _cells(epoch: Epoch) -> tuple[str, str, str, str]:
    score = f"{epoch.score:.6g}" if isinstance(epoch.score, float) else "" if epoch.score is None else str(epoch.score)
    return (str(epoch.epoch), f"{epoch.loss:.4g}", f"{epoch.lr:.3g}", tables.printable(score))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Finetuned:
    """A fine-tuned network: its file in memory, and the history of the training."""

    result: Result
    """The codes, proved to be on the plan's masks and codebooks, and the trained kept tensors."""
    history: tuple[Epoch, ...]
    kept: int | None = None
    """Of pictures and texts: the epoch whose weights the file holds; -1 for those before training, if no epoch was
    better."""
    skipped: tuple[str, ...] = ()
    """Pictures that could not be read, and why."""

    def __repr__(self) -> str:
        return f"<opq.Finetuned {self._told}>"

    def __str__(self) -> str:
        """What each epoch came to, and the file."""
        epochs = tables.lines(_EPOCHS, map(_cells, self.history), tables.width_of_output())
        return "\n".join((*epochs, repr(self.result)[len("<opq.Result ") : -1]))

    def _repr_html_(self) -> str:
        return tables.html(_EPOCHS, map(_cells, self.history), total=len(self.history)) + self.result._repr_html_()

    @property
    def best(self) -> Epoch | None:
        """The epoch whose weights the file holds; None if they are the last one's, or those before training."""
        return self.history[self.kept] if self.kept is not None and self.kept >= 0 else None

    @property
    def _told(self) -> str:
        last = f", last loss {self.history[-1].loss:.4g}" if self.history else ""
        return f"{counted(len(self.history), 'epoch')}{last}; {repr(self.result)[len('<opq.Result ') : -1]}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file like `Result.save`; of several processes, the first one writes and the others wait."""
        if processes.rank() == 0:
            self.result.save(path)
        processes.barrier()


@checked_names
def finetune(
    model: nn.Module,
    plan: Plan | Result | str | os.PathLike[str],
    batches: Batches | ImageSet | str | os.PathLike[str] | None = None,
    *,
    images: ImageSet | str | os.PathLike[str] | None = None,
    texts: Sequence[str] | str | os.PathLike[str] | None = None,
    tokenizer: Callable[..., Any] | None = None,
    loss: Loss | None = None,
    teacher: nn.Module | Literal["dense"] | None = None,
    optimizer: torch.optim.Optimizer | Callable[[Any], torch.optim.Optimizer] | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
    epochs: int = 1,
    lr: float | None = None,
    schedule: Literal["cosine", "linear", "constant"] = "cosine",
    clip: float | None = None,
    amp: Literal["bf16", "fp16"] | None = None,
    bn: Literal["update", "freeze"] | None = None,
    reestimate_bn: int = 0,
    distill: float = 0.5,
    temperature: float = 2.0,
    seed: int | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    batch: int = 32,
    hold_size: bool | None = None,
    codes: Literal["train", "keep"] | None = None,
) -> Finetuned:
    """Trains the weights of a pruned and quantized network with fixed masks and codebooks, or what is not compressed.

    With batches, by their targets. With pictures or texts and no labels, by the outputs of the dense network: a tenth
    is held back, and the epoch is kept that is nearest to the teacher on it; the file is held below its budget.

    Args:
        model: the live model; `plan` is attached to it unless it is already, and **stays attached** with its trained
            weights, in inference mode, so that a second call goes on from there: `opq.detach(model, bake=True)` makes
            it an ordinary model with the weights of the file. It may be wrapped
            in `torch.compile` or `DistributedDataParallel`, or sharded by `fully_shard` after `opq.attach`; of several
            processes, each has its own `batches`.
        plan: a `Plan`, or a compression result or an opq file, from whose codes training starts.
        batches: pairs (inputs, targets), or dicts with `labels`, in any iterable that can be read once an epoch
            (a `DataLoader`), or a function of the epoch that gives one; or what `images` takes.
        images: pictures without labels, which the teacher's outputs stand in for: a folder (and the folders within), an
            `.npz` file, or `"synthetic"` for images made as by `opq.probe`, without any data. They are scaled and
            normalised as the model's configuration says, and augmented by torchvision.
        texts: lines of text without labels: a list, or a file of them; or `"own"` for texts that the model writes.
        tokenizer: makes token ids of a list of texts; by default that of the model's own folder or repository.
        loss: `"cross_entropy"` (the default of batches), `"mse"`, `"model"` (the output's own `.loss`), `"distill"`
            (the teacher's outputs alone; the default of pictures and texts) or a function of outputs and targets.
        teacher: a model whose outputs, in inference mode, are distilled; `"dense"` is the model itself before `plan`,
            and the default of `loss="distill"`.
        optimizer: an optimizer over the model's parameters, or a function that makes one; by default Adam. Of pictures
            and texts, its learning rate is `lr` for what is not compressed, and for each compressed tensor
            `20 lr` times its step, so that the weights of all tensors move by the same part of a level.
        evaluate: called with the model in inference mode after each epoch; what it returns is in the history.
        checkpoint: a file to write after each epoch and to resume from, exactly, after an interruption.
        progress: called with (stage, steps done, steps in all); True for a bar, False for none. By default a bar
            appears after two seconds, on a terminal or in a notebook only.
        epochs: passes over `batches`, those before an interruption included; a finished run with a checkpoint goes on
            where more are asked for, its schedule then being that of all of them.
        lr: learning rate of Adam, where no optimizer is given; by default 1e-3, and 5e-4 for pictures and texts.
        schedule: of the learning rate, from its start to 0 at the end; `"constant"` leaves it.
        clip: the largest norm of the gradient.
        amp: mixed precision; weights, masks and codebooks stay in the model's own type.
        bn: whether BatchNorm statistics follow the training batches; by default with batches, not with pictures.
        reestimate_bn: at the end, BatchNorm statistics are estimated anew as averages over so many training batches.
        distill: weight of the teacher's part of the loss, 0 to 1; the rest is `loss`.
        temperature: of the softmax of teacher and student in distillation.
        seed: if given, seeds torch's generator before training.
        checkpoint_every: steps between checkpoints; None: one at the end of each epoch.
        resume: whether to continue from the checkpoint if it exists.
        batch: pictures or texts in a step; fewer where there are not as many.
        hold_size: whether the file is held below the budget of `plan`, or its present size: where codes spread beyond
            it, the weights nearest to a lower level fall to it. By default where pictures or texts are given.
        codes: `"train"` moves weights between the levels of plain grids. `"keep"` leaves the codes of a result as they
            are, trellises and steps by row too, and trains biases, norms and all else that is not compressed; nothing
            is attached, and `model` is left with the weights that the file holds. By default `"keep"` where pictures or
            texts are given and the codes are on trellises or have steps by row, else `"train"`.

    Raises:
        TrainingError: the loss is not finite; the last good checkpoint stays.
        MismatchError: plan and model differ, or the checkpoint was written with another plan.
        OffCodebookError: a mask or a step was changed from outside of this loop.
        MismatchError: the teacher's outputs have other shapes than the model's.
        BudgetError: the file cannot be held below its budget.
        DataError: fewer than two pictures can be read, or the model does not say what pictures it takes.
        OptionError: an option is unknown or out of range, or all parameters are frozen.

    Example:
        >>> import opq, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> batches = [(torch.randn(32, 64), torch.randint(10, (32,))) for _ in range(4)]
        >>> trained = opq.finetune(model, opq.solve(model, bits=6, probe=False), batches, epochs=2)
        >>> [epoch.loss > 0 for epoch in trained.history]
        [True, True]
    """
    given = locals()
    how = Training(**{f.name: given[f.name] for f in dataclasses.fields(Training)})
    inner = unwrapped(model)
    plan = opened(plan) if isinstance(plan, (str, os.PathLike)) else plan
    with shown(progress) as told:
        data = unlabelled.given(inner, batches, images=images, texts=texts, tokenizer=tokenizer, how=how, told=told)
        free = isinstance(data, Data)
        loss = ("distill" if free else "cross_entropy") if loss is None else loss
        if free and loss != "distill":
            remedy = "Leave loss= out, or pass batches of (inputs, targets)."
            raise OptionError(
                "pictures and texts have no labels", got=f"loss={loss!r}", wanted="'distill'", remedy=remedy
            )
        dense = _teacher(inner, "dense" if teacher is None and loss == "distill" else teacher)
        start = coded(inner, plan, how.codes, free=free)
        held = free if how.hold_size is None else how.hold_size
        with contextlib.ExitStack() as stack:
            if start is not None:
                stack.enter_context(codes_kept(inner, start))
            elif not is_attached(inner):
                attach(inner, plan)
            _check_same_masks(inner)
            if how.seed is not None:
                torch.manual_seed(how.seed)
            made = _optimizer(inner, optimizer, how, by_step=free)
            if dense is not None:
                stack.enter_context(evaluating(dense))
            lesson = None if not isinstance(data, Data) or dense is None else Lesson.of(data, dense, how)
            taught: Any = data if lesson is None else lesson.epoch
            loop = Loop(model, plan_in_force(inner, plan), taught, how,
                        objective=Objective(loss, dense, how.distill, how.temperature), optimizer=made,
                        evaluate=evaluate, checkpoint=None if checkpoint is None else Path(checkpoint), progress=told,
                        holding=_holding(inner, plan) if held and start is None else None, lesson=lesson)  # fmt: skip
            loop.train()
    kept = None if loop.best is None else int(loop.best["epoch"])
    skipped = () if lesson is None else lesson.data.skipped
    result = collect(inner, plan) if start is None else with_kept(inner, start, held=held)
    return Finetuned(result=result, history=tuple(loop.history), kept=kept, skipped=skipped)


LEVELS = 20
"""The learning rate of a compressed tensor, without labels, is `LEVELS lr` times its step. A choice: with the default,
Adam moves a weight by about a hundredth of a level in a step, and by a level in some hundred steps."""
GENTLE = 5e-4
"""The learning rate without labels. A choice."""


def _optimizer(model: nn.Module, given: Any, how: Training, *, by_step: bool) -> torch.optim.Optimizer:
    """The user's optimizer, or Adam."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        remedy = "Call requires_grad_() on what shall be trained."
        raise OptionError("no parameter of the model is to be trained", got="all frozen", remedy=remedy)
    if given is not None:
        made: torch.optim.Optimizer = given if isinstance(given, torch.optim.Optimizer) else given(trainable)
        return made
    lr, groups = how.lr, list[Any](trainable)
    if lr is None:
        lr = GENTLE if by_step else 1e-3
    if by_step:
        steps = {id(plain(module, attribute)): grid.plan.step for module, attribute, grid in attached(model)}
        rest = [p for p in trainable if id(p) not in steps]
        own = [p for p in trainable if id(p) in steps]
        groups = [{"params": rest}] if rest else []
        groups += [{"params": [p], "lr": LEVELS * lr * steps[id(p)]} for p in own]
    return torch.optim.Adam(groups, lr, fused=_fusable(trainable))


def _holding(model: nn.Module, plan: Plan | Result) -> Holding:
    """What holds the size of the file: below the plan's budget, or below its present size."""
    if processes.world_size() > 1:
        raise OptionError("hold_size=True does not go with several processes", remedy="Train in one process.")

    def measure() -> int:
        return collect(model, plan).bytes

    return Holding(model, allowed(collect(model, plan) if isinstance(plan, Plan) else plan), measure)


def _teacher(model: nn.Module, teacher: nn.Module | str | None) -> nn.Module | None:
    if teacher is None:
        return None
    if isinstance(teacher, nn.Module):
        return teacher
    if teacher != "dense":
        raise OptionError("unknown teacher=", got=repr(teacher), wanted="a module, 'dense' or None")
    if is_attached(model):
        remedy = "Copy the dense model before opq.attach and pass the copy as teacher=."
        raise AttachError("teacher='dense' needs the model before the plan was attached", remedy=remedy)
    return copy.deepcopy(model).requires_grad_(False)


def _fusable(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether Adam's fused kernel can be used. On a CPU, the separate ones take twice as long if gradients are zero."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def _check_same_masks(model: nn.Module) -> None:
    device = next(model.parameters()).device
    for _, _, grid in attached(model):
        if not processes.same_everywhere(grid.digest, device):
            remedy = "Load the same weights in every process before opq.attach."
            raise AttachError(f"tensor {grid.plan.name!r}: the mask differs between processes", remedy=remedy)
