"""A small pre-trained network and its test images, shipped with the package, so that everything can be tried offline.

The network is trained by `examples/train_demo.py` on scikit-learn's bundled digits (Optical Recognition of
Handwritten Digits, Alpaydin and Kaynak 1998, UCI, CC BY 4.0): 8 x 8 pixels, 10 classes. Every fourth image was held
out as test image; these are shipped here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from opq.models.observe import evaluating
from opq.sources.digits import Digits, load, normalised

__all__ = ["Digits", "accuracy", "load", "normalised", "test_split"]

TEST_SPLIT = Path(__file__).parent / "data" / "digits_test.safetensors"


def test_split() -> tuple[Tensor, Tensor]:
    """The held-out images as the network takes them, N x 1 x 8 x 8 float32, and their labels, N int64."""
    held = load_file(TEST_SPLIT)
    return normalised(held["pixels"]), held["labels"].long()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """The fraction of the held-out images, 0 to 1, that the model in inference mode classifies correctly."""
    images, labels = test_split()
    with evaluating(model):
        right = model(images).argmax(1) == labels
    return float(right.float().mean())
