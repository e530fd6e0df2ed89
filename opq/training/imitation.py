"""How far a network's outputs are from its teacher's: what it is trained by, and judged by, where there are no labels.

Outputs are scores of classes (or of words) where the forward returns a tensor or something with `logits`; their
distance is the divergence `T^2 KL(teacher || student)` of Hinton et al. (2015). Other outputs are features: hidden
states, embeddings. Their distance is relative, `|student - teacher|^2 / |teacher|^2`, of every token, and of the mean
over the tokens of each text, which is what sentence transformers embed a text by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from opq.errors import MismatchError, OptionError
from opq.models.outputs import weighing

_TINY = 1e-12


def distance(student: Any, teacher: Any, mask: torch.Tensor | None, temperature: float) -> torch.Tensor:
    """How far the outputs of a network are from its teacher's, as a number to minimise.

    Args:
        student: what the network's forward returned.
        teacher: what its teacher's returned on the same inputs.
        mask: of texts, which tokens are not padding, (texts, length).
        temperature: of the softmax of both, where outputs are scores.

    Raises:
        MismatchError: the two outputs differ in kind or shape.
        OptionError: they hold no floating-point tensor.
    """
    own, wanted, scores = _both(student, teacher)
    if scores:
        p, q = (functional.log_softmax(_rows(z, mask) / temperature, dim=-1) for z in (wanted[0], own[0]))
        return temperature**2 * functional.kl_div(q, p, reduction="batchmean", log_target=True)
    parts = [_relative(a, b, mask) for a, b in zip(own, wanted, strict=True)]
    return torch.stack(parts).mean()


def agreement(student: Any, teacher: Any, mask: torch.Tensor | None) -> tuple[float, int]:
    """In how many places the two agree, and the number of places.

    Places are samples, or tokens. Scores agree where both have the same largest one; features by their cosine.
    """
    own, wanted, scores = _both(student, teacher)
    if scores:
        a, b = (_rows(z, mask).argmax(-1) for z in (own[0], wanted[0]))
        return float((a == b).sum()), len(a)
    cosines = functional.cosine_similarity(_rows(own[0], mask), _rows(wanted[0], mask), dim=-1)
    return float(cosines.sum()), cosines.numel()


def mask_of(inputs: Any) -> torch.Tensor | None:
    """Which tokens of a batch of texts are not padding."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def _both(student: Any, teacher: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], bool]:
    (own, ours), (wanted, theirs) = _outputs(student), _outputs(teacher)
    shapes = [[list(t.shape) for t in found] for found in (own, wanted)]
    if ours != theirs or shapes[0] != shapes[1]:
        remedy = "Pass the dense network that was compressed as teacher=, or 'dense'."
        raise MismatchError("the teacher's outputs are not like the network's", got=_told(shapes[1]),
                            wanted=_told(shapes[0]), remedy=remedy)  # fmt: skip
    return own, wanted, ours


def _told(shapes: list[list[int]]) -> str:
    return ", ".join(map(str, shapes)) or "nothing"


def _outputs(output: Any) -> tuple[list[torch.Tensor], bool]:
    """The tensors of an output that are compared, and whether they are scores."""
    if isinstance(output, torch.Tensor):
        return [output], True
    for name, scores in (("logits", True), ("last_hidden_state", False)):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return [found], scores
    found = weighing(output)
    if not found:
        raise OptionError("the model's output holds no tensor to learn from", got=type(output).__name__,
                          remedy="Pass loss= as a function of outputs and targets.")  # fmt: skip
    return found, False


def _rows(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(places, width) float32; of texts, the places that are not padding; of maps (N, C, H, W), every pixel."""
    if values.dim() == 4:
        values = values.movedim(1, -1)
    if mask is not None and values.shape[:2] == mask.shape:
        return values[mask].float()
    return values.float().reshape(-1, values.shape[-1]) if values.dim() else values.float().reshape(1, 1)


def _relative(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Of all places; and, in texts, of the means over the tokens."""
    every = _share(_rows(student, mask), _rows(teacher, mask))
    if mask is None or student.dim() != 3 or student.shape[:2] != mask.shape:
        return every
    weights = mask[..., None].float() / mask.sum(1).clamp(min=1)[:, None, None]
    means = _share((student.float() * weights).sum(1), (teacher.float() * weights).sum(1))
    return every + means


def _share(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().sum() / b.square().sum().clamp(min=_TINY)
