"""Trains the network that `opq demo` shows, on scikit-learn's digits, and writes it into the package.

    python examples/train_demo.py

Deterministic on one machine: one thread, one seed. Takes about a minute.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from opq import demo
from opq.sources.digits import WEIGHTS, Digits, load, normalised

EPOCHS, BATCH, RATE = 60, 64, 3e-3


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    pixels, labels = torch.from_numpy(digits.images).to(torch.uint8), torch.from_numpy(digits.target)
    held = torch.arange(len(labels)) % 4 == 3
    save_file({"pixels": pixels[held], "labels": labels[held].to(torch.uint8)}, demo.TEST_SPLIT)
    model = train(normalised(pixels[~held]), labels[~held])
    save_file({name: _half(tensor) for name, tensor in model.state_dict().items()}, WEIGHTS)
    print(f"{demo.accuracy(load()):.2%} of {int(held.sum())} held-out images")


def train(images: Tensor, labels: Tensor) -> Digits:
    """The network after `EPOCHS` passes over images that are shifted by up to a pixel, with a one-cycle rate."""
    model = Digits().train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(shifted(images[batch])), labels[batch], label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def shifted(images: Tensor) -> Tensor:
    """The images moved by -1, 0 or 1 pixels each way, the same for the whole batch."""
    down, right = (int(v) for v in torch.randint(-1, 2, (2,)))
    return functional.pad(images, (1, 1, 1, 1), mode="replicate")[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
