"""A pipeline of diffusers: its models compressed by one command, and loaded back into the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import opq
import opq.hub
from opq.cli import app
from opq.errors import BudgetError, OptionError, SourceError
from opq.file.loading import load_state_dict

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small latent diffusion without conditions: UNet, VQ autoencoder, scheduler."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {"norm_num_groups": 4, "layers_per_block": 1}
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(16,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), attention_head_dim=8, **blocks,
    )  # fmt: skip
    vae = diffusers.VQModel(block_out_channels=(16,), latent_channels=3, num_vq_embeddings=16, **blocks)
    whole = diffusers.LDMPipeline(vqvae=vae, unet=unet, scheduler=diffusers.DDIMScheduler())
    folder = tmp_path_factory.mktemp("pipeline") / "dense"
    whole.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def compressed(pipeline: Path) -> Path:
    """By the command."""
    out = pipeline.parent / "small"
    ran = CliRunner().invoke(app, ["compress", str(pipeline), "--bits", "5", "--no-probe", "-o", str(out), "--json"])
    assert ran.exit_code == 0, ran.exception or ran.output
    models = json.loads(ran.output)["models"]
    assert set(models) == {"unet", "vqvae"}
    assert all(4.5 < model["bits"] <= 5 for model in models.values())
    return out


def test_a_pipeline_comes_back_with_its_models_dense(pipeline: Path, compressed: Path) -> None:
    assert not list(compressed.rglob("diffusion_pytorch_model*"))
    parts = opq.hub.diffusers_components(compressed)
    for name, model in parts.items():
        wanted = load_state_dict(compressed / name)
        assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items()), name
    whole = diffusers.DiffusionPipeline.from_pretrained(compressed, **parts)
    whole.set_progress_bar_config(disable=True)
    assert whole.unet is parts["unet"]
    made = whole(generator=torch.manual_seed(0), num_inference_steps=2, output_type="np").images
    dense = diffusers.DiffusionPipeline.from_pretrained(pipeline)
    dense.set_progress_bar_config(disable=True)
    wanted = dense(generator=torch.manual_seed(0), num_inference_steps=2, output_type="np").images
    assert made.shape == wanted.shape
    assert abs(made - wanted).mean() < 0.1


def test_weights_come_in_the_type_that_was_asked_for(compressed: Path) -> None:
    parts = opq.hub.diffusers_components(compressed, dtype=torch.bfloat16)
    assert {p.dtype for model in parts.values() for p in model.parameters()} == {torch.bfloat16}


def test_what_is_no_pipeline_is_said(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no pipeline of diffusers"):
        opq.hub.compress_pipeline(tmp_path, tmp_path / "out", bits=4)
    with pytest.raises(SourceError, match="is in opq files"):
        opq.hub.diffusers_components(pipeline)
    index = {"_class_name": "X", "unet": ["diffusers", "UNet2DModel"], "../up": ["diffusers", "VQModel"], "odd": 3}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"no model of the pipeline .* has weights"):
        opq.hub.compress_pipeline(tmp_path, tmp_path / "out", bits=4)
    with pytest.raises(BudgetError):
        opq.hub.compress_pipeline(pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classes_of_other_libraries_are_not_built(compressed: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(compressed, tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"vqvae": ["os", "system"]}))
    assert set(opq.hub.diffusers_components(folder)) == {"unet"}
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "DDIMScheduler"]}))
    with pytest.raises(SourceError, match="has no model of that name: got DDIMScheduler"):
        opq.hub.diffusers_components(folder)


@pytest.mark.parametrize("option", [["--size", "1MB"], ["--dry-run"], ["--keep", "*"], ["--method", "opq"]])
def test_options_of_one_model_are_refused(option: list[str], pipeline: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["compress", str(pipeline), "-o", str(tmp_path / "out"), *option])
    assert ran.exit_code == 1
    assert isinstance(ran.exception, OptionError) or f"{option[0]} does not go with a pipeline" in ran.output
    assert not (tmp_path / "out").exists()
