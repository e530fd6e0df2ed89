"""Real inputs in place of synthetic ones: batches, one tensor, or pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import opq
from opq import evaluation
from opq.errors import DataError, OptionError, ProbeWarning
from opq.probing.calibration import PICTURES, batches
from opq.sources.base import InputHint
from opq.sources.digits import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits."""
    root, images = tmp_path_factory.mktemp("pictures"), evaluation.demo_images()
    for i in range(40):
        Image.fromarray(images.read(i)).save(root / f"{i:03}.png")
    return root


def size() -> tuple[int, ...]:
    """Of an input."""
    found = load().input_hint.image_size
    assert found is not None
    return found


def shown(given: object) -> torch.Tensor:
    return torch.cat(list(batches(given, load().input_hint)))


def test_a_folder_an_npz_and_an_image_set_give_the_same_batches(folder: Path, tmp_path: Path) -> None:
    images = evaluation.demo_images().first(None)
    pixels = np.stack([np.asarray(images.read(i)) for i in range(40)])
    np.savez(tmp_path / "some.npz", x=pixels)
    wanted = shown(folder)
    assert wanted.shape == (40, *size())
    torch.testing.assert_close(shown(str(tmp_path / "some.npz")), wanted)
    torch.testing.assert_close(shown(evaluation.open_pictures(folder)), wanted)


def test_of_many_pictures_some_are_taken_evenly_spread() -> None:
    read: list[int] = []

    def pixels(i: int) -> np.ndarray:
        read.append(i)
        return np.zeros((8, 8), np.uint8)

    assert len(shown(evaluation.ImageSet(1000, pixels))) == PICTURES
    assert (read[0], read[-1]) == (0, 999)
    assert max(np.diff(read)) <= 8


def test_a_tensor_is_one_batch() -> None:
    x = torch.randn(12, *size())
    whole, parts = (opq.compress("demo:digits", bits=3, calibration=given) for given in (x, [x]))
    assert b"".join(whole.packed.parts) == b"".join(parts.packed.parts)


def test_pictures_are_what_the_codes_rest_on(folder: Path) -> None:
    found = opq.compress("demo:digits", bits=2, calibration=folder)
    by_hand = opq.compress("demo:digits", bits=2, calibration=list(batches(folder, load().input_hint)))
    assert "calibration inputs" in found.basis
    assert b"".join(found.packed.parts) == b"".join(by_hand.packed.parts)


def test_pictures_that_cannot_be_read_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    for path in sorted(folder.iterdir())[:3]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.warns(ProbeWarning, match=r"1 picture of calibration= could not be read: .*broken\.png"):
        assert len(shown(tmp_path)) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(b"nor this")
    with pytest.raises(DataError, match="no picture of calibration= can be read"):
        shown(tmp_path)


def test_a_model_that_does_not_say_what_pictures_it_takes(folder: Path) -> None:
    with pytest.raises(DataError, match="nothing says what pictures the model takes"):
        opq.compress(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)), bits=4, calibration=folder)


def test_batches_stay_what_they_are() -> None:
    given = [torch.zeros(2, 3)]
    assert batches(given, InputHint(modality="image")) is given


def test_pictures_need_the_probe(folder: Path) -> None:
    with pytest.raises(OptionError, match="calibration= needs the probe"):
        opq.compress("demo:digits", bits=3, calibration=folder, probe=False)
