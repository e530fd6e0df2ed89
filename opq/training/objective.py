"""What fine-tuning minimises: the user's loss, and the distance to a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from opq.errors import OptionError
from opq.training.imitation import distance, mask_of

Loss = str | Callable[[Any, Any], torch.Tensor]
LOSSES = ("cross_entropy", "mse", "model", "distill")


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """`(1 - distill) loss(outputs, targets) + distill T^2 KL(teacher || student)` (Hinton et al. 2015).

    If the outputs are not class scores (`loss="mse"`), the teacher's part is the mean squared distance. With
    `loss="distill"` the teacher's part is all, whatever the outputs are (`opq.training.imitation`), and targets are not
    looked at.
    """

    loss: Loss
    teacher: nn.Module | None = None
    distill: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not callable(self.loss) and self.loss not in LOSSES:
            raise OptionError("unknown loss=", got=repr(self.loss), wanted=f"{', '.join(LOSSES)} or a function")
        if self.loss == "distill" and self.teacher is None:
            raise OptionError("loss='distill' needs a teacher", remedy="Pass teacher='dense', or a model.")

    def __call__(self, model: nn.Module, inputs: Any, targets: Any) -> torch.Tensor:
        outputs = run(model, inputs, targets if self.loss == "model" else None)
        if self.teacher is None:
            return self._own(outputs, targets)
        if self.loss == "distill":
            with torch.no_grad():
                shown = run(self.teacher, inputs)
            return distance(outputs, shown, mask_of(inputs), self.temperature)
        with torch.no_grad():
            wanted = scores(run(self.teacher, inputs))
        own = self._own(outputs, targets) if self.distill < 1 else torch.zeros((), device=wanted.device)
        return (1 - self.distill) * own + self.distill * self._distance(scores(outputs), wanted)

    def _own(self, outputs: Any, targets: Any) -> torch.Tensor:
        if callable(self.loss):
            return self.loss(outputs, targets)
        if self.loss == "model":
            own: torch.Tensor = outputs["loss"] if isinstance(outputs, Mapping) else outputs.loss
            return own
        if self.loss == "mse":
            return functional.mse_loss(scores(outputs).float(), targets)
        logits = scores(outputs).float()
        return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())

    def _distance(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        if self.loss == "mse":
            return functional.mse_loss(student.float(), teacher.float())
        t = self.temperature
        p, q = (functional.log_softmax(z.float().flatten(0, -2) / t, dim=-1) for z in (teacher, student))
        return t * t * functional.kl_div(q, p, reduction="batchmean", log_target=True)


def scores(outputs: Any) -> torch.Tensor:
    """The tensor in what a model returned: itself, `.logits`, `["logits"]`, or the first of a tuple."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    elif isinstance(outputs, tuple):
        outputs = outputs[0]
    else:
        outputs = getattr(outputs, "logits", None)
    if not isinstance(outputs, torch.Tensor):
        remedy = "Pass loss= as a function of what the model returns."
        raise OptionError("the model's output holds no scores", got=type(outputs).__name__, remedy=remedy)
    return outputs


def inputs_and_targets(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch, which is a pair, or a mapping whose `labels` are the targets."""
    if isinstance(batch, Mapping):
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return inputs, batch.get("labels")
    if isinstance(batch, Sequence) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, Sequence) else "")
    raise OptionError("a batch is not understood", got=got, wanted="(inputs, targets), or a dict with 'labels'")


def run(model: nn.Module, inputs: Any, labels: Any = None) -> Any:
    """The forward pass on a tensor, a tuple of arguments or a dict of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs) if labels is None else model(**inputs, labels=labels)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or all tensors in a nest of mappings, lists and tuples, on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {k: to_device(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(to_device(v, device) for v in value)
    return value
