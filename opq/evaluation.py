"""The accuracy of an image classifier on labelled images, from a folder or a file: what `opq evaluate` prints."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opq.base.extras import brief, need
from opq.base.progress import Progress, shown
from opq.base.tables import counted
from opq.errors import ClassNamesError, DataError
from opq.models.observe import evaluating
from opq.sources.base import InputHint

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_MARGIN = 256 / 224
"""Short side of a scaled photograph / side of its central crop: the usual evaluation on ImageNet."""
_PHOTOGRAPH = 64
"""The smallest input in pixels for which images are scaled larger and cropped; for smaller inputs they are only scaled.
A choice: data sets of smaller images (CIFAR, MNIST) are not cropped."""


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """The accuracy of a model on a set of images."""

    images: int
    """The number of images."""
    top1: float
    """The fraction of images, 0 to 1, whose label has the highest score."""
    top5: float
    """The fraction of images, 0 to 1, whose label is among the five highest scores."""
    seconds: float
    """How long the evaluation took."""

    def __repr__(self) -> str:
        return f"<Score top-1 {self.top1:.2%}, top-5 {self.top5:.2%} of {counted(self.images, 'image')}>"


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Labelled images, read one by one."""

    count: int
    read: Callable[[int], Any]
    """Gives the i-th image: uint8 pixels, (H, W) or (H, W, 3), or an image of PIL."""
    labels: tuple[int, ...] | None = None
    folders: tuple[str, ...] | None = None
    """For a folder: the name of the class folder of every image."""

    def __repr__(self) -> str:
        return f"<ImageSet of {counted(self.count, 'image')}{'' if self.labels is None else ', with labels'}>"

    def first(self, limit: int | None) -> ImageSet:
        """At most `limit` images, evenly spread over the set."""
        if limit is None or limit >= self.count:
            return self
        picks = np.linspace(0, self.count - 1, limit).round().astype(int).tolist()
        read = self.read
        labels, folders = (None if v is None else tuple(v[i] for i in picks) for v in (self.labels, self.folders))
        return ImageSet(limit, lambda i: read(picks[i]), labels, folders)


def open_images(path: str | os.PathLike[str]) -> ImageSet:
    """A folder with one folder of images for each class, or an `.npz` file of images and labels.

    In an `.npz`: `x`, `images` or `pixels` (N x H x W or N x H x W x 3, uint8), or `jpeg` with `offset` (image i is the
    bytes offset[i] to offset[i + 1]); and `y` or `labels` (N integers).

    Pixels that are of the model's size need no other package; anything else is read and scaled by pillow.

    Raises:
        DataError: the path is neither of these, or there are no images.
        MissingExtraError: pillow is needed and not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if path.is_file() and path.suffix == ".npz":
        return _npz(path)
    remedy = "Pass a folder with one folder of images a class, or an .npz file."
    raise DataError(
        f"{path} holds no images", got="no such file or folder" if not path.exists() else path.suffix, remedy=remedy
    )


def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    hint: InputHint | None,
    classes: Sequence[str] | None = None,
    batch: int = 32,
    progress: Progress | bool | None = None,
) -> Score:
    """The accuracy of a classifier, which is run in inference mode and left as it was.

    Args:
        model: takes images (N, C, H, W), float32, and gives scores (N, classes).
        images: the labelled images.
        hint: describes the model's input: images are scaled, cropped and normalised accordingly.
        classes: the model's class names in order, if they follow neither from the model nor from the folders' names.
        batch: how many images are run at one time.
        progress: called with (stage, images done, images in all); True for a bar, False for none. By default a bar
            appears after two seconds, on a terminal or in a notebook only.

    Raises:
        ClassNamesError: a folder is not a class of the model, or a label is larger than its number of outputs.
        DataError: the model does not take images, or an image cannot be read.
    """
    if hint is None or hint.image_size is None:
        raise DataError(
            "the model does not say what images it takes", got=type(model).__name__, remedy="Pass an input size."
        )
    start, right, among, done = time.perf_counter(), 0, 0, 0
    labels: Tensor | None = None
    with shown(progress) as told, torch.inference_mode(), evaluating(model):
        for pixels in _batches(images, hint, batch):
            scores = _scores(model(pixels))
            if labels is None:
                labels = _labels(images, model, scores.shape[-1], classes)
            own = labels[done : done + len(pixels), None]
            best = scores.topk(min(5, scores.shape[-1]), dim=-1).indices
            right, among = right + int((best[:, :1] == own).sum()), among + int((best == own).any(-1).sum())
            done += len(pixels)
            told("evaluate", done, images.count)
    return Score(done, right / done, among / done, time.perf_counter() - start)


def read_classes(path: str | os.PathLike[str]) -> list[str]:
    """Reads class names in order, one on each line.

    Raises:
        DataError: the file cannot be read as text.
    """
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}", got=brief(error), wanted="class names, one a line") from error


# --- sets ------------------------------------------------------------------------------------


def _folder(path: Path) -> ImageSet:
    need("PIL.Image", "images")
    files = sorted(p for p in path.glob("*/*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise DataError(f"{path} holds no images", wanted="one folder of images a class", remedy="Check the path.")
    return ImageSet(len(files), lambda i: _opened(files[i], files[i]), folders=tuple(p.parent.name for p in files))


def _npz(path: Path) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as held:
            data = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read", got=brief(error), wanted="arrays of images and labels") from error
    labels = next((data[k] for k in ("y", "labels") if k in data), None)
    pixels = next((data[k] for k in ("x", "images", "pixels") if k in data), None)
    packed = "jpeg" in data and "offset" in data
    if labels is None or not len(labels) or (pixels is None and not packed):
        got = ", ".join(data) or "nothing"
        raise DataError(f"{path} holds no labelled images", got=got, wanted="x (or jpeg and offset) and y")
    if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or len(pixels) != len(labels)):
        raise DataError(f"{path}: images", got=f"{pixels.dtype} {pixels.shape}", wanted=f"uint8, {len(labels)} of them")
    return ImageSet(len(labels), _reader_of(path, data, pixels), labels=tuple(int(v) for v in labels))


def _reader_of(path: Path, data: dict[str, Any], pixels: Any) -> Callable[[int], Any]:
    if pixels is not None:
        return lambda i: pixels[i]
    need("PIL.Image", "images")
    jpeg, offset = data["jpeg"], data["offset"]
    return lambda i: _opened(io.BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes()), f"image {i} of {path}")


def _opened(what: Any, name: Any) -> Any:
    from PIL import Image

    try:
        with Image.open(what) as image:
            image.load()
            return image
    except OSError as error:
        raise DataError(f"{name} cannot be read", got=brief(error), remedy="Repair or remove that image.") from error


def demo_images() -> ImageSet:
    """The held-out digits that ship with the package, 8 x 8 pixels."""
    from safetensors.numpy import load_file

    from opq import demo

    held = load_file(demo.TEST_SPLIT)
    pixels = (held["pixels"].astype(np.float32) * (255 / 16)).round().astype(np.uint8)
    return ImageSet(len(pixels), lambda i: pixels[i], labels=tuple(int(v) for v in held["labels"]))


# --- pixels and labels -------------------------------------------------------------------------


def _batches(images: ImageSet, hint: InputHint, batch: int) -> Iterator[Tensor]:
    for start in range(0, images.count, batch):
        chosen = range(start, min(start + batch, images.count))
        yield torch.stack([prepared(images.read(i), hint) for i in chosen])


def prepared(image: Any, hint: InputHint) -> Tensor:
    """An image as the model takes it, C x H x W float32: short side scaled, centre cropped, normalised."""
    assert hint.image_size is not None
    channels, height, width = hint.image_size
    shape = (height, width) if channels == 1 else (height, width, channels)
    if not isinstance(image, np.ndarray) or image.shape != shape:
        image = _cropped(image, hint.image_size)
    pixels = torch.from_numpy(np.array(image, np.float32) / 255).reshape(height, width, channels).permute(2, 0, 1)
    mean, std = (torch.tensor(v or default).view(-1, 1, 1) for v, default in ((hint.mean, (0.0,)), (hint.std, (1.0,))))
    return (pixels - mean) / std


def _cropped(image: Any, wanted: tuple[int, int, int]) -> Any:
    """An image of PIL with the colours and the size (channels, height, width) that are wanted."""
    pil = need("PIL.Image", "images")
    channels, height, width = wanted
    image = pil.fromarray(image) if isinstance(image, np.ndarray) else image
    image = image.convert("L" if channels == 1 else "RGB")
    if (image.height, image.width) == (height, width):
        return image
    photograph = min(height, width) >= _PHOTOGRAPH
    scale = max(height / image.height, width / image.width) * (_MARGIN if photograph else 1.0)
    size = max(round(image.width * scale), width), max(round(image.height * scale), height)
    image = image.resize(size, pil.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def _scores(output: Any) -> Tensor:
    """The scores (N, classes) in the output of a classifier."""
    scores = getattr(output, "logits", output)
    scores = scores[0] if isinstance(scores, (tuple, list)) else scores
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise DataError("the model's output is no table of class scores", got=got, wanted="N x classes")
    return scores


def _labels(images: ImageSet, model: nn.Module, outputs: int, classes: Sequence[str] | None) -> Tensor:
    """The label of every image as the index of one of the model's outputs."""
    if images.folders is None:
        labels = torch.tensor(images.labels)
    else:
        index = _class_index(sorted(set(images.folders)), model, outputs, classes)
        labels = torch.tensor([index[name] for name in images.folders])
    if int(labels.min()) < 0 or int(labels.max()) >= outputs:
        got = f"labels {int(labels.min())} to {int(labels.max())}"
        raise ClassNamesError("labels beyond the model's outputs", got=got, wanted=f"0 to {outputs - 1}")
    return labels


def _class_index(names: list[str], model: nn.Module, outputs: int, classes: Sequence[str] | None) -> dict[str, int]:
    """Folder name -> index of the output.

    The index comes from the given class names, or else the model's own; from the folder's name if that is a number; or
    from the alphabetical order, if there are as many folders as outputs.
    """
    known = {name: k for k, name in enumerate(classes or ())} or _own_labels(model)
    if known:
        strange = [name for name in names if name not in known]
        if not strange:
            return {name: known[name] for name in names}
        if classes is not None or len(strange) < len(names):
            wanted = f"classes such as {', '.join(list(known)[:3])}"
            raise ClassNamesError("folders that are no class of the model", got=", ".join(strange[:3]), wanted=wanted)
    if all(name.isdecimal() for name in names):
        return {name: int(name) for name in names}
    if len(names) == outputs:
        return {name: k for k, name in enumerate(names)}
    got = f"{len(names)} folders such as {names[0]!r}"
    raise ClassNamesError(
        "the folders cannot be matched with the model's outputs", got=got, wanted=f"{outputs} classes"
    )


def _own_labels(model: nn.Module) -> dict[str, int]:
    """The names that a Hugging Face config gives to the model's outputs."""
    given = getattr(getattr(model, "config", None), "label2id", None) or {}
    return {} if any(str(k).startswith("LABEL_") for k in given) else {str(k): int(v) for k, v in given.items()}
