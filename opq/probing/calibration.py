"""What a user gives in place of synthetic inputs, as batches: batches, one tensor, or a folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from opq.base.calls import warn
from opq.base.tables import counted, some
from opq.errors import DataError, ProbeWarning
from opq.sources.base import InputHint
from opq.sources.images import ImageSet, open_pictures, prepared, readable

PICTURES, BATCH = 128, 32
"""How many pictures of a set are looked at, and in one batch. Measured: with 512 MobileNet at 2.3 bits is no better."""


def batches(given: Any, hint: InputHint | None) -> Iterable[Any]:
    """Batches that a model's forward takes.

    Args:
        given: such batches; or a tensor, which is one; or pictures, an `ImageSet` or the path of a folder or of an
            `.npz` file, of which some are taken, evenly spread, as `opq evaluate` shows them.
        hint: what is known about the model's inputs; pictures need their size.

    Raises:
        DataError: no picture can be read, or nothing says what pictures the model takes.
    """
    if isinstance(given, torch.Tensor):
        return [given]
    if isinstance(given, (str, os.PathLike)):
        given = open_pictures(given)
    if not isinstance(given, ImageSet):
        found: Iterable[Any] = given
        return found
    if hint is None or hint.image_size is None:
        remedy = "Give the module an attribute input_hint, an opq.sources.InputHint with the image's size; or batches."
        raise DataError("nothing says what pictures the model takes", got="calibration= of pictures", remedy=remedy)
    shown = _readable(given.first(PICTURES), hint)
    return [torch.stack(shown[k : k + BATCH]) for k in range(0, len(shown), BATCH)]


def _readable(images: ImageSet, hint: InputHint) -> list[torch.Tensor]:
    """Every picture that can be read; a `ProbeWarning` names the others."""
    skipped: list[str] = []
    shown = [
        picture for _, picture in readable(images, lambda image: prepared(image, hint), skipped) if picture is not None
    ]
    if not shown:
        raise DataError("no picture of calibration= can be read", got=some(skipped), wanted="pictures")
    if skipped:
        warn(f"{counted(len(skipped), 'picture')} of calibration= could not be read: {some(skipped)}", ProbeWarning)
    return shown
