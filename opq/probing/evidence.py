"""Images that are changed until a classifier is sure of their class.

Noise leaves a classifier undecided: no class has evidence, errors in the last layers hardly show, and errors in the
first layers, which have little effect with photographs, seem to matter most. So every image is moved along the gradient
of its most probable class, until that class has a probability of 0.9 or the steps are used up. Sensitivities, which
were wrong by a factor of seven between the first and the last layers, are then nearer to those for photographs
(docs/datafree.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from opq.models.batch import Batch
from opq.models.observe import batch_statistics, batchnorms, untouched
from opq.models.outputs import floating
from opq.models.record import Record

STEPS = 3
"""The most steps; each is a forward and a backward pass. docs/research.md compares more steps."""
STEP = 0.1
"""How far a pixel moves in one step at most, in standard deviations of the images. Chosen with `STEPS`."""
SURE = 0.9
"""The probability of its class at which an image is no longer changed. docs/research.md compares 0.99."""


def applies(model: nn.Module, batch: Batch) -> bool:
    """Whether the batch is images and the network has BatchNorm.

    Its batch-statistics mode gives made-up images the scale of photographs inside the network; without that, the
    classes they are taken for say little.
    """
    return batch.images is not None and next(batchnorms(model), None) is not None


def decided(
    model: nn.Module,
    batch: Batch,
    *,
    micro_batch: int = 16,
    steps: int = STEPS,
    see: Callable[[int], None] = lambda done: None,
) -> Batch:
    """The batch with its images moved; as it is where that does not apply, or the outputs hold no scores of classes.

    Args:
        model: comes back untouched.
        steps: at most, an image.
        see: called with the number of images that are done, after each micro-batch.
    """
    images = batch.images
    if images is None or not applies(model, batch):
        return batch
    reach, moved = STEP * float(images.std()), list[torch.Tensor]()
    with untouched(model) as before, batch_statistics(model), torch.enable_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        record = Record(model)
        for part in batch.to(model).parts(micro_batch):
            x = part.images
            for _ in range(steps):
                x = None if x is None else _moved(model, part, x, reach)
                record.restore()
                before.settle()
            if x is None:
                return batch
            moved.append(x.to(images))
            see(sum(map(len, moved)))
        return batch.map(lambda _: torch.cat(moved))


def _moved(model: nn.Module, part: Batch, x: torch.Tensor, reach: float) -> torch.Tensor | None:
    """The images after one step; None where the model gives no scores (samples, classes)."""
    x = x.detach().requires_grad_()
    outputs = floating(part.map(lambda _: x)(model))
    scores = next((o for o in outputs if o.dim() == 2 and len(o) == len(x) and o.shape[1] > 1), None)
    if scores is None or not scores.requires_grad:
        return None
    best = scores.float().log_softmax(-1).amax(-1)
    unsure = best.detach().exp() < SURE
    if not bool(unsure.any()):
        return x.detach()
    (gradient,) = torch.autograd.grad(best[unsure].sum(), x)
    gradient.nan_to_num_(0.0, 0.0, 0.0)
    gradient *= unsure.view(-1, 1, 1, 1)  # images of one batch share its statistics, so that all have a gradient
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=torch.finfo(gradient.dtype).tiny)
    return (x + reach * (gradient / size).clamp(-1, 1)).detach()
