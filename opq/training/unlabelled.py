"""What `opq.finetune` is given to train on: the user's batches, or pictures and texts without labels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import nn

from opq.base.progress import Progress
from opq.errors import DataError, OptionError
from opq.sources.base import InputHint
from opq.sources.hints import hint_of_module
from opq.sources.images import ImageSet, open_pictures
from opq.training.lesson import Data, of_noise, of_pictures
from opq.training.lines import of_texts
from opq.training.pictures import Pictures

if TYPE_CHECKING:
    from opq.training.loop import Batches, Training

SYNTHETIC = "synthetic"


def given(
    model: nn.Module,
    batches: Any,
    *,
    images: Any,
    texts: Any,
    tokenizer: Any,
    how: Training,
    told: Progress,
) -> Batches | Data:
    """The one thing to train on.

    Raises:
        OptionError: there is none, or more than one.
        DataError: the pictures or texts cannot be used.
    """
    if isinstance(batches, (str, os.PathLike, ImageSet)):
        batches, images = None, batches if images is None else (batches, images)
    named = {"batches": batches, "images=": images, "texts=": texts}
    some = [name for name, value in named.items() if value is not None]
    if len(some) != 1 or isinstance(images, tuple):
        got = " and ".join(some) or "nothing"
        raise OptionError("there must be one thing to train on", got=got, wanted="batches, images= or texts=")
    if images is not None:
        return _pictures(model, images, how, told)
    if texts is not None:
        return of_texts(model, texts, tokenizer, how, told)
    found: Batches = batches
    return found


def _pictures(model: nn.Module, images: ImageSet | str | os.PathLike[str], how: Training, told: Progress) -> Data:
    hint = _hint(model)
    if images == SYNTHETIC:
        return of_noise(hint, how.seed or 0)
    opened = images if isinstance(images, ImageSet) else open_pictures(images)
    return of_pictures(Pictures.read(opened, hint, told), how.seed or 0)


def _hint(model: nn.Module) -> InputHint:
    hint = hint_of_module(model)
    if hint is None or hint.image_size is None:
        remedy = "Give the module an attribute input_hint, an opq.sources.InputHint with the image's size."
        raise DataError("the model does not say what pictures it takes", got=type(model).__name__, remedy=remedy)
    return hint
