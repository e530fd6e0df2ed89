"""The small pre-trained network that the package ships."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from opq.sources.base import InputHint

WEIGHTS = Path(__file__).parent.parent / "data" / "digits.safetensors"

_MEAN, _STD = 0.3053, 0.3760
"""Mean and standard deviation of the training images' pixels, scaled to 0 to 1; the shipped weights depend on them."""


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
