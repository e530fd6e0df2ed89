"""Images from a folder or a file, one by one, and as a model takes them: scaled, cropped, normalised."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from opq.base.extras import brief, need
from opq.base.tables import counted
from opq.errors import DataError
from opq.sources.base import InputHint

Used = TypeVar("Used")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_MARGIN = 256 / 224
"""Short side of a scaled photograph / side of its central crop: the usual evaluation on ImageNet."""
_PHOTOGRAPH = 64
"""The smallest input in pixels for which images are scaled larger and cropped; for smaller inputs they are only scaled.
A choice: data sets of smaller images (CIFAR, MNIST) are not cropped."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images, with labels or without, read one by one."""

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
    return _opened_set(path, labelled=True)


def open_pictures(path: str | os.PathLike[str]) -> ImageSet:
    """All images of a folder and of the folders within it, or those of an `.npz` file; labels are not looked at.

    Raises:
        DataError: the path is neither of these, or there are no images.
        MissingExtraError: pillow is needed and not installed.
    """
    return _opened_set(path, labelled=False)


def _opened_set(path: str | os.PathLike[str], *, labelled: bool) -> ImageSet:
    path = Path(path)
    if path.is_dir():
        return _folder(path, labelled)
    if path.is_file() and path.suffix == ".npz":
        return _npz(path, labelled)
    remedy = f"Pass a folder {'with one folder of images a class' if labelled else 'of images'}, or an .npz file."
    if not path.exists():
        raise DataError(f"there is no {path}", got="no such file or folder", remedy=remedy)
    raise DataError(f"{path} holds no images", got=path.suffix or "a file", remedy=remedy)


def readable(images: ImageSet, use: Callable[[Any], Used], skipped: list[str]) -> Iterator[tuple[int, Used | None]]:
    """Every image by its number, as `use` makes it; None where it cannot be read, which goes to `skipped` with why."""
    for i in range(images.count):
        try:
            yield i, use(images.read(i))
        except DataError as error:
            skipped.append(error.fact if error.got is None else f"{error.fact}: {error.got}")
            yield i, None


# --- sets ------------------------------------------------------------------------------------


def _folder(path: Path, labelled: bool) -> ImageSet:
    need("PIL.Image", "images")
    found = path.glob("*/*") if labelled else path.rglob("*")
    files = sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        wanted = "one folder of images a class" if labelled else f"files such as {', '.join(SUFFIXES[:3])}"
        raise DataError(f"{path} holds no images", wanted=wanted, remedy="Check the path.")
    folders = tuple(p.parent.name for p in files) if labelled else None
    return ImageSet(len(files), lambda i: _opened(files[i], files[i]), folders=folders)


def _npz(path: Path, labelled: bool) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as held:
            data = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read", got=brief(error), wanted="arrays of images and labels") from error
    labels = next((data[k] for k in ("y", "labels") if k in data), None) if labelled else None
    pixels = next((data[k] for k in ("x", "images", "pixels") if k in data), None)
    packed = "jpeg" in data and "offset" in data
    if (labelled and (labels is None or not len(labels))) or (pixels is None and not packed):
        what = "labelled images" if labelled else "images"
        wanted = "x (or jpeg and offset)" + (" and y" if labelled else "")
        raise DataError(f"{path} holds no {what}", got=", ".join(data) or "nothing", wanted=wanted)
    count = len(data["offset"]) - 1 if pixels is None else len(pixels)
    count = count if labels is None else len(labels)
    if pixels is not None and (pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or len(pixels) != count):
        raise DataError(f"{path}: images", got=f"{pixels.dtype} {pixels.shape}", wanted=f"uint8, {count} of them")
    if count < 1:
        raise DataError(f"{path} holds no images", got="arrays of length 0")
    own = None if labels is None else tuple(int(v) for v in labels)
    return ImageSet(count, _reader_of(path, data, pixels), labels=own)


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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what pillow's readers raise
        raise DataError(f"{name} cannot be read", got=brief(error), remedy="Repair or remove that image.") from error


# --- pixels ----------------------------------------------------------------------------------


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
    _, height, width = wanted
    image = scaled(image, wanted)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def scaled(image: Any, wanted: tuple[int, int, int]) -> Any:
    """An image of PIL with the colours that are wanted, as large as it is before the crop in the middle."""
    pil = need("PIL.Image", "images")
    channels, height, width = wanted
    image = pil.fromarray(image) if isinstance(image, np.ndarray) else image
    image = _coloured(image, "L" if channels == 1 else "RGB")
    if (image.height, image.width) == (height, width):
        return image
    photograph = min(height, width) >= _PHOTOGRAPH
    scale = max(height / image.height, width / image.width) * (_MARGIN if photograph else 1.0)
    size = max(round(image.width * scale), width), max(round(image.height * scale), height)
    return image.resize(size, pil.Resampling.BICUBIC)


def _coloured(image: Any, mode: str) -> Any:
    """An image of PIL in grey or in colours; where it is transparent, it lies on white."""
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        pil = need("PIL.Image", "images")
        over = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", over.size, "white"), over)
    return image.convert(mode)
