"""The shipped network is whole, right about digits it never saw, and a source like any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opq import demo
from opq.errors import SourceError
from opq.sources import open_source
from opq.sources.digits import WEIGHTS, Digits, load, normalised


def test_the_network_reads_unseen_digits() -> None:
    assert 0.98 <= demo.accuracy(load()) <= 1


def test_an_untrained_network_does_not() -> None:
    torch.manual_seed(0)
    assert demo.accuracy(Digits()) < 0.4


def test_accuracy_counts_in_inference_mode_and_leaves_the_mode_as_it_was() -> None:
    model, (images, labels) = load().train(), demo.test_split()
    with torch.no_grad():
        right = int((load()(images).argmax(1) == labels).sum())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert demo.accuracy(model) == pytest.approx(right / len(labels))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_test_split_is_every_fourth_of_the_bundled_digits() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = demo.test_split()
    assert torch.equal(images, normalised(torch.from_numpy(digits.images[3::4])))
    assert torch.equal(labels, torch.from_numpy(digits.target[3::4]).long())


def test_the_pixels_are_normalised_over_all_images() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    values = normalised(torch.from_numpy(digits.images))
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 1) < 1e-3


def test_it_is_small_has_batchnorm_and_is_a_source() -> None:
    source = open_source("demo:digits")
    assert (source.label, source.origin) == ("demo:digits", "demo")
    assert len(source.batchnorms) == sum(isinstance(m, nn.BatchNorm2d) for m in source.build().modules()) == 4
    assert source.input_hint == Digits.input_hint
    assert sum(p.numel() for p in source.build().parameters()) == 131_178
    assert WEIGHTS.stat().st_size + demo.TEST_SPLIT.stat().st_size < 300_000
    assert Digits.input_hint.image_size == (1, 8, 8)
    assert load()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_shipped_file_is_a_source_of_half_precision() -> None:
    source = open_source(WEIGHTS)
    floats = [spec for spec in source if spec.dtype.is_floating_point]
    assert {spec.dtype for spec in floats} == {torch.float16}
    assert set(source.names) == set(open_source("demo:digits").names)


def test_every_load_is_a_network_of_its_own() -> None:
    first, second = load(), load()
    with torch.no_grad():
        first[0].weight.zero_()
    assert second[0].weight.abs().sum() > 0


def test_another_demo_is_refused() -> None:
    with pytest.raises(SourceError, match="no demo 'faces'"):
        open_source("demo:faces")
