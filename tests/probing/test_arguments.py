"""Arguments by their names and by a model's configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import graphs
import pytest
import tiny
import torch
from torch import nn

import opq
from opq.probing import signature
from opq.probing.arguments import named
from opq.probing.facts import Facts
from opq.probing.inputs import synthetic


class Configured(nn.Module):
    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.config: Any = SimpleNamespace(**fields)


@pytest.mark.parametrize(
    ("name", "fields", "kind", "shape"),
    [
        ("input_features", {"num_mel_bins": 80, "max_source_positions": 1500}, "mel", (80, 3000)),
        ("input_features", {"input_feat_per_channel": 24}, "fbank", (128, 24)),
        ("mel", {"n_mels": 40, "n_audio_ctx": 50}, "mel", (40, 100)),
        ("input_values", {"conv_stride": (5, 2)}, "standard speech", (16_000,)),
        ("input_values", {"audio_channels": 2}, "speech", (2, 16_000)),
        ("input_values", {"max_length": 1024, "num_mel_bins": 128}, "fbank", (1024, 128)),
        ("pixel_values", {"image_size": 48, "num_channels": 1}, "signal", (1, 48, 48)),
        ("pixel_values", {"image_size": {"height": 32, "width": 64}}, "signal", (3, 32, 64)),
        ("pixel_values", {"encoder": SimpleNamespace(image_size=(32, 16))}, "signal", (3, 32, 16)),
        ("pixel_values", {"image_size": 32, "num_frames": 4}, "signal", (4, 3, 32, 32)),
        ("input_ids", {"vocab_size": 77, "max_position_embeddings": 12}, "tokens", (10,)),
        ("decoder_input_ids", {"vocab_size": 9, "decoder": {"vocab_size": 77}}, "tokens", (24,)),
        ("timestep", {}, "tokens", ()),
        ("encoder_hidden_states", {"cross_attention_dim": 12}, "signal", (77, 12)),
        ("class_labels", {"num_class_embeds": 5}, "tokens", ()),
        ("edge_index", {}, "edges", ()),
    ],
)
def test_a_name_and_the_configuration_tell(
    name: str, fields: dict[str, Any], kind: str, shape: tuple[int, ...]
) -> None:
    model = Configured(**fields)
    form = named(name, Facts.of(model), model)[0]
    assert (form.kind, form.shape) == (kind, shape)
    if name.endswith("ids"):
        assert form.below == 77


def test_a_name_that_says_nothing_without_a_configuration() -> None:
    model = nn.Linear(3, 3)
    assert not Facts.of(model)
    for name in ("pixel_values", "input_features", "input_values", "sample", "x", "input"):
        assert named(name, Facts.of(model), model) == []


def test_a_configuration_that_is_no_configuration_is_passed_over() -> None:
    class Angry:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    model = Configured()
    model.config = Angry()
    assert Facts.of(model).number("vocab_size") is None
    model.config = SimpleNamespace(vocab_size=True, num_channels=-3, depth=[4, 5])
    assert (Facts.of(model).number("vocab_size", "num_channels"), Facts.of(model).number("depth")) == (None, 4)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("bilinear", {"input1": (4, 16), "input2": (4, 12)}),
        ("two-embeddings", {"user": (8, 24), "item": (8, 24)}),
        ("transformer", {"src": (4, 24, 32), "tgt": (4, 24, 32)}),
        ("denoiser", {"x": (4, 3, 8, 8), "t": (4,)}),
        ("multihead-attention", {"query": (4, 24, 32), "key": (4, 24, 32), "value": (4, 24, 32)}),
        ("matrix", {"": (4, 96)}),
    ],
)
def test_modules_of_several_arguments(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    model = tiny.NN[name]()
    batch = synthetic(model, samples=4)
    found = dict(batch.kwargs) or {"": batch.args[0]}
    assert {k: tuple(t.shape) for k, t in found.items()} == shapes
    if name == "two-embeddings":
        assert 50 <= int(synthetic(model, samples=64).kwargs["item"].max()) < 70


@pytest.mark.parametrize("name", graphs.GRAPHS)
def test_graphs_are_taken_whole(name: str) -> None:
    model = graphs.GRAPHS[name]()
    batch = synthetic(model, samples=16)
    assert batch.samples == 16
    assert (batch.dim is None) == name.startswith("g")
    if "edge_index" in batch.kwargs:
        edges = batch.kwargs["edge_index"]
        assert edges.shape == (2, 64)
        assert set(edges[1].tolist()) == set(range(16)), "every node hears of one at least"


def test_arguments_that_are_optional_are_passed_where_the_model_needs_them() -> None:
    class Both(Configured):
        main_input_name = "pixel_values"

        def forward(self, pixel_values: Any = None, decoder_input_ids: Any = None, labels: Any = None) -> Any:
            return pixel_values.mean() + decoder_input_ids.float().mean() + int(labels is None)

    model = Both(image_size=16, vocab_size=20, is_encoder_decoder=True)
    call = next(signature.calls(model))
    assert list(call.kwargs) == ["pixel_values", "decoder_input_ids"]
    assert synthetic(model, samples=4).kwargs["pixel_values"].shape == (4, 3, 16, 16)


def test_what_a_lightning_module_says_it_takes_is_imitated() -> None:
    class Lit(nn.Linear):
        example_input_array = torch.zeros(1, 9, 3)

    assert synthetic(Lit(3, 3), samples=4).args[0].shape == (4, 9, 3)


def test_a_speech_recogniser_of_a_folder_is_probed_by_its_name(tmp_path: Path) -> None:
    """What `hf:` names has to be probed, else it is an error."""
    model: Any = tiny.fill()["transformers/whisper:SpeechSeq2Seq"]()
    model.save_pretrained(tmp_path)
    result = opq.compress(f"hf:{tmp_path}", bits=6)
    assert "a probe of the model on synthetic inputs" in result.basis
