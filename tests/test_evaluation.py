"""Accuracy on image folders and sets: right where the labels are, one clear error where they are not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zoo
from PIL import Image
from safetensors.torch import save_file

import opq
from opq import demo, evaluation
from opq.cli import app
from opq.errors import ClassNamesError, DataError, MissingExtraError
from opq.sources.base import InputHint
from opq.sources.digits import Digits, load

HINT = Digits.input_hint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty digits in folders 0 to 9."""
    root, images = tmp_path_factory.mktemp("digits"), evaluation.demo_images()
    for i in range(60):
        place = root / str(images.labels[i])
        place.mkdir(exist_ok=True)
        Image.fromarray(images.read(i)).save(place / f"{i}.png")
    return root


def test_demo_agrees_with_its_own_accuracy() -> None:
    model = load()
    score = evaluation.evaluate(model, evaluation.demo_images(), hint=HINT)
    assert score.images == 449
    assert score.top1 == pytest.approx(demo.accuracy(model), abs=0.01)  # pixels were rounded to 8 bits
    assert score.top5 == 1.0


@pytest.mark.parametrize("limit", [2, 10, 449])
def test_a_limited_set_is_spread_over_the_whole(limit: int) -> None:
    """A set is often sorted by class: its first images would be of one class."""
    whole = evaluation.demo_images()
    some, places = whole.first(limit), [round(k * 448 / (limit - 1)) for k in range(limit)]
    assert some.count == limit
    assert some.labels == tuple(whole.labels[i] for i in places)
    assert all(np.array_equal(some.read(k), whole.read(i)) for k, i in enumerate(places))
    assert whole.first(None) is whole


@pytest.fixture
def without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image", raising=False)


@pytest.mark.usefixtures("without_pillow")
def test_a_missing_pillow_is_named_with_its_extra(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "jpeg.npz", jpeg=np.zeros(4, np.uint8), offset=np.array([0, 4]), y=[0])
    np.savez(tmp_path / "large.npz", x=np.zeros((1, 9, 9), np.uint8), y=[0])
    large = evaluation.open_images(tmp_path / "large.npz")
    for call in (
        lambda: evaluation.open_images(folder),
        lambda: evaluation.open_images(tmp_path / "jpeg.npz"),
        lambda: evaluation.evaluate(load(), large, hint=HINT),  # has to be scaled
    ):
        with pytest.raises(MissingExtraError, match=r'pip install "opq\[images\]"'):
            call()


@pytest.mark.usefixtures("without_pillow")
def test_pixels_of_the_models_size_need_no_pillow(tmp_path: Path) -> None:
    images = evaluation.demo_images()
    np.savez(tmp_path / "x.npz", x=np.stack([images.read(i) for i in range(40)]), y=images.labels[:40])
    for data in (images.first(40), evaluation.open_images(tmp_path / "x.npz")):
        assert evaluation.evaluate(load(), data, hint=HINT).top1 > 0.9
    model, hint = torch.nn.Flatten(), InputHint(modality="image", image_size=(3, 2, 2), mean=(0.5,) * 3, std=(0.5,) * 3)
    np.savez(tmp_path / "rgb.npz", x=np.full((2, 2, 2, 3), 255, np.uint8), y=[0, 0])
    coloured = evaluation.open_images(tmp_path / "rgb.npz")
    assert evaluation.evaluate(model, coloured, hint=hint).images == 2
    assert torch.equal(evaluation.prepared(coloured.read(0), hint), torch.ones(3, 2, 2))


def test_folder(folder: Path) -> None:
    score = evaluation.evaluate(load(), evaluation.open_images(folder), hint=HINT, batch=7)
    assert (score.images, score.top1) == (60, 1.0)


def test_labels_follow_their_images_when_cut(folder: Path) -> None:
    cut = evaluation.open_images(folder).first(12)
    assert evaluation.evaluate(load(), cut, hint=HINT).images == 12
    assert evaluation.evaluate(load(), cut, hint=HINT).top1 == 1.0


def named(folder: Path, root: Path, names: list[str]) -> Path:
    for k, name in enumerate(names):
        (root / name).symlink_to(folder / str(k))
    return root


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def test_class_names_in_order(folder: Path, tmp_path: Path) -> None:
    images = evaluation.open_images(named(folder, tmp_path, WORDS))
    assert evaluation.evaluate(load(), images, hint=HINT, classes=WORDS).top1 == 1.0
    assert evaluation.evaluate(load(), images, hint=HINT).top1 < 0.5  # the order of the alphabet is another


def test_modules_keep_their_modes(folder: Path) -> None:
    model = load().train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    before = [m.training for m in model.modules()]
    evaluation.evaluate(model, evaluation.open_images(folder).first(12), hint=HINT)
    assert [m.training for m in model.modules()] == before
    assert not frozen.training


def test_class_names_of_the_model(folder: Path, tmp_path: Path) -> None:
    model = load()
    vars(model)["config"] = SimpleNamespace(label2id={name: k for k, name in enumerate(WORDS)})
    images = evaluation.open_images(named(folder, tmp_path, WORDS))
    assert evaluation.evaluate(model, images, hint=HINT).top1 == 1.0


def test_wrong_class_names(folder: Path, tmp_path: Path) -> None:
    images = evaluation.open_images(named(folder, tmp_path, ["zero", "uno"]))
    with pytest.raises(ClassNamesError, match="no class of the model: got uno, wanted classes such as zero, one, two"):
        evaluation.evaluate(load(), images, hint=HINT, classes=WORDS)
    with pytest.raises(ClassNamesError, match=r"cannot be matched .* got 2 folders such as 'uno', wanted 10 classes"):
        evaluation.evaluate(load(), images, hint=HINT)


def test_numbers_beyond_the_outputs(folder: Path, tmp_path: Path) -> None:
    images = evaluation.open_images(named(folder, tmp_path, ["0", "11"]))
    with pytest.raises(ClassNamesError, match="labels beyond the model's outputs: got labels 0 to 11, wanted 0 to 9"):
        evaluation.evaluate(load(), images, hint=HINT)


def test_sets_in_one_file(tmp_path: Path) -> None:
    images = evaluation.demo_images()
    pixels = np.stack([images.read(i) for i in range(40)])
    np.savez(tmp_path / "x.npz", x=pixels, y=images.labels[:40])
    score = evaluation.evaluate(load(), evaluation.open_images(tmp_path / "x.npz"), hint=HINT)
    assert (score.images, score.top1) == (40, 1.0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 8, 8), np.uint8)}, "holds no labelled images: got x"),
        ({"x": np.zeros((2, 8, 8), np.float32), "y": np.zeros(2, int)}, "images: got float32"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.zeros(3, int)}, "wanted uint8, 3 of them"),
    ],
)
def test_sets_that_are_none(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        evaluation.open_images(tmp_path / "x.npz")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got no such file or folder"):
        evaluation.open_images(tmp_path / "no")
    with pytest.raises(DataError, match="wanted one folder of images a class"):
        evaluation.open_images(tmp_path)


def test_a_damaged_image(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        evaluation.evaluate(load(), evaluation.open_images(tmp_path), hint=HINT)


def test_photographs_are_cut_out_of_their_middle() -> None:
    picture = np.zeros((256, 400, 3), np.uint8)
    picture[16:240, 88:312] = 255
    hint = InputHint(modality="image", image_size=(3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(evaluation.prepared(Image.fromarray(picture), hint), torch.ones(3, 224, 224))


def test_real_photographs(shared: Path) -> None:
    images = evaluation.open_images(shared / "data" / "imagenet_like_1000.npz").first(24)
    model = zoo.mobilenet(shared)
    score = evaluation.evaluate(model, images, hint=model.input_hint)
    assert score.top1 > 0.5
    assert score.top5 >= score.top1


def test_command(folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    file, model = tmp_path / "d.opq.safetensors", load()
    opq.compress("demo:digits", bits=0.3, probe=False).save(file)
    worse = evaluation.evaluate(opq.load(file, model), evaluation.open_images(folder), hint=HINT).top1
    assert worse < 1, "else it would not show which network was scored"
    ran = CliRunner().invoke(app, ["evaluate", str(file), "--model", "demo:digits", "--data", str(folder), "--json"])
    scores = json.loads(ran.stdout)
    assert scores["dense"]["top1"] == 1.0
    assert scores["compressed"]["top1"] == worse
    assert scores["compressed"]["images"] == 60

    based, other = tmp_path / "based.opq.safetensors", tmp_path / "other.safetensors"
    save_file({n: t + 0.01 if t.dim() > 1 else t for n, t in load().state_dict().items()}, other)
    opq.compress("demo:digits", bits=4, base=other, probe=False).save(based)
    call = ["evaluate", str(based), "--model", "demo:digits", "--data", str(folder), "--json"]
    assert isinstance(CliRunner().invoke(app, call).exception, opq.errors.OpqError)
    assert json.loads(CliRunner().invoke(app, [*call, "--base", str(other)]).stdout)["compressed"]["top1"] > worse
