"""Every set that networks are scored on, in two halves: one to make choices on, one to report figures on.

Images or sentences 0, 2, 4, ... of a set are for choices: whoever tries another constant, threshold or recipe looks at
`choices` alone. Those in between are for figures: nobody chooses by them, and pages report them. The halves do not
depend on how many samples of a set are used, and hold as many of each class where a set is sorted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import zoo

CHOICES, FIGURES = slice(0, None, 2), slice(1, None, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """A score on a whole set and on its halves."""

    whole: float
    choices: float
    figures: float

    def fields(self, name: str = "top1") -> dict[str, float]:
        """The fields of a row: the whole set by the name that it always had, the halves beside it."""
        return {name: self.whole, f"{name}_choices": self.choices, f"{name}_figures": self.figures}


def top1(model: Any, images: zoo.Images, batch: int = 100) -> Score:
    """Percent of the images that the model, in inference mode, gives its highest score to the right label."""
    right = zoo.hits(model, images, batch)
    return Score(*(100 * float(part.double().mean()) for part in (right, right[CHOICES], right[FIGURES])))


def similarity(dense: torch.Tensor, own: torch.Tensor) -> Score:
    """100 x the rank correlation of the pairwise similarities of two sets of sentence vectors; of each half its own."""
    whole = slice(None)
    return Score(*(100 * zoo.rank_correlation(dense[part], own[part]) for part in (whole, CHOICES, FIGURES)))
