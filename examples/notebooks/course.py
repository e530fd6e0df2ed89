"""What the notebooks share: a trained network with a way to measure it, and the look of the pictures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch
from torch import nn

torch.set_num_threads(min(2, torch.get_num_threads()))
mpl.rcParams |= {"figure.dpi": 72, "figure.figsize": (7, 3.4), "axes.spines.top": False, "axes.spines.right": False}

CODES, KEPT, CHOSEN, GREY = "#2b6cb0", "#c9822b", "#c2255c", "#8893a1"

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network and its test."""

    name: str
    model: nn.Module
    accuracy: Callable[[nn.Module], float]
    """Percent of the test images that a network of this kind labels right."""


def network(images: int = 300) -> Network:
    """ResNet-20 for CIFAR-10 where its weights lie beside the checkout (`../shared`), else opq's own digits."""
    import zoo

    if (zoo.SHARED / "weights" / "resnet20_cifar10.safetensors").exists():
        test = zoo.cifar10("test", images)
        return Network("ResNet-20", zoo.resnet20(), lambda model: zoo.top1(model, test))
    return digits()


def digits() -> Network:
    """The small digits network that ships with opq."""
    from opq import demo
    from opq.sources.digits import load

    return Network("digits", load(), lambda model: 100 * demo.accuracy(model))
