"""Checkpoints that are quantized already, read as the weights that their codes stand for.

`packed_weights` decodes the layouts; a checkpoint in another layout is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from opq.errors import SourceError
from opq.sources.base import Source, TensorSpec, checked
from opq.sources.packed_weights import Packed, mxfp4, pack_quantized, qweight, scaled
from opq.sources.quantized import decoders

_FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def dequantized(source: Source) -> Source:
    """The source with decoded weights in place of codes and scales; the source itself if it has no codes.

    Weights are decoded when they are read, one at a time.

    Raises:
        SourceError: codes have an unknown layout, or shapes and configuration do not determine which one.
    """
    config = _config(source)
    packed = list(_packed(source, config))
    gone = {part for one in packed for part in one.parts}
    _check_rest(source, gone)
    if not packed:
        return source
    modules = {part.rpartition(".")[0] for part in gone}
    idle = [s.name for s in source.specs if s.exact and s.name not in gone and s.name.rpartition(".")[0] in modules]
    dtype = _FLOATS.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."))
    made = {one.name: (one, dtype or one.dtype or torch.float32) for one in packed}
    first = {one.parts[0]: one.name for one in packed}
    specs = [_placed(s, first, made) for s in source.specs if s.name in first or s.name not in {*gone, *idle}]

    def read(name: str) -> Tensor:
        if name not in made:
            return source.tensor(name)
        one, wanted = made[name]
        return one.make(source.tensor).to(wanted)

    kept = {spec.name for spec in specs} - set(made)
    plain = dataclasses.replace(
        source,
        specs=tuple(specs),
        read=read,
        files={name: path for name, path in source.files.items() if name in kept},
        ignored=(*source.ignored, *idle),
        make=None,
        no_model="its weights were dequantized",
    )
    return checked(_buildable(plain, config))


def _placed(spec: TensorSpec, first: Mapping[str, str], made: Mapping[str, tuple[Packed, torch.dtype]]) -> TensorSpec:
    if spec.name not in first:
        return spec
    one, dtype = made[first[spec.name]]
    return TensorSpec(one.name, one.shape, dtype)


def _buildable(source: Source, config: Mapping[str, Any]) -> Source:
    """The source with the model of its folder, built from the decoded weights, if the configuration names one."""
    from opq.sources.hf_models import build_of

    folder = source.folder
    if folder is None or not config.get("model_type"):
        return source
    return dataclasses.replace(source, make=lambda: build_of(folder, source.state_dict(), trust=source.trusted))


def _config(source: Source) -> dict[str, Any]:
    from opq.sources.folders import configuration

    return {} if source.folder is None else configuration(source.folder)


def _check_rest(source: Source, gone: set[str]) -> None:
    """Raises `SourceError` if there are codes that were not decoded although they have scales."""
    codes = set(decoders(source.specs).values())
    left = sorted(name for name in codes - gone if source.by_name[name].dtype != torch.float8_e8m0fnu)
    if left:
        raise SourceError(
            f"{source.label}: codes of a layout that is not known",
            got=", ".join(left[:3]),
            wanted="float8, compressed-tensors, GPTQ, AWQ or MXFP4",
            remedy="Dequantize it with the package that wrote it, or leave dequantize=True out to keep it as it is.",
        )


def _packed(source: Source, config: Mapping[str, Any]) -> Iterator[Packed]:
    """Every weight that is stored as codes."""
    specs = source.by_name
    settings = config.get("quantization_config") or {}
    settings = settings if isinstance(settings, Mapping) else {}
    for name, spec in specs.items():
        stem, _, last = name.rpartition(".")
        if last == "qweight":
            yield qweight(f"{stem}." if stem else "", specs, settings, source.tensor)
        elif last == "weight_packed" and spec.dtype == torch.int32:
            yield pack_quantized(name.removesuffix("_packed"), specs, settings, source.tensor)
        elif spec.dtype == torch.uint8 and (tail := next((t for t in ("_blocks", ".blocks") if name.endswith(t)), "")):
            yield mxfp4(name.removesuffix(tail), tail[0], specs)
        elif spec.dtype == torch.int8 or (spec.dtype.itemsize == 1 and spec.dtype.is_floating_point):
            scale = next((n for n in _scale_names(name) if n in specs), None)
            if scale is not None and spec.dtype != torch.float8_e8m0fnu and len(spec.shape) >= 2:
                yield scaled(name, scale, specs, settings)


def _scale_names(name: str) -> Iterator[str]:
    stem = name.removesuffix(".weight")
    for tail in ("_scale_inv", "_scale", ".scales", ".scale"):
        yield from dict.fromkeys((name + tail, stem + tail))
