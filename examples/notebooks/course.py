"""What the notebooks share: two trained networks, each with a way to measure it, and the look of the pictures."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import opq
from opq import Result, demo

HERE = Path(__file__).resolve().parent

torch.set_num_threads(min(2, torch.get_num_threads()))
mpl.rcParams |= {
    "figure.dpi": 80,
    "figure.figsize": (7, 3.4),
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}

CODES, KEPT, CHOSEN, GREY = "#0072b2", "#e69f00", "#b3003c", "#7a7a7a"
"""Blue, orange, dark red and grey: apart in lightness too, so that they stay apart for every eye and in print."""

WEIGHTS = HERE / "noisy_digits.safetensors"
WIDTHS = (32, 32, 48, 48, 64, 64, 80, 80)
NOISE = 0.2
"""Deviation of the noise, of pixels 0 to 1."""


class NoisyDigits(nn.Sequential):
    """Eight 3 x 3 convolutions, each with BatchNorm and ReLU, and a linear layer; input 1 x 8 x 8."""

    input_hint = demo.Digits.input_hint

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in zip((1, *WIDTHS), WIDTHS, strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        layers.insert(6, nn.MaxPool2d(2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))


_MADE: dict[tuple[str, str], Result] = {}


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network and its test."""

    name: str
    model: nn.Module
    accuracy: Callable[[nn.Module], float]
    """Percent of the test images that a network of this kind labels right."""

    def compress(self, **options: Any) -> Result:
        """`opq.compress(self.model, **options)`, which notebooks that run in one session make only once."""
        key = self.name, repr(sorted(options.items()))
        if key not in _MADE:
            _MADE[key] = opq.compress(self.model, **options)
        return _MADE[key]

    def compressed(self, result: Result) -> nn.Module:
        """A copy of the network with the weights of the file."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(result.state_dict())
        return model


def network() -> Network:
    """The network of this course: it reads digits under noise. `examples/train_course.py` trained it in a minute."""
    model = NoisyDigits()
    model.load_state_dict(load_file(WEIGHTS))
    images, labels = noisy_test()
    return Network("noisy digits", model.eval(), lambda model: right(model, images, labels))


def real_network(images: int = 200) -> Network | None:
    """ResNet-20 for CIFAR-10, where its weights lie in a folder `shared` beside the checkout; else None."""
    sys.path.append(str(HERE.parent / "bench"))
    import zoo

    if not (zoo.SHARED / "weights" / "resnet20_cifar10.safetensors").exists():
        return None
    test = zoo.cifar10("test", images)
    return Network("ResNet-20", zoo.resnet20(), lambda model: zoo.top1(model, test))


def noisy_test(copies: int = 2) -> tuple[Tensor, Tensor]:
    """The 449 held-out digits, each under `copies` drawings of noise: (4 x 449) x 1 x 8 x 8, and their labels."""
    images, labels = demo.test_split()
    return noisy(images.repeat(copies, 1, 1, 1), seed=1), labels.repeat(copies)


def noisy(images: Tensor, seed: int) -> Tensor:
    """The normalised images with noise of deviation `NOISE` of the pixels' range."""
    generator = torch.Generator().manual_seed(seed)
    return images + NOISE / NoisyDigits.input_hint.std[0] * torch.randn(images.shape, generator=generator)


@torch.no_grad()
def right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images that the model, in inference mode, labels right."""
    model.eval()
    return 100 * float((model(images).argmax(1) == labels).float().mean())
