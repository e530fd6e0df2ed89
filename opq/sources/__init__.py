"""Where weights come from: one call, `open_source`, for every kind of source."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from opq.base.paths import what_is
from opq.errors import SourceError
from opq.models.attachment import check_detached
from opq.models.wrappers import unwrapped
from opq.sources.base import BatchNormNames, InputHint, Source, TensorSpec
from opq.sources.files import from_file
from opq.sources.folders import from_folder
from opq.sources.memory import from_mapping, from_module

__all__ = [
    "BatchNormNames",
    "InputHint",
    "Source",
    "SourceLike",
    "TensorSpec",
    "base",
    "digits",
    "files",
    "folders",
    "hf_models",
    "hints",
    "hub_config",
    "images",
    "memory",
    "names",
    "open_source",
    "quantized",
    "side_files",
    "zoo",
]

SourceLike = nn.Module | Mapping[str, Any] | str | os.PathLike[str] | Source
"""A module, a state dict, a path, a name such as `hf:ORG/NAME`, or an opened `Source`."""

_SCHEMES = ("hf", "timm", "torchvision", "demo")
_KINDS = "a module, a state dict, a path, or hf:, timm:, torchvision: or demo: and a name"


def open_source(
    source: SourceLike,
    *,
    pretrained: bool = True,
    dequantize: bool = False,
    trust_remote_code: bool = False,
) -> Source:
    """The source of the weights. Nothing is copied; files are read tensor by tensor, on demand.

    Args:
        source: a `torch.nn.Module`; a state dict; a `.safetensors` file; a PyTorch checkpoint (`.pt`, `.pth`,
            `.bin`, `.ckpt`; only tensors are taken from it); a folder of either, sharded or not, perhaps in Hugging
            Face layout; `hf:ORG/NAME`, `hf:ORG/NAME@REVISION` or `hf:FOLDER`; `timm:NAME`; `torchvision:NAME`;
            `demo:digits`.
        pretrained: for `timm:` and `torchvision:`, whether to fetch the trained weights; `NAME?pretrained=false`
            says the same in a shell.
        dequantize: for a checkpoint that is quantized already (GPTQ, AWQ, compressed-tensors, float8 with scales,
            MXFP4): whether to decode its weights. Otherwise codes and scales are kept as they are.
        trust_remote_code: whether to run Python code that comes with a model's folder or repository.

    Raises:
        EmptyModelError: the source has no floating-point tensor.
        UnsafeCheckpointError: the checkpoint is a pickle of a module.
        MissingExtraError: a package for this kind of source is not installed.
        MissingShardError, CorruptSourceError: a file is missing or damaged.
        SourceError: the source is unknown or cannot be read.
        AttachError: the compression module is attached to the model.

    Example:
        >>> import opq
        >>> source = opq.open_source("demo:digits")
        >>> source.names[0], source.elements
        ('0.weight', 131754)
    """
    opened = _opened(source, pretrained, trust_remote_code)
    if not dequantize:
        return opened
    from opq.sources.dequantize import dequantized

    return dequantized(opened)


def _opened(source: object, pretrained: bool, trust: bool) -> Source:
    if isinstance(source, Source):
        return source
    if isinstance(source, nn.Module):
        check_detached(source)
        return from_module(unwrapped(source))
    if isinstance(source, Mapping):
        return from_mapping(source)
    if isinstance(source, str) and (named := re.fullmatch(rf"({'|'.join(_SCHEMES)}):(.*)", source, re.DOTALL)):
        return _from_name(named[1], named[2], pretrained, trust)
    if isinstance(source, (str, os.PathLike)) and str(source).strip():
        return _from_path(Path(source), trust)
    raise SourceError(
        "the source is not understood",
        got=repr(source) if isinstance(source, str) else type(source).__name__,
        wanted=_KINDS,
    )


def _from_path(path: Path, trust: bool) -> Source:
    try:
        path = path.expanduser()
    except RuntimeError as error:  # ~nobody
        raise SourceError(f"{path} is not there", got=error, wanted=_KINDS) from error
    found = what_is(path)
    if found == "a folder":
        return from_folder(path, trust=trust)
    if found == "a file":
        return from_file(path)
    if found != "nothing":
        raise SourceError(f"{str(path)!r} cannot be read", got=found, wanted="a file or a folder")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.suffix:
        remedy = f"For a model on the Hugging Face hub write hf:{path}."
        raise SourceError(f"{path} is not there", got="no such file or folder", remedy=remedy)
    if re.fullmatch(r"\w[\w-]*", str(path)):
        remedy = f"For a model by its name write torchvision:{path}, timm:{path} or hf:{path}."
        raise SourceError(f"{path} is not there", got="no such file or folder", remedy=remedy)
    raise SourceError(f"{path} is not there", got="no such file or folder", wanted=_KINDS)


def _from_name(scheme: str, name: str, pretrained: bool, trust: bool) -> Source:
    from opq.sources import zoo

    if not name.strip():
        raise SourceError(f"{scheme}: names nothing", wanted=f"{scheme}:NAME", remedy="Write the name after the colon.")
    if scheme == "hf":
        return zoo.from_hf(name, trust=trust)
    if scheme == "demo":
        return _from_demo(name)
    name, pretrained = _options(scheme, name, pretrained)
    return (
        zoo.from_timm(name, pretrained=pretrained)
        if scheme == "timm"
        else zoo.from_torchvision(name, pretrained=pretrained)
    )


def _options(scheme: str, name: str, pretrained: bool) -> tuple[str, bool]:
    """The name and the option in `NAME?pretrained=false`."""
    name, _, query = name.partition("?")
    if not query:
        return name, pretrained
    value = {"pretrained=true": True, "pretrained=false": False}.get(query.lower())
    if value is None:
        wanted = f"{scheme}:{name}?pretrained=false"
        raise SourceError(f"{scheme}:{name}: option not understood", got=repr(query), wanted=wanted)
    return name, value


def _from_demo(name: str) -> Source:
    from opq.sources.digits import load

    if name != "digits":
        raise SourceError(f"there is no demo {name!r}", wanted="demo:digits", remedy="Write demo:digits.")
    return from_module(load(), label="demo:digits", origin="demo")
