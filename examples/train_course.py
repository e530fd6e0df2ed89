"""Trains the network of the notebooks, on scikit-learn's digits under noise, and writes it beside them.

    python examples/train_course.py

Deterministic on one machine: one thread, one seed. Takes about a minute. The weight decay is strong enough that the
network forgets its random start: what is left in the weights is what they learned.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional
from train_demo import shifted

from opq.sources.digits import normalised

sys.path.append(str(Path(__file__).resolve().parent / "notebooks"))
import course

EPOCHS, BATCH, RATE, DECAY = 45, 64, 4e-3, 4.0


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    pixels, labels = torch.from_numpy(digits.images).to(torch.uint8), torch.from_numpy(digits.target)
    held = torch.arange(len(labels)) % 4 == 3
    model = train(normalised(pixels[~held]), labels[~held])
    half = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_file(half, course.WEIGHTS)
    net = course.network()
    print(f"{net.accuracy(net.model):.1f} % of the held-out images under noise")


def train(images: Tensor, labels: Tensor) -> course.NoisyDigits:
    """The network after `EPOCHS` passes over shifted images under ever new noise, with a one-cycle rate."""
    model = course.NoisyDigits().train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * (len(images) // BATCH))
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]
        for step, batch in enumerate(order):
            optimizer.zero_grad()
            seen = course.noisy(shifted(images[batch]), seed=10_000 * (epoch + 1) + step)
            functional.cross_entropy(model(seen), labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


if __name__ == "__main__":
    main()
