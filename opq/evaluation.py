"""The accuracy of an image classifier on labelled images, from a folder or a file: what `opq evaluate` prints."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opq.base.extras import brief
from opq.base.progress import Progress, shown
from opq.base.tables import counted
from opq.errors import ClassNamesError, DataError
from opq.models.observe import evaluating
from opq.sources.base import InputHint
from opq.sources.images import ImageSet as ImageSet
from opq.sources.images import open_images as open_images
from opq.sources.images import open_pictures as open_pictures
from opq.sources.images import prepared as prepared


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """The accuracy of a model on a set of images."""

    images: int
    """The number of images."""
    top1: float
    """The fraction of images, 0 to 1, whose label has the highest score."""
    top5: float
    """The fraction of images, 0 to 1, whose label is among the five highest scores."""
    seconds: float
    """How long the evaluation took."""

    def __repr__(self) -> str:
        return f"<Score top-1 {self.top1:.2%}, top-5 {self.top5:.2%} of {counted(self.images, 'image')}>"


def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    hint: InputHint | None,
    classes: Sequence[str] | None = None,
    batch: int = 32,
    progress: Progress | bool | None = None,
) -> Score:
    """The accuracy of a classifier, which is run in inference mode and left as it was.

    Args:
        model: takes images (N, C, H, W), float32, and gives scores (N, classes).
        images: the labelled images.
        hint: describes the model's input: images are scaled, cropped and normalised accordingly.
        classes: the model's class names in order, if they follow neither from the model nor from the folders' names.
        batch: how many images are run at one time.
        progress: called with (stage, images done, images in all); True for a bar, False for none. By default a bar
            appears after two seconds, on a terminal or in a notebook only.

    Raises:
        ClassNamesError: a folder is not a class of the model, or a label is larger than its number of outputs.
        DataError: the model does not take images, or an image cannot be read.
    """
    if hint is None or hint.image_size is None:
        raise DataError(
            "the model does not say what images it takes", got=type(model).__name__, remedy="Pass an input size."
        )
    start, right, among, done = time.perf_counter(), 0, 0, 0
    labels: Tensor | None = None
    with shown(progress) as told, torch.inference_mode(), evaluating(model):
        for pixels in _batches(images, hint, batch):
            scores = _scores(model(pixels))
            if labels is None:
                labels = _labels(images, model, scores.shape[-1], classes)
            own = labels[done : done + len(pixels), None]
            best = scores.topk(min(5, scores.shape[-1]), dim=-1).indices
            right, among = right + int((best[:, :1] == own).sum()), among + int((best == own).any(-1).sum())
            done += len(pixels)
            told("evaluate", done, images.count)
    return Score(done, right / done, among / done, time.perf_counter() - start)


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    """Reads class names in order, one on each line.

    Raises:
        DataError: the file cannot be read as text.
    """
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", got=brief(error), wanted="class names, one a line") from error


def demo_images() -> ImageSet:
    """The held-out digits that ship with the package, 8 x 8 pixels."""
    from safetensors.numpy import load_file

    from opq import demo

    held = load_file(demo.TEST_SPLIT)
    pixels = (held["pixels"].astype(np.float32) * (255 / 16)).round().astype(np.uint8)
    return ImageSet(len(pixels), lambda i: pixels[i], labels=tuple(int(v) for v in held["labels"]))


# --- pixels and labels -------------------------------------------------------------------------


def _batches(images: ImageSet, hint: InputHint, batch: int) -> Iterator[Tensor]:
    for start in range(0, images.count, batch):
        chosen = range(start, min(start + batch, images.count))
        yield torch.stack([prepared(images.read(i), hint) for i in chosen])


def _scores(output: Any) -> Tensor:
    """The scores (N, classes) in the output of a classifier."""
    scores = getattr(output, "logits", output)
    scores = scores[0] if isinstance(scores, (tuple, list)) else scores
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise DataError("the model's output is no table of class scores", got=got, wanted="N x classes")
    return scores


def _labels(images: ImageSet, model: nn.Module, outputs: int, classes: Sequence[str] | None) -> Tensor:
    """The label of every image as the index of one of the model's outputs."""
    if images.folders is None:
        labels = torch.tensor(images.labels)
    else:
        index = _class_index(sorted(set(images.folders)), model, outputs, classes)
        labels = torch.tensor([index[name] for name in images.folders])
    if int(labels.min()) < 0 or int(labels.max()) >= outputs:
        got = f"labels {int(labels.min())} to {int(labels.max())}"
        raise ClassNamesError("labels beyond the model's outputs", got=got, wanted=f"0 to {outputs - 1}")
    return labels


def _class_index(names: list[str], model: nn.Module, outputs: int, classes: Sequence[str] | None) -> dict[str, int]:
    """Folder name -> index of the output.

    The index comes from the given class names, or else the model's own; from the folder's name if that is a number; or
    from the alphabetical order, if there are as many folders as outputs.
    """
    known = {name: k for k, name in enumerate(classes or ())} or _own_labels(model)
    if known:
        strange = [name for name in names if name not in known]
        if not strange:
            return {name: known[name] for name in names}
        if classes is not None or len(strange) < len(names):
            wanted = f"classes such as {', '.join(list(known)[:3])}"
            raise ClassNamesError("folders that are no class of the model", got=", ".join(strange[:3]), wanted=wanted)
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}
    if len(names) == outputs:
        return {name: k for k, name in enumerate(names)}
    got = f"{len(names)} folders such as {names[0]!r}"
    raise ClassNamesError(
        "the folders cannot be matched with the model's outputs", got=got, wanted=f"{outputs} classes"
    )


def _own_labels(model: nn.Module) -> dict[str, int]:
    """The names that a Hugging Face config gives to the model's outputs."""
    given = getattr(getattr(model, "config", None), "label2id", None) or {}
    return {} if any(str(k).startswith("LABEL_") for k in given) else {str(k): int(v) for k, v in given.items()}
