"""Which models are probed without being asked, and in which words a report says what a compression rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from opq.compression import coders
from opq.compression.coders import basis_of, probe_source, wants_probe
from opq.compression.method import Method, RateDistortion
from opq.compression.options import Options
from opq.errors import ProbeWarning
from opq.file.basis import NOTES, REAL, SYNTHETIC
from opq.sources import open_source
from opq.sources.base import Source


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 20))


def folder(state: dict[str, torch.Tensor] | None = None, make: Callable[[], nn.Module] | None = network) -> Source:
    """A checkpoint in files, of a model that can be built or not."""
    source = open_source(network().state_dict() if state is None else state)
    return dataclasses.replace(source, origin="folder", make=make, folder=Path("its/folder"))


def asked(**options: Any) -> Options:
    return Options(bits=4, how=RateDistortion(**options))


class Published(Method):
    """One that needs the data of training."""

    name = "published"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"make": None}, False),
        ({"origin": "file"}, False),
        ({"origin": "module", "make": None}, True),
        ({"origin": "hf"}, True),
    ],
    ids=["a folder", "of no model", "a file", "a module", "a name"],
)
def test_what_has_a_model_is_probed_by_default(change: dict[str, Any], wanted: bool) -> None:
    source = dataclasses.replace(folder(), **change)
    assert wants_probe(source, asked()) == wanted
    assert wants_probe(source, asked(calibration=[torch.randn(4, 40)])), "inputs are given to be used"
    assert wants_probe(source, asked(probe=True))
    assert wants_probe(source, asked(probe="quick"))
    assert not wants_probe(source, asked(probe=False))
    assert not wants_probe(source, Options(bits=4, how=Published()))


def test_a_folder_is_probed_by_default_up_to_four_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert coders.WHOLE == 4 * 1024**3
    for most, wanted in ((folder().bytes, True), (folder().bytes - 1, False)):
        monkeypatch.setattr(coders, "WHOLE", most)
        assert wants_probe(folder(), asked()) == wanted
        large = basis_of(folder(), asked(), "").startswith("the weights alone: a model of more than 0 GiB in files is")
        assert large != wanted
        module = dataclasses.replace(folder(), origin="module")
        assert wants_probe(module, asked())
        assert basis_of(module, asked(), "") == "the weights alone: the model could not be probed"


def test_a_report_says_what_a_file_or_a_plan_rests_on_or_why_it_is_the_weights_alone() -> None:
    real = asked(calibration=[torch.randn(4, 40)])
    for note, said in NOTES.items():
        assert basis_of(folder(), asked(), note) == said
        assert basis_of(folder(), asked(), note, coded=False) == SYNTHETIC
        assert basis_of(folder(), real, note, coded=False) == REAL
    why = {
        basis_of(source, asked(probe=False), "", coded=c)
        for source in (folder(), folder(make=None))
        for c in (True, False)
    }
    assert why == {"the weights alone: no probe was asked for"}
    assert basis_of(folder(make=None), asked(), "") == "the weights alone: it is bare weights"
    assert basis_of(folder(), asked(), "") == "the weights alone: the model could not be probed"


def test_a_folder_whose_matrices_the_model_names_otherwise_is_probed_only_if_that_is_asked_for() -> None:
    state = dict(network().state_dict())
    vectors = {f"model.{n}" if "bias" in n else n: t for n, t in state.items()}
    assert probe_source(folder(vectors), asked()) is not None, "of vectors a probe says nothing"
    source = folder({f"model.{n}" if n == "2.weight" else n: t for n, t in state.items()})
    said = (
        r"tensors of the files have other names in the model: got model\.2\.weight\. Name it hf:its.folder to compress"
    )
    with pytest.warns(ProbeWarning, match=said):
        assert probe_source(source, asked()) is None
    for options in (asked(probe=True), asked(calibration=[torch.randn(40, 40)])):
        with pytest.warns(
            ProbeWarning, match=r"so that the probe tells nothing of them: model\.2\.weight\. Name it hf:"
        ):
            assert probe_source(source, options) is not None
    assert probe_source(dataclasses.replace(source, origin="module"), asked()) is not None
