"""The networks of the benchmarks are the ones whose weights they load, and their data is read as they saw it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo

from opq.sources import open_source


@pytest.mark.parametrize(("make", "parameters"), [(zoo.LeNet300, 266_610), (zoo.LeNet5, 431_080)])
def test_lenets_have_their_published_size_and_classify_28_pixels(
    make: type[zoo.LeNet300 | zoo.LeNet5], parameters: int
) -> None:
    model = make()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.input_hint.image_size == (1, 28, 28)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_resnet50_is_that_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs, ours = torchvision.models.resnet50(weights=None).eval(), zoo.resnet50()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_resnet20_is_right_about_four_of_five_cifar_images(shared: Path) -> None:
    images = zoo.cifar10(count=500, shared=shared)
    assert images.pixels.shape == (500, 3, 32, 32)
    assert 76 <= zoo.top1(zoo.resnet20(shared), images) <= 86


def test_mobilenet_names_the_first_photographs(shared: Path) -> None:
    images = zoo.imagenet_like(24, shared=shared)
    assert zoo.top1(zoo.mobilenet(shared), images) > 50


def test_mnist_is_whole(shared: Path) -> None:
    images = zoo.mnist(shared=shared)
    assert len(images) == 10_000
    assert images.labels.bincount().min() > 800
    torch.manual_seed(0)
    assert 0 <= zoo.top1(zoo.LeNet300(), images[:100]) <= 40


def test_minilm_finds_what_means_the_same() -> None:
    model, tokens = zoo.minilm()
    vectors = zoo.embeddings(model, tokens, ["a cat sits", "stock markets fell", "the kitten sat down"])
    likeness = vectors @ vectors.T
    assert likeness[0, 2] > 0.5 > 0.3 > likeness[0, 1]
    assert open_source(model).input_hint.vocabulary == 30_522
