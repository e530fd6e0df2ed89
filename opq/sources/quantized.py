"""Checkpoints that are quantized already: which of their tensors decode integer codes, and must be kept exactly.

These are scales and zero points, of which a small error would change a whole block of weights. They are recognised by
their codes (integers or float8), whose name they continue or which are in the same module.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from opq.errors import SourceError
from opq.sources.base import TensorSpec

CODES = (torch.int8, torch.uint8, torch.int16, torch.int32)
"""Element types of codes, packed or not. (Indices and masks are int64 or bool.)"""
_WORD = re.compile(
    r"(.*_)?(q_?)?(scales?|zeros?|zero_?points?|absmax|quant_map|shifts?|codebooks?|scb|sz|su|sv|wscale|min|max)"
    r"(_inv|_and_zeros?|_max|_2|_\d+)?",
    re.I,
)
"""The last part of the name of a tensor that decodes codes: `scales`, `weight_scale_inv`, `absmax`, `SCB`, ..."""
_ALONE = re.compile(r"(.*_)?(scales?|zeros?|zero_?points?|absmax|quant_map|codebooks?|scb)(_inv|_2)?", re.I)
"""The same for tensors without codes next to them, if the folder's configuration says that the model is quantized."""
_PAIRS = {"B": "s", "W_q": "meta"}
"""Names of codes and of their scales in one module (Marlin, HQQ)."""
_PACKED = ("qweight", "weight_packed", "W_q", "q_weight", "Qidxs")
"""Names that only packed codes have; without scales these cannot be decoded."""
INTEGERS, FLOAT8 = "decodes integer codes", "scales of float8 weights"
"""The reasons given for keeping a tensor."""
METHODS = (
    *("gptq", "awq", "compressed-tensors", "fp8", "fbgemm_fp8", "finegrained_fp8", "mxfp4", "bitsandbytes", "modelopt"),
    *("hqq", "quanto", "torchao", "aqlm", "eetq", "exl2", "quark", "auto-round", "autoround", "intel/auto-round"),
    *("vptq", "spqr", "bitnet", "higgs", "quip", "gptq_marlin", "awq_marlin", "nvfp4", "fouroversix", "sinq", "metal"),
)
"""Values of `quant_method` whose tensors are named as above."""


def marked(specs: Iterable[TensorSpec], config: Mapping[str, Any] | None = None) -> tuple[TensorSpec, ...]:
    """The specs with `exact` set for every floating-point tensor that decodes codes.

    Args:
        config: the model's configuration, if its folder has one.

    Raises:
        SourceError: there are packed codes without scales, or the method of quantization is unknown, so that weights
            cannot be told from scales.
    """
    specs = tuple(specs)
    by_name = {spec.name: spec for spec in specs}
    method, decoded = method_of(config or {}), decoders(specs)
    _check_packed(specs, decoded)
    found = {n: FLOAT8 if by_name[c].dtype.is_floating_point else INTEGERS for n, c in decoded.items()}
    if method is not None:
        _check_method(method, specs)
        found = dict.fromkeys((s.name for s in specs if _is_word(s, _ALONE)), INTEGERS) | found
    return tuple(dataclasses.replace(s, exact=found[s.name]) if s.name in found and not s.exact else s for s in specs)


def method_of(config: Mapping[str, Any]) -> str | None:
    """The method of quantization that a configuration names; None if it names none."""
    given = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(given, Mapping):
        return None
    method = given.get("quant_method")
    if method is None and any(given.get(key) for key in ("load_in_4bit", "load_in_8bit")):
        return "bitsandbytes"
    return str(method) if method is not None else "an unknown method"


def _check_method(method: str, specs: Iterable[TensorSpec]) -> None:
    """Raises `SourceError` if there are codes by an unknown method."""
    codes = next((s.name for s in specs if _is_code(s)), None)
    if codes is not None and method.lower() not in METHODS:
        remedy = "Compress the weights that were quantized instead, or their tensors as a state dict."
        raise SourceError(
            f"the checkpoint is quantized by {method!r}, and nothing tells its scales from weights",
            got=f"integer codes in {codes!r}",
            wanted=f"one of {', '.join(METHODS[:8])}, ...",
            remedy=remedy,
        )


def decoders(specs: Iterable[TensorSpec]) -> dict[str, str]:
    """Every floating-point tensor that decodes codes, with the name of such codes; by names and types alone."""
    specs = tuple(specs)
    codes = {s.name: s for s in specs if _is_code(s) or (s.dtype.itemsize == 1 and s.dtype.is_floating_point)}
    modules: dict[str, list[str]] = {}
    for name in codes:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    beside = ((s.name, next((c for c in _beside(s.name, codes, modules) if c != s.name), None))
              for s in specs if s.dtype.is_floating_point)  # fmt: skip
    return {name: code for name, code in beside if code is not None}


def _beside(name: str, codes: Mapping[str, TensorSpec], modules: Mapping[str, list[str]]) -> Iterable[str]:
    """The codes that a tensor of this name may decode: those whose name it continues, then those of its module."""
    parent, _, last = name.rpartition(".")
    stem = name
    while "." in stem or "_" in stem.rpartition(".")[2]:
        stem = stem[: max(stem.rfind("."), stem.rfind("_"))]
        if stem in codes and _is_tail(name[len(stem) + 1 :]):
            yield stem
    siblings = modules.get(parent, [])
    if _WORD.fullmatch(last):
        yield from (c for c in siblings if not _unrelated(last, c.rpartition(".")[2]))
    for code, scale in _PAIRS.items():
        if last == scale:
            yield from (c for c in siblings if c.rpartition(".")[2] == code)


def _is_tail(tail: str) -> bool:
    """Whether the rest of a name, after the name of codes, is that of a tensor that decodes them."""
    return any(_WORD.fullmatch(part) for part in (tail, tail.rpartition(".")[2], tail.lstrip("_")))


def _unrelated(word: str, code: str) -> bool:
    """Whether two tensors of one module belong to different weights: `up_scale` and `down_codes`."""
    own, other = word.partition("_")[0], code.partition("_")[0]
    stems = {"weight", "input", "output", "k", "v", "q", "scale", "scales", "zero", "zeros", "g", "absmax"}
    return "_" in word and "_" in code and own.lower() not in stems and other.lower() not in {*stems, own.lower()}


def _check_packed(specs: Iterable[TensorSpec], decoded: Mapping[str, str]) -> None:
    """Raises `SourceError` if packed codes have no scales in their module."""
    held = {name.rpartition(".")[0] for name in decoded}
    for spec in specs:
        module, _, last = spec.name.rpartition(".")
        if last in _PACKED and _is_code(spec) and module not in held:
            got = f"{spec.name!r} and no scales beside it"
            raise SourceError("packed codes that nothing decodes", got=got, wanted="their scales in the same source")


def _is_code(spec: TensorSpec) -> bool:
    return spec.dtype in CODES and spec.size > 0


def _is_word(spec: TensorSpec, word: re.Pattern[str]) -> bool:
    return spec.dtype.is_floating_point and word.fullmatch(spec.name.rpartition(".")[2]) is not None
