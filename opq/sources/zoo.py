"""Pre-trained models by name: Hugging Face, timm and torchvision, whose packages are imported only when needed."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from opq.base.extras import brief, need
from opq.base.paths import what_is
from opq.base.process_state import same_random_state
from opq.errors import SourceError
from opq.sources.base import Source
from opq.sources.folders import from_folder
from opq.sources.hf_models import load_transformers, skeleton_of
from opq.sources.hints import hint_of_weights
from opq.sources.memory import from_module
from opq.sources.names import fit_names

_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*")


# --- Hugging Face ----------------------------------------------------------------------------


def from_hf(name: str, *, trust: bool = False) -> Source:
    """`ORG/NAME`, `ORG/NAME@REVISION` or a local folder: the checkpoint's tensors under the model's own names.

    Weights are read from the snapshot's files, tensor by tensor; the class that the config names is built on demand.
    Names that differ only by the architecture's prefix become those of the model, tensors that the model ties are tied,
    and tensors that the model would not load are listed as ignored. If transformers renames or fuses tensors when it
    loads them, the model is built at once and its own tensors are used, which takes memory for the whole model (the
    path of the folder, without `hf:`, is always streamed). If it cannot be built, the names are those of the files.

    Args:
        trust: whether Python code that comes with the model may be run to build it.

    Raises:
        MissingExtraError: transformers or huggingface_hub is not installed.
        SourceError: the model is unknown, gated, or not in the local cache while offline.
    """
    local = Path(os.path.expanduser(name))  # noqa: PTH111 (pathlib raises where a user is unknown)
    what = what_is(local)
    if what != "a folder" and (what != "nothing" or name.startswith((".", "/", "~"))):
        got = "no such folder" if what == "nothing" else what
        raise SourceError(f"hf:{name} is not there", got=got, wanted="a folder or ORG/NAME")
    need("transformers", "hf")
    folder = local if what == "a folder" else _snapshot(name)
    opened = from_folder(folder, trust=trust)
    source = dataclasses.replace(
        opened, origin="hf", label=f"hf:{name}", folder=folder, inputs=(*opened.inputs, folder)
    )
    skeleton = skeleton_of(folder, trust=trust)
    if isinstance(skeleton, str):
        return dataclasses.replace(source, make=None, no_model=skeleton)
    return fit_names(source, skeleton) or _converted(source, folder)


def _converted(source: Source, folder: Path) -> Source:
    """The tensors of the model that transformers makes of the checkpoint; those of the files if it cannot make one."""
    try:
        model, missing, unused = load_transformers(folder, "auto", trust=source.trusted)
    except SourceError as error:
        return dataclasses.replace(source, make=None, no_model=str(error))
    if missing:
        got = f"the checkpoint lacks {', '.join(missing[:3])}" + (", ..." if len(missing) > 3 else "")
        return dataclasses.replace(source, make=None, no_model=got)
    made = from_module(model, label=source.label, origin="hf")
    ignored = (*source.ignored, *unused)
    return dataclasses.replace(made, folder=folder, inputs=source.inputs, ignored=ignored, trusted=source.trusted)


def _snapshot(name: str) -> Path:
    """The local folder of a model on the hub, downloaded if needed; PyTorch files only if there are no safetensors."""
    hub = need("huggingface_hub", "hf")
    repository, _, revision = name.partition("@")
    fetch: Any = hub.snapshot_download
    try:
        for weights in (("*.safetensors",), ("*.bin", "*.pt", "*.pth")):
            patterns = [*_SIDE_FILES, *weights]
            folder = fetch(
                repository,
                revision=revision or None,
                allow_patterns=patterns,
                ignore_patterns=[f"*/{weight}" for weight in weights],
            )
            if any(found for weight in weights for found in Path(folder).glob(weight)):
                break
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        remedy = "Check the name and the network, log in for gated models, or pass a local folder: hf:PATH."
        raise SourceError(f"hf:{name} cannot be had", got=brief(error), remedy=remedy) from error
    return Path(folder)


# --- timm and torchvision --------------------------------------------------------------------


def from_timm(name: str, *, pretrained: bool = True) -> Source:
    """A timm model by name; with `pretrained=False` its weights are random, the same every time.

    Raises:
        MissingExtraError: timm is not installed.
        SourceError: the name is unknown, or the weights cannot be fetched.
    """
    timm = need("timm", "timm")
    if not name.startswith(("hf_hub:", "hf-hub:", "local-dir:")) and not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    with _fetching(f"timm:{name}"):
        model: nn.Module = timm.create_model(name, pretrained=pretrained)
    return from_module(model.eval(), label=f"timm:{name}", origin="timm")


def from_torchvision(name: str, *, pretrained: bool = True) -> Source:
    """A torchvision model by name with its default weights; with `pretrained=False` random, the same every time.

    Raises:
        MissingExtraError: torchvision is not installed.
        SourceError: the name is unknown, or the weights cannot be fetched.
    """
    models = need("torchvision", "torchvision").models
    if name.lower() not in models.list_models():
        raise _unknown("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if not pretrained and "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    with _fetching(f"torchvision:{name}"):
        model: nn.Module = builder(**options)
    source = from_module(model.eval(), label=f"torchvision:{name}", origin="torchvision")
    preset = hint_of_weights(models.get_model_weights(name).DEFAULT)
    return dataclasses.replace(source, hint=lambda: preset)


@contextlib.contextmanager
def _fetching(label: str) -> Iterator[None]:
    """Fixes random numbers and restores them afterwards; a failed download becomes a `SourceError`."""
    with same_random_state(seed=0):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            remedy = f"Check the network, or take random weights: {label}?pretrained=false."
            raise SourceError(f"{label}: its weights cannot be had", got=brief(error), remedy=remedy) from error


def _unknown(zoo: str, name: str, known: Iterable[str]) -> SourceError:
    near = difflib.get_close_matches(name, list(known), n=3)
    wanted = f"a name such as {', '.join(near)}" if near else f"a name from {zoo}'s list_models()"
    return SourceError(f"{zoo} has no model {name!r}", wanted=wanted, remedy="Correct the name.")
