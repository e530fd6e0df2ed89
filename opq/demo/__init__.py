"""A small pre-trained network and its test images, shipped with the package: everything works offline at once.

The network is trained by `examples/train_demo.py` on scikit-learn's bundled digits (Optical Recognition of
Handwritten Digits, Alpaydin and Kaynak 1998, UCI, CC BY 4.0): 8 x 8 pixels, 10 classes. Every fourth image was held
out for the test and is shipped here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from opq.observe import evaluating
from opq.sources.base import InputHint

WEIGHTS = Path(__file__).with_name("digits.safetensors")
TEST_SPLIT = Path(__file__).with_name("digits_test.safetensors")

_MEAN, _STD = 0.3053, 0.3760


class Digits(nn.Sequential):
    """Four 3 x 3 convolutions, each with BatchNorm and ReLU, and a linear layer: 131,178 parameters."""

    input_hint = InputHint(modality="image", image_size=(1, 8, 8), mean=(_MEAN,), std=(_STD,))

    def __init__(self) -> None:
        first, second = _convolution(1, 32), _convolution(32, 64)
        third, fourth = _convolution(64, 64), _convolution(64, 128)
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
        super().__init__(*first, *second, nn.MaxPool2d(2), *third, *fourth, *pooled)


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def load() -> Digits:
    """The trained network, float32, in inference mode. The shipped weights are rounded to float16."""
    model = Digits()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def normalised(pixels: Tensor) -> Tensor:
    """Pixels N x 8 x 8 of 0..16 as the network's input, N x 1 x 8 x 8 float32."""
    return ((pixels.float() / 16 - _MEAN) / _STD)[:, None]


def test_split() -> tuple[Tensor, Tensor]:
    """The held-out images as the network takes them, N x 1 x 8 x 8 float32, and their labels, N int64."""
    held = load_file(TEST_SPLIT)
    return normalised(held["pixels"]), held["labels"].long()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """The share, 0..1, of the held-out images that the model, in inference mode, labels right."""
    images, labels = test_split()
    with evaluating(model):
        right = model(images).argmax(1) == labels
    return float(right.float().mean())
