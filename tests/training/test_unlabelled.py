"""Pictures without labels: what is learnt from them, what is read, and one clear error for each way to be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import opq
from opq import demo, evaluation
from opq.cli import app
from opq.compression.result import Result
from opq.errors import DataError, MismatchError, MissingExtraError, OptionError
from opq.sources.base import InputHint
from opq.sources.digits import load
from opq.training.lesson import Lesson, of_pictures
from opq.training.pictures import Pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred digits in two folders, without labels."""
    root, images = tmp_path_factory.mktemp("pictures"), evaluation.demo_images()
    for i in range(100):
        place = root / ("some" if i % 3 else "others")
        place.mkdir(exist_ok=True)
        Image.fromarray(images.read(i)).save(place / f"{i:03}.png")
    return root


def small() -> nn.Module:
    """Two matrices that take the digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    vars(model)["input_hint"] = load().input_hint
    return model


@pytest.fixture(scope="module")
def result() -> Result:
    """Of the small network."""
    return opq.compress(small(), bits=5, trellis=False, probe=False)


@pytest.fixture(scope="module")
def digits() -> Result:
    """Of the network that ships with the package; it has BatchNorm."""
    return opq.compress("demo:digits", bits=1.2, trellis=False, probe=False)


def trained(result: Any, given: Any, model: nn.Module | None = None, **options: Any) -> opq.Finetuned:
    how = {"epochs": 2, "seed": 0, "progress": False, **options}
    return opq.finetune(small() if model is None else model, result, given, **how)


def bytes_of(found: opq.Finetuned) -> bytes:
    return b"".join(found.result.packed.parts)


def filled(result: Result) -> nn.Module:
    model = load()
    model.load_state_dict(result.state_dict())
    return model


# --- what is learnt --------------------------------------------------------------------------


def test_pictures_without_labels_bring_accuracy_back_in_no_more_bytes(folder: Path, digits: Result) -> None:
    found = trained(digits, folder, load(), epochs=4, batch=8)
    before, after = demo.accuracy(filled(digits)), demo.accuracy(filled(found.result))
    assert before < 0.9 < after
    budget = found.result.plan.budget
    assert budget is not None
    most = budget.bytes(elements=digits.elements, source_bytes=digits.source_bytes)
    assert found.result.bytes <= most
    assert all(epoch.bytes is not None and epoch.bytes <= most for epoch in found.history)
    assert found.best is not None
    assert found.best.distance == min(epoch.distance for epoch in found.history if epoch.distance is not None)
    assert found.best.bytes == found.result.bytes


def test_statistics_of_the_pictures_do_not_depend_on_how_a_file_holds_its_batchnorms(
    folder: Path, digits: Result
) -> None:
    """A file's weights and biases make up for the coarse statistics that it stores, and for these alone."""
    dense, model = load(), filled(digits)
    pictures = Pictures.read(evaluation.open_pictures(folder), dense.input_hint, lambda *_: None)
    lesson = Lesson(of_pictures(pictures, 0), dense, batch=32, seed=0, temperature=2.0)
    wanted = lesson.statistics(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_var is not None
        norm.weight.data *= 3
        norm.running_var.mul_(9).add_(8 * norm.eps)
    found = lesson.statistics(model)
    assert norms
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], msg=name)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(folder: Path, result: Result) -> None:
    one, again, other = (trained(result, folder, seed=seed) for seed in (0, 0, 1))
    assert bytes_of(one) == bytes_of(again)
    assert one.history == again.history
    assert bytes_of(one) != bytes_of(other)


def test_the_start_is_kept_where_no_epoch_is_better(folder: Path, result: Result) -> None:
    found = trained(result, folder, lr=0.1, epochs=1)
    assert found.kept == -1
    assert found.best is None
    assert all(torch.equal(found.result.codes[name], codes) for name, codes in result.codes.items())


def test_images_made_up_teach_too(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opq.training.lesson.SYNTHETIC", 60)
    one, again, other = (trained(result, None, images="synthetic", seed=seed) for seed in (0, 0, 1))
    assert one.history[0].loss > 0
    assert bytes_of(one) == bytes_of(again) != bytes_of(other)


def test_an_npz_and_an_image_set_are_as_good_as_a_folder(folder: Path, result: Result, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    np.savez(tmp_path / "x.npz", x=np.stack([np.asarray(Image.open(f)) for f in files]))
    wanted = bytes_of(trained(result, folder))
    assert bytes_of(trained(result, tmp_path / "x.npz")) == wanted
    assert bytes_of(trained(result, None, images=evaluation.open_pictures(folder))) == wanted


def test_a_file_is_as_good_as_the_result_that_it_was_saved_from(folder: Path, result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "digits.opq.safetensors")
    assert bytes_of(trained(tmp_path / "digits.opq.safetensors", folder)) == bytes_of(trained(result, folder))


def test_a_file_of_differences_has_no_weights_to_train(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "differences.opq.safetensors"
    opq.compress(small(), bits=5, base=small().state_dict(), probe=False).save(path)
    with pytest.raises(OptionError, match="holds differences to another network"):
        trained(path, folder)


# --- an interruption -------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def test_an_interrupted_run_resumes_to_the_same_bytes(folder: Path, digits: Result, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 3, "checkpoint_every": 1, "batch": 16}
    whole = trained(digits, folder, load(), **options)

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "finetune" and done == 9:  # in the middle of the second epoch
            raise Interrupted

    path = tmp_path / "run.ckpt"
    with pytest.raises(Interrupted):
        trained(digits, folder, load(), **options, checkpoint=path, progress=interrupt)
    resumed = trained(digits, folder, load(), **options, checkpoint=path)
    assert resumed.history == whole.history
    assert resumed.kept == whole.kept
    assert bytes_of(resumed) == bytes_of(whole)


# --- what is read ----------------------------------------------------------------------------


def test_pictures_that_cannot_be_read_are_skipped_and_named(folder: Path, result: Result, tmp_path: Path) -> None:
    good = sorted(folder.rglob("*.png"))[:30]
    for picture in good:
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    (tmp_path / "broken.png").write_bytes(good[0].read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "notes.txt").write_text("nor is this one looked at")
    found = trained(result, tmp_path)
    assert len(found.skipped) == 2
    assert "broken.png cannot be read" in found.skipped[0]
    assert "text.jpg cannot be read" in found.skipped[1]


@pytest.mark.parametrize("count", [2, 3, 11])
def test_fewer_pictures_than_a_batch_make_a_smaller_batch(count: int, result: Result, tmp_path: Path) -> None:
    pixels = np.stack([evaluation.demo_images().read(i) for i in range(count)])
    np.savez(tmp_path / "few.npz", x=pixels)
    found = trained(result, tmp_path / "few.npz")
    assert [epoch.epoch for epoch in found.history] == [0, 1]


def test_a_folder_without_enough_pictures_says_so(result: Result, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        trained(result, tmp_path)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"too few pictures can be read: got 0 of 1 picture \(.*a.png cannot be read"):
        trained(result, tmp_path)
    Image.fromarray(evaluation.demo_images().read(0)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="wanted at least 2"):
        trained(result, tmp_path)
    with pytest.raises(DataError, match=r"there is no .*nowhere: got no such file or folder"):
        trained(result, tmp_path / "nowhere")


HINT = InputHint(modality="image", image_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_grey_transparent_and_palette_pictures_are_read_as_coloured_ones(tmp_path: Path) -> None:
    Image.new("L", (80, 70), 255).save(tmp_path / "a.png")
    Image.new("RGBA", (80, 70), (0, 0, 0, 0)).save(tmp_path / "b.png")  # nothing but transparency: white
    Image.new("LA", (80, 70), (0, 0)).save(tmp_path / "c.png")
    palette = Image.new("P", (80, 70), 0)
    palette.putpalette([255, 255, 255])
    palette.save(tmp_path / "d.png", transparency=b"\x00")
    Image.new("CMYK", (80, 70), (0, 0, 0, 0)).save(tmp_path / "e.jpg")
    pictures = Pictures.read(evaluation.open_pictures(tmp_path), HINT, lambda *_: None)
    assert len(pictures) == 5
    assert pictures.skipped == ()
    assert torch.allclose(pictures.plain(range(5)), torch.ones(5, 3, 64, 64), atol=0.02)
    assert pictures.augmented(range(5), 0, 0).shape == (5, 3, 64, 64)


def test_coloured_pictures_are_read_as_grey_ones_where_the_network_takes_these(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (12, 9), (255, 255, 255)).save(tmp_path / f"{name}.png")
    pictures = Pictures.read(evaluation.open_pictures(tmp_path), load().input_hint, lambda *_: None)
    assert pictures.plain([0, 1]).shape == pictures.augmented([0, 1], 0, 0).shape == (2, 1, 8, 8)


def test_pictures_are_judged_as_they_are_evaluated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k, size in enumerate(((90, 70), (64, 64), (64, 200), (30, 41))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    images = evaluation.open_pictures(tmp_path)
    pictures = Pictures.read(images, HINT, lambda *_: None)
    wanted = torch.stack([evaluation.prepared(images.read(k), HINT) for k in range(4)])
    assert torch.equal(pictures.plain(range(4)), wanted)


def test_augmentation_depends_on_seed_epoch_and_picture_alone(folder: Path) -> None:
    pictures = Pictures.read(evaluation.open_pictures(folder), load().input_hint, lambda *_: None)
    state = torch.random.get_rng_state()
    both = pictures.augmented([3, 7], 0, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(pictures.augmented([7, 3], 0, 1), both.flip(0))
    changed = [pictures.augmented(range(50), seed, epoch) for seed, epoch in ((0, 1), (0, 2), (1, 1))]
    assert not torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], changed[2])


# --- what does not go together ---------------------------------------------------------------


def test_there_is_one_thing_to_train_on(folder: Path, result: Result) -> None:
    batches = [(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))]
    for given, options, got in (
        (None, {}, "nothing"),
        (batches, {"images": folder}, "batches and images="),
        (folder, {"texts": ["a", "b"]}, "images= and texts="),
        (folder, {"images": folder}, "images="),
    ):
        with pytest.raises(OptionError, match=f"one thing to train on: got {got}"):
            trained(result, given, **options)


def test_a_loss_of_labels_needs_labels(folder: Path, result: Result) -> None:
    with pytest.raises(OptionError, match="pictures and texts have no labels: got loss='cross_entropy'"):
        trained(result, folder, loss="cross_entropy")


def test_labels_are_not_looked_at_where_the_teacher_is_all(result: Result) -> None:
    x = torch.stack([evaluation.prepared(evaluation.demo_images().read(i), load().input_hint) for i in range(32)])
    right, wrong = (trained(result, [(x, torch.full((32,), label))], loss="distill", epochs=1) for label in (0, 10**6))
    assert bytes_of(right) == bytes_of(wrong)


def test_a_network_that_does_not_say_what_pictures_it_takes(folder: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(DataError, match="does not say what pictures it takes"):
        opq.finetune(model, opq.solve(model, bits=6, probe=False), folder)


def test_a_teacher_of_other_outputs_is_said_to_be_one(folder: Path, result: Result) -> None:
    class Other(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :7]

    with pytest.raises(MismatchError, match=r"outputs are not like the network's: got \[10, 7\], wanted \[10, 10\]"):
        trained(result, folder, teacher=Other())


def test_a_missing_torchvision_is_named_with_its_extra(
    folder: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(MissingExtraError, match=r'pip install "opq\[finetune\]"'):
        trained(result, folder)


# --- the command -----------------------------------------------------------------------------


def test_the_command_writes_the_file_and_says_what_came_of_it(
    folder: Path, digits: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "digits.opq.safetensors", tmp_path / "trained.opq.safetensors"
    digits.save(file)
    more = tmp_path / "pictures"
    more.mkdir()
    for picture in folder.rglob("*.png"):
        (more / picture.name).write_bytes(picture.read_bytes())
    (more / "broken.png").write_bytes(b"no picture")
    asked = ["finetune", "demo:digits", str(file), "--images", str(more), "-o", str(out), "--epochs", "2"]
    app(asked, standalone_mode=False)
    said = capsys.readouterr().out
    assert "1 could not be read" in said
    assert "broken.png" in said
    assert "Epoch" in said or "No epoch" in said
    assert opq.load_state_dict(out).keys() == digits.state_dict().keys()
    app([*asked, "--force", "--json"], standalone_mode=False)
    figures = json.loads(capsys.readouterr().out)
    assert figures["file_bytes"] == out.stat().st_size
    assert [epoch["epoch"] for epoch in figures["history"]] == [0, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.name, "pictures", out.name]


def test_models_are_left_attached_and_go_on(folder: Path, result: Result) -> None:
    model = small()
    trained(result, folder, model, teacher=small())
    again = trained(result, folder, model, teacher=small(), seed=1)
    assert again.history
